"""Truncation by hand; sampling against the distribution that it is to have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distil_jax.ops import sampling

INF = np.inf
# The largest number below 1 in float32, and the largest that
# `jax.random.uniform` gives.
TOP_UNIFORMS = np.array([1 - 2**-24, 1 - 2**-23], np.float32)

_draw = jax.jit(jax.vmap(sampling.sample, in_axes=(None, 0)))


def draw(logits, uniforms):
  """One token of the same logits for each uniform number."""
  return np.asarray(_draw(jnp.asarray(logits), jnp.asarray(uniforms)))


def kept(logits, **settings):
  """Which tokens truncation keeps; it must not touch their logits."""
  logits = np.asarray(logits, np.float32)
  result = np.asarray(sampling.truncate(jnp.asarray(logits), **settings))
  is_kept = np.isfinite(result)
  np.testing.assert_array_equal(result[is_kept], logits[is_kept])
  np.testing.assert_array_equal(result[~is_kept], -INF)
  return is_kept.astype(int).tolist()


def distribution(vocab_size, kind):
  """Logits of strongly different sizes."""
  rng = np.random.default_rng(vocab_size)
  if kind == "normal":
    return rng.normal(0, 3, vocab_size).astype(np.float32)
  if kind == "falling":  # over all blocks, from e⁰ to e⁻⁶
    return -np.linspace(0, 6, vocab_size, dtype=np.float32)
  if kind == "rising":  # most mass in the last, unfilled block
    return np.linspace(-6, 0, vocab_size, dtype=np.float32)
  raise ValueError(kind)


def softmax(logits):
  weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
  return weights / weights.sum()


class TestSampleDistribution:
  @pytest.mark.parametrize("vocab_size", [5, 300, 1000])
  @pytest.mark.parametrize("kind", ["normal", "falling", "rising"])
  def test_chi_square(self, vocab_size, kind):
    logits = distribution(vocab_size, kind)
    num_draws = 50_000
    uniforms = jax.random.uniform(jax.random.key(7), (num_draws,))
    counts = np.bincount(draw(logits, uniforms), minlength=vocab_size)
    assert counts.size == vocab_size
    expected = num_draws * softmax(logits)
    # Chi-square needs enough in each cell: rare tokens share one.
    is_rare = expected < 10
    counts = np.append(counts[~is_rare], counts[is_rare].sum())
    expected = np.append(expected[~is_rare], expected[is_rare].sum())
    occupied = expected > 0
    result = stats.chisquare(counts[occupied], expected[occupied])
    assert result.pvalue > 1e-3

  @pytest.mark.parametrize("vocab_size", [5, 300, 1000])
  @pytest.mark.parametrize("kind", ["normal", "falling", "rising"])
  def test_evenly_spaced_numbers_give_even_counts(self, vocab_size, kind):
    # Inversion cuts [0, 1) into one interval a token, in order, so counts of
    # an even grid are exact up to one at each end of the interval.
    logits = distribution(vocab_size, kind)
    num_draws = 20_000
    uniforms = (np.arange(num_draws) + 0.5) / num_draws
    tokens = draw(logits, uniforms.astype(np.float32))
    assert np.all(np.diff(tokens) >= 0)
    counts = np.bincount(tokens, minlength=vocab_size)
    expected = num_draws * softmax(logits)
    assert np.max(np.abs(counts - expected)) < 1.1

  def test_rows_are_independent(self):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 4, 700)).astype(np.float32)
    uniforms = rng.random((3, 4), np.float32)
    together = sampling.sample(jnp.asarray(logits), jnp.asarray(uniforms))
    assert together.shape == (3, 4)
    assert together.dtype == jnp.int32
    for index in np.ndindex(3, 4):
      alone = draw(logits[index], uniforms[index][None])
      assert together[index] == alone[0]

  def test_a_shift_of_the_logits_changes_nothing(self):
    logits = np.round(distribution(300, "normal"))  # exact under the shift
    uniforms = np.random.default_rng(1).random(500, np.float32)
    np.testing.assert_array_equal(
      draw(logits, uniforms), draw(logits + 4096, uniforms)
    )

  def test_shapes_must_agree(self):
    with pytest.raises(AssertionError):
      sampling.sample(jnp.zeros((2, 5)), jnp.zeros(3))


def boundary_uniforms(logits):
  """Numbers within a few steps of where one token gives way to the next."""
  ends = np.cumsum(softmax(logits)).astype(np.float32)
  steps = np.arange(-4, 5, dtype=np.float32) * np.float32(2**-24)
  near = (ends[:, None] + steps).ravel()
  return np.clip(near, 0, TOP_UNIFORMS[0])


class TestSampleExcluded:
  @pytest.mark.parametrize("vocab_size", [2, 255, 256, 257, 300, 512, 1000])
  @pytest.mark.parametrize("position", ["first", "middle", "last"])
  def test_one_token_left(self, vocab_size, position):
    only = {"first": 0, "middle": vocab_size // 2, "last": vocab_size - 1}
    logits = np.full(vocab_size, -INF, np.float32)
    logits[only[position]] = 3.0
    uniforms = np.append(TOP_UNIFORMS, np.array([0.0, 0.5], np.float32))
    tokens = draw(logits, uniforms)
    np.testing.assert_array_equal(tokens, only[position])

  @pytest.mark.parametrize("vocab_size", [300, 1000])
  def test_ends_and_beginnings_excluded(self, vocab_size):
    logits = distribution(vocab_size, "normal")
    logits[:7] = logits[250:260] = logits[-20:] = -INF
    tokens = draw(logits, np.append(TOP_UNIFORMS, np.float32(0)))
    assert tokens[-1] == 7
    assert np.all(np.isfinite(logits[tokens]))

  @pytest.mark.parametrize("summation", ["sequential", "parallel"])
  def test_never_on_a_boundary(self, summation, monkeypatch):
    # A cumulative sum in parallel, as on an accelerator, is not monotone to
    # the last bit: between two equal ends it can leave a gap, or step back.
    if summation == "parallel":
      monkeypatch.setattr(jnp, "cumsum", _parallel_cumsum)
    # Traced anew, so that it does see the sum.
    sample = jax.jit(jax.vmap(lambda x, u: sampling.sample(x, u), (None, 0)))
    for seed in range(4):
      rng = np.random.default_rng(seed)
      logits = rng.normal(0, 2, 1000).astype(np.float32)
      logits[rng.random(1000) < 0.5] = -INF
      uniforms = boundary_uniforms(logits)
      tokens = np.asarray(sample(jnp.asarray(logits), jnp.asarray(uniforms)))
      assert tokens.max() < 1000
      assert np.all(np.isfinite(logits[tokens]))

  def test_parallel_sums_do_leave_gaps(self):
    # Without this the test above would prove nothing.
    rng = np.random.default_rng(0)
    lengths = rng.random(256, np.float32) * (rng.random(256) < 0.5)
    ends = np.asarray(jax.jit(_parallel_cumsum)(jnp.asarray(lengths)))
    assert np.any(np.diff(ends)[lengths[1:] == 0] != 0)

  def test_a_first_block_of_next_to_nothing(self):
    logits = np.full(600, -INF, np.float32)
    logits[3] = -95.0  # e⁻⁹⁵ is not a normal number in float32
    logits[500] = 0.0
    tokens = draw(logits, np.append(TOP_UNIFORMS, np.float32(0)))
    assert set(tokens.tolist()) <= {3, 500}
    assert tokens[0] == 500

  @pytest.mark.parametrize("scale", [1e4, 1e30])
  def test_extreme_logits(self, scale):
    logits = np.array([-scale, scale, 0.0, -scale], np.float32)
    tokens = draw(logits, np.append(TOP_UNIFORMS, np.float32(0)))
    np.testing.assert_array_equal(tokens, 1)


def _parallel_cumsum(x, axis=-1):
  return jax.lax.associative_scan(jnp.add, x, axis=axis % x.ndim)


class TestTruncate:
  # Probabilities .1 .4 .2 .3, so in order: 1 3 2 0
  LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))

  @pytest.mark.parametrize(
    ("top_k", "expected"),
    [
      (1, [0, 1, 0, 0]),
      (2, [0, 1, 0, 1]),
      (3, [0, 1, 1, 1]),
      (4, [1, 1, 1, 1]),
      (5, [1, 1, 1, 1]),
      (None, [1, 1, 1, 1]),
    ],
  )
  def test_top_k(self, top_k, expected):
    assert kept(self.LOGITS, top_k=top_k) == expected

  @pytest.mark.parametrize(
    ("top_p", "expected"),
    [
      (1e-9, [0, 1, 0, 0]),
      (0.39, [0, 1, 0, 0]),
      (0.41, [0, 1, 0, 1]),
      (0.69, [0, 1, 0, 1]),
      (0.71, [0, 1, 1, 1]),
      (0.89, [0, 1, 1, 1]),
      (0.91, [1, 1, 1, 1]),
      (1.0, [1, 1, 1, 1]),
      (None, [1, 1, 1, 1]),
    ],
  )
  def test_top_p(self, top_p, expected):
    assert kept(self.LOGITS, top_p=top_p) == expected

  def test_top_p_reached_exactly_needs_no_further_token(self):
    logits = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    assert kept(logits, top_p=0.5) == [1, 0, 0]

  @pytest.mark.parametrize(
    ("top_p", "expected"),
    [
      # Of the whole, .4 + .3 = .7 would fall short of .75 and take a third;
      # of what top-k = 2 kept they are 4/7 and 3/7.
      (0.75, [0, 1, 0, 1]),
      # 4/7 = .571 is enough for .55, though .4 is not.
      (0.55, [0, 1, 0, 0]),
      (0.58, [0, 1, 0, 1]),
    ],
  )
  def test_top_p_is_taken_after_top_k(self, top_p, expected):
    assert kept(self.LOGITS, top_k=2, top_p=top_p) == expected

  def test_ties_stay_together(self):
    logits = np.log(np.array([0.2, 0.3, 0.2, 0.3], np.float32))
    assert kept(logits, top_k=1) == [0, 1, 0, 1]
    assert kept(logits, top_k=3) == [1, 1, 1, 1]
    assert kept(logits, top_p=0.1) == [0, 1, 0, 1]
    assert kept(logits, top_p=0.65) == [1, 1, 1, 1]
    assert kept(np.zeros(6), top_k=2, top_p=0.1) == [1] * 6

  @pytest.mark.parametrize(
    "settings",
    [{"top_k": 3}, {"top_p": 0.9}, {"top_k": 2, "top_p": 0.9}, {"top_k": 9}],
  )
  def test_a_single_finite_logit_stays(self, settings):
    logits = [-INF, -INF, 2.0, -INF, -INF]
    assert kept(logits, **settings) == [0, 0, 1, 0, 0]

  def test_excluded_tokens_stay_excluded(self):
    logits = self.LOGITS.copy()
    logits[1] = -INF
    assert kept(logits, top_k=4) == [1, 0, 1, 1]
    assert kept(logits, top_p=0.9999999) == [1, 0, 1, 1]

  def test_rows_are_independent(self):
    rows = np.stack([self.LOGITS, self.LOGITS[::-1]])[:, None]
    assert kept(rows, top_k=3, top_p=0.7) == [[[0, 1, 0, 1]], [[1, 0, 1, 0]]]

  def test_order_of_the_vocabulary_does_not_matter(self):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 3, 50).astype(np.float32)  # many ties
    order = rng.permutation(50)
    settings = {"top_k": 20, "top_p": 0.8}
    straight = np.array(kept(logits, **settings))
    assert 0 < straight.sum() < 50
    assert kept(logits[order], **settings) == straight[order].tolist()

  @pytest.mark.parametrize(
    ("settings", "said"),
    [
      ({"top_k": 0}, "top_k=0 must be at least 1"),
      ({"top_k": 2.0}, "top_k=2.0 must be at least 1, a whole number"),
      ({"top_p": 0.0}, r"top_p=0.0 is outside \(0, 1\]"),
      ({"top_p": 1.5}, "top_p=1.5 is outside"),
    ],
    ids=str,
  )
  def test_unusable_settings(self, settings, said):
    with pytest.raises(ValueError, match=said):
      sampling.truncate(jnp.asarray(self.LOGITS), **settings)

  def test_top_k_does_not_sort_the_vocabulary(self):
    logits = jax.ShapeDtypeStruct((2, 3000), jnp.float32)
    run = jax.jit(lambda x: sampling.truncate(x, top_k=20))
    assert " sort(" not in run.lower(logits).compile().as_text()

  def test_no_setting_returns_the_logits(self):
    logits = jnp.asarray(self.LOGITS)
    np.testing.assert_array_equal(sampling.truncate(logits), logits)
