"""Truncation by hand; sampling against the distribution that it is to have."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from distil_jax.models import sharding
from distil_jax.ops import token_sampling

INF = np.inf
# The largest number below 1 in float32, and the largest that
# `jax.random.uniform` gives.
TOP_UNIFORMS = np.array([1 - 2**-24, 1 - 2**-23], np.float32)

_draw = jax.jit(jax.vmap(token_sampling.sample, in_axes=(None, 0)))
_choose = jax.jit(token_sampling.choose)


def draw(logits, uniforms):
  """One token of the same logits for each uniform number."""
  return np.asarray(_draw(jnp.asarray(logits), jnp.asarray(uniforms)))


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
    num_draws = 20_000
    uniforms = np.random.default_rng(7).random(num_draws, np.float32)
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
    together = jax.jit(token_sampling.sample)(logits, uniforms)
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
      token_sampling.sample(jnp.zeros((2, 5)), jnp.zeros(3))


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
    sample = jax.jit(
      jax.vmap(lambda x, u: token_sampling.sample(x, u), (None, 0))
    )
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


def arrays_of(rows, **settings):
  """Settings for rows, each a number or an array."""
  values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
  dtypes = token_sampling.SamplingArrays(
    np.float32, np.int32, np.float32, np.float32
  )
  return token_sampling.SamplingArrays(
    **{
      name: np.full(rows, value, getattr(dtypes, name))
      for name, value in (values | settings).items()
    }
  )


def choose(logits, uniforms, **settings):
  uniforms = np.asarray(uniforms, np.float32)
  arrays = arrays_of(uniforms.shape, **settings)
  return jax.tree.map(np.asarray, _choose(logits, uniforms, arrays))


def drawn(logits, num_draws=500, **settings):
  """What a row gives at evenly spaced numbers: ids and both log-probs.

  A token with a probability above 1 / `num_draws` is among them.
  """
  uniforms = (np.arange(num_draws) + 0.5) / num_draws
  logits = np.asarray(logits, np.float32)
  return choose(np.tile(logits, (num_draws, 1)), uniforms, **settings)


def chosen(logits, **settings):
  """Which tokens are ever chosen; the others are left out."""
  ids, _, _ = drawn(logits, **settings)
  return [int(token in ids) for token in range(len(logits))]


def reference(logits, temperature, top_k, top_p, min_p):
  """The distribution of one row, by sorting, in float64."""
  logits = np.asarray(logits, np.float64)
  if temperature == 0:
    return np.eye(len(logits))[np.argmax(logits)]
  weights = np.exp((logits - logits.max()) / temperature)
  if 0 < top_k < len(logits):
    weights[logits < np.sort(logits)[-top_k]] = 0
  if top_p < 1:
    ordered = np.sort(weights)[::-1]
    before = np.cumsum(ordered) - ordered
    needed = ordered[before < top_p * weights.sum()]
    weights[weights < needed.min()] = 0
  weights[weights < min_p] = 0
  return weights / weights.sum()


class TestChooseByHand:
  # Probabilities .1 .4 .2 .3, so in order: 1 3 2 0
  LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))

  @pytest.mark.parametrize(
    ("settings", "expected"),
    [
      ({}, [1, 1, 1, 1]),
      ({"top_k": 1}, [0, 1, 0, 0]),
      ({"top_k": 2}, [0, 1, 0, 1]),
      ({"top_k": 3}, [0, 1, 1, 1]),
      ({"top_k": 4}, [1, 1, 1, 1]),
      ({"top_k": 9}, [1, 1, 1, 1]),
      ({"top_p": 1e-9}, [0, 1, 0, 0]),
      ({"top_p": 0.39}, [0, 1, 0, 0]),
      ({"top_p": 0.41}, [0, 1, 0, 1]),
      ({"top_p": 0.69}, [0, 1, 0, 1]),
      ({"top_p": 0.71}, [0, 1, 1, 1]),
      ({"top_p": 0.91}, [1, 1, 1, 1]),
      # Of the whole, .4 + .3 = .7 would fall short of .75 and take a third;
      # of what top-k = 2 kept they are 4/7 and 3/7.
      ({"top_k": 2, "top_p": 0.75}, [0, 1, 0, 1]),
      # 4/7 = .571 is enough for .55, though .4 is not.
      ({"top_k": 2, "top_p": 0.55}, [0, 1, 0, 0]),
      ({"top_k": 2, "top_p": 0.58}, [0, 1, 0, 1]),
      # As parts of .4: .25 1 .5 .75
      ({"min_p": 1.0}, [0, 1, 0, 0]),
      ({"min_p": 0.76}, [0, 1, 0, 0]),
      ({"min_p": 0.74}, [0, 1, 0, 1]),
      ({"min_p": 0.49}, [0, 1, 1, 1]),
      ({"min_p": 0.24}, [1, 1, 1, 1]),
      # The stricter of the two counts.
      ({"top_p": 0.41, "min_p": 0.49}, [0, 1, 0, 1]),
      ({"top_p": 0.71, "min_p": 0.74}, [0, 1, 0, 1]),
      ({"top_k": 3, "min_p": 0.1}, [0, 1, 1, 1]),
      # Squared, as parts of the largest: 1/16 1 4/16 9/16, of 30/16. The
      # first two hold 25/30 = .83 of it; as they are, .7.
      ({"temperature": 0.5, "top_p": 0.8}, [0, 1, 0, 1]),
      ({"temperature": 0.5, "top_p": 0.85}, [0, 1, 1, 1]),
      ({"temperature": 0.5, "min_p": 0.26}, [0, 1, 0, 1]),
      ({"temperature": 0.5, "min_p": 0.24}, [0, 1, 1, 1]),
      ({"temperature": 0.0}, [0, 1, 0, 0]),
      ({"temperature": 0.0, "top_k": 3, "min_p": 0.1}, [0, 1, 0, 0]),
    ],
    ids=str,
  )
  def test_what_is_kept(self, settings, expected):
    assert chosen(self.LOGITS, **settings) == expected

  def test_probabilities(self):
    # Of .4 and .3, squared, 16/25 and 9/25 remain.
    settings = {"temperature": 0.5, "top_k": 2}
    ids, log_probs, own = drawn(self.LOGITS, 2500, **settings)
    assert np.bincount(ids, minlength=4).tolist() == [0, 1600, 0, 900]
    np.testing.assert_allclose(
      np.exp(log_probs), np.where(ids == 1, 0.4, 0.3), rtol=1e-6
    )
    np.testing.assert_allclose(
      np.exp(own), np.where(ids == 1, 16 / 25, 9 / 25), rtol=1e-6
    )

  def test_top_p_reached_exactly_needs_no_further_token(self):
    assert chosen(np.log([0.5, 0.25, 0.25]), top_p=0.5) == [1, 0, 0]

  def test_ties_stay_together(self):
    logits = np.log(np.array([0.2, 0.3, 0.2, 0.3], np.float32))
    assert chosen(logits, top_k=1) == [0, 1, 0, 1]
    assert chosen(logits, top_k=3) == [1, 1, 1, 1]
    assert chosen(logits, top_p=0.1) == [0, 1, 0, 1]
    assert chosen(logits, top_p=0.65) == [1, 1, 1, 1]
    assert chosen(logits, min_p=1.0) == [0, 1, 0, 1]
    all_settings = {"top_k": 2, "top_p": 0.1, "min_p": 1.0}
    assert chosen(np.zeros(6), **all_settings) == [1] * 6
    # Zero has two signs and is one number.
    assert chosen([0.0, -0.0, -1.0], top_k=1) == [1, 1, 0]

  def test_greedy_takes_the_first_of_equals(self):
    logits = np.full((3, 700), -1.0, np.float32)
    logits[0, [300, 290, 650]] = logits[1, [0, 1]] = 2.0
    ids, log_probs, own = choose(logits, np.zeros(3), temperature=0.0)
    assert ids.tolist() == [290, 0, 0]
    assert own.tolist() == [0, 0, 0]
    expected = [
      np.log(softmax(row)[i]) for row, i in zip(logits, ids, strict=True)
    ]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-6)

  @pytest.mark.parametrize(
    "settings",
    [
      {"top_k": 3},
      {"top_p": 0.9},
      {"top_k": 2, "top_p": 0.9},
      {"min_p": 0.5},
      {"temperature": 0.0},
      {"temperature": 3.0},
      {},
    ],
    ids=str,
  )
  def test_a_single_finite_logit_stays(self, settings):
    ids, log_probs, own = drawn([-INF, -INF, 2.0, -INF, -INF], 50, **settings)
    assert set(ids.tolist()) == {2}
    np.testing.assert_array_equal(log_probs, 0)
    np.testing.assert_array_equal(own, 0)


SETTINGS = {
  "temperature": [0.0, 0.3, 0.7, 1.0, 1.0, 2.0],
  "top_k": [0, 0, 1, 2, 7, 40, 299, 300, 5000],
  "top_p": [1.0, 1.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999],
  "min_p": [0.0, 0.0, 0.001, 0.05, 0.3, 1.0],
}


def random_settings(rng, rows):
  return {name: rng.choice(x, rows) for name, x in SETTINGS.items()}


def random_logits(rng, kind, shape):
  logits = rng.normal(0, 3, shape)
  if kind == "ties":  # a few values, whose probabilities a float32 tells apart
    logits = np.round(logits)
  if kind == "excluded":
    logits[rng.random(shape) < 0.6] = -INF
    logits[..., 3] = 0.0
  if kind == "shifted":
    logits = np.round(logits, 1) * 2 - 1e4
  return logits.astype(np.float32)


@jax.jit
def _floor_of(logits, settings):
  blocks, _ = token_sampling._in_blocks(logits)
  peaks = jnp.max(blocks, -1)
  return token_sampling._floor(
    blocks,
    peaks,
    jnp.max(peaks, -1),
    jnp.ones(1),
    jnp.zeros(1, bool),
    settings,
  )


class TestChooseAgainstSorting:
  @pytest.mark.parametrize("vocab_size", [5, 64, 300, 512, 1001])
  @pytest.mark.parametrize("kind", ["normal", "ties", "excluded", "shifted"])
  def test_random_rows(self, vocab_size, kind):
    rng = np.random.default_rng(vocab_size)
    rows = 600
    logits = random_logits(rng, kind, (rows, vocab_size))
    settings = random_settings(rng, rows)
    uniforms = rng.random(rows, np.float32)
    ids, log_probs, own = choose(logits, uniforms, **settings)
    assert ids.dtype == np.int32
    for row in range(rows):
      of_row = {name: float(x[row]) for name, x in settings.items()}
      of_row["top_k"] = int(of_row["top_k"])
      # The row gets a float32.
      for name in ("temperature", "top_p", "min_p"):
        of_row[name] = float(np.float32(of_row[name]))
      expected = reference(logits[row], **of_row)
      # One token more or less would show in the probability of the chosen.
      assert expected[ids[row]] > 0, of_row
      assert np.exp(own[row]) == pytest.approx(expected[ids[row]], rel=2e-5)
      end = np.cumsum(expected)[ids[row]]
      assert end - expected[ids[row]] - 1e-5 <= uniforms[row] <= end + 1e-5 or (
        of_row["temperature"] == 0
      )
      policy = np.log(softmax(logits[row])[ids[row]])
      assert log_probs[row] == pytest.approx(policy, rel=1e-5, abs=1e-5)

  @pytest.mark.parametrize("top_k", [1, 2, 10, 999, 1000])
  def test_top_k_of_probabilities_that_underflow(self, top_k):
    # Weights are 0 from 104 below the largest on, and order is all there is.
    logits = np.random.default_rng(1).permutation(1000) * np.float32(-300)
    floor = _floor_of(logits[None], arrays_of(1, top_k=top_k))
    assert np.sum(logits >= np.asarray(floor)) == top_k

  def test_top_p_keeps_what_it_says_of_a_large_flat_vocabulary(self):
    # Sums of 151936 numbers of one size are where float32 loses most.
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 0.1, (4, 151936)).astype(np.float32)
    top_p = np.array([0.3, 0.9, 0.95, 1.0], np.float32)
    ids, _, own = choose(logits, rng.random(4), top_p=top_p)
    for row, token in enumerate(ids):
      expected = reference(logits[row], 1.0, 0, float(top_p[row]), 0.0)
      assert np.exp(own[row]) == pytest.approx(expected[token], rel=5e-6)


class TestChooseDistribution:
  @pytest.mark.parametrize(
    "settings",
    [
      {"temperature": 0.7},
      {"temperature": 1.5, "top_k": 40},
      {"top_p": 0.8},
      {"temperature": 1.2, "top_k": 100, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=str,
  )
  def test_chi_square(self, settings):
    logits = distribution(300, "normal")
    num_draws = 20_000
    uniforms = np.random.default_rng(3).random(num_draws, np.float32)
    ids, _, _ = choose(np.tile(logits, (num_draws, 1)), uniforms, **settings)
    settings = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0} | settings
    expected = num_draws * reference(logits, **settings)
    counts = np.bincount(ids, minlength=300)
    assert counts[expected == 0].sum() == 0
    is_rare = expected < 10
    counts = np.append(counts[~is_rare], counts[is_rare].sum())
    expected = np.append(expected[~is_rare], expected[is_rare].sum())
    occupied = expected > 0
    result = stats.chisquare(counts[occupied], expected[occupied])
    assert result.pvalue > 1e-3

  def test_without_settings_it_samples(self):
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (3, 4, 700)).astype(np.float32)
    uniforms = rng.random((3, 4), np.float32)
    ids, log_probs, own = choose(logits, uniforms)
    alone = jax.jit(token_sampling.sample)(logits, uniforms)
    np.testing.assert_array_equal(ids, alone)
    np.testing.assert_array_equal(log_probs, own)
    whole = _choose(logits, uniforms, token_sampling.SamplingArrays())
    np.testing.assert_array_equal(whole[0], ids)


class TestChooseRows:
  def test_other_rows_do_not_matter(self):
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 2, (24, 700)).astype(np.float32)
    uniforms = rng.random(24, np.float32)
    settings = random_settings(rng, 24)
    together = choose(logits, uniforms, **settings)
    for row in range(24):
      part = slice(row, row + 1)
      of_row = {name: x[part] for name, x in settings.items()}
      alone = choose(logits[part], uniforms[part], **of_row)
      assert alone[0] == together[0][part]
      for one, other in zip(alone[1:], together[1:], strict=True):
        np.testing.assert_allclose(one, other[part], rtol=1e-5, atol=1e-6)

  def test_settings_broadcast(self):
    rng = np.random.default_rng(6)
    logits = rng.normal(0, 2, (3, 4, 50)).astype(np.float32)
    uniforms = rng.random((3, 4), np.float32)
    top_k = np.array([1, 0, 5], np.int32)[:, None]
    short = _choose(
      logits, uniforms, token_sampling.SamplingArrays(top_k=top_k)
    )
    long = choose(logits, uniforms, top_k=np.tile(top_k, (1, 4)))
    np.testing.assert_array_equal(short[0], long[0])
    np.testing.assert_array_equal(short[0][0], np.argmax(logits[0], -1))

  def test_shapes_must_agree(self):
    with pytest.raises(AssertionError):
      token_sampling.choose(
        jnp.zeros((2, 5)), jnp.zeros(3), token_sampling.SamplingArrays()
      )

  @pytest.mark.parametrize("temperature", [0.0, 1e-44, 1e-38, 0.5, 1e30])
  @pytest.mark.parametrize("scale", [1e4, 1e30])
  def test_extreme_numbers(self, temperature, scale):
    logits = np.array([[-scale, scale, 0.0, -scale]] * 2, np.float32)
    settings = {"top_k": [0, 2], "top_p": [1.0, 0.9], "min_p": [0.0, 0.1]}
    ids, log_probs, own = choose(
      logits, TOP_UNIFORMS, temperature=temperature, **settings
    )
    if temperature < scale:
      np.testing.assert_array_equal(ids, 1)
      np.testing.assert_array_equal(log_probs, 0)
    assert np.all(own <= 0)
    assert np.all(np.isfinite(own))

  @pytest.mark.parametrize("value", [np.nan, -INF])
  def test_nothing_to_choose_from_is_still_a_token(self, value):
    logits = np.zeros((4, 301), np.float32)
    logits[:2] = value
    logits[2, 7] = value
    settings = {"top_k": [0, 3, 3, 3], "top_p": [1.0, 0.5, 0.5, 0.5]}
    for temperature in (0.0, 1.0):
      ids, _, _ = choose(
        logits, [0.0, 0.9, 0.5, 0.5], temperature=temperature, **settings
      )
      assert np.all((ids >= 0) & (ids < 301))
      assert 0 <= ids[3] < 301


class TestChooseProgram:
  def test_compiles_once(self):
    run = jax.jit(lambda *arguments: token_sampling.choose(*arguments))
    rng = np.random.default_rng(7)
    for _ in range(3):
      settings = random_settings(rng, 4)
      run(np.zeros((4, 300), np.float32), np.zeros(4), arrays_of(4, **settings))
    assert run._cache_size() == 1

  def test_sorts_nothing(self):
    arguments = jax.eval_shape(
      lambda: (jnp.zeros((4, 3000)), jnp.zeros(4), arrays_of(4))
    )
    traced = jax.jit(token_sampling.choose).trace(*arguments)
    assert not re.search(r"\b(sort|top_k|random_bits)\[", str(traced.jaxpr))
    compiled = traced.lower().compile().as_text()
    assert not re.search(r" sort\(|TopK", compiled)

  @pytest.mark.parametrize("vocab_size", [1024, 1000, 2 * 4 * 37, 301])
  @pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2), (1, 2, 4)])
  def test_a_mesh_changes_nothing(self, sizes, vocab_size):
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 3, (8, 3, vocab_size)).astype(np.float32)
    uniforms = rng.random((8, 3), np.float32)
    settings = random_settings(rng, (8, 3))
    expected = choose(logits, uniforms, **settings)
    mesh = sharding.make_mesh(*sizes)
    with jax.set_mesh(mesh):
      num_shards = sharding.num_shards("vocab")
      is_cut = vocab_size % num_shards == 0
      place = functools.partial(sharding.sharding, mesh, "batch", None)
      arguments = jax.device_put(
        (logits, uniforms, arrays_of((8, 3), **settings)),
        (place("vocab" if is_cut else None), place(), place()),
      )
      run = (
        jax.jit(
          functools.partial(token_sampling.choose, num_vocab_shards=num_shards)
        )
        .lower(*arguments)
        .compile()
      )
      found = run(*arguments)
      compiled = run.as_text()
    np.testing.assert_array_equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)
    # Exchanged are numbers of a row, of a block or of one block's tokens.
    moved = re.findall(
      r"= (.*) (?:all-gather|all-to-all|collective-permute)\(", compiled
    )
    shapes = [
      list(map(int, dims.split(",")))
      for line in moved
      for dims in re.findall(r"\[([\d,]+)\]", line)
    ]
    assert bool(moved) == is_cut
    assert all(np.prod(shape) <= 8 * 3 * 16 for shape in shapes), moved
