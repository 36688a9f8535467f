"""DistIL: exact by enumeration, by hand, and at padding.

The enumeration has V = 2 words and T = 3 tokens, so 8 completions. Student and
teacher are tables: two logits for each of the 7 prefixes shorter than T.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import objectives
from distil_jax.ops import (
  advantages,
  credit,
  fused_statistics,
  token_statistics,
)
from distil_jax.ops.divergences import Divergence
from tests import formulas, references

LENGTH = 3
EOS = 1


def prefix_of(tokens):
  """Row of the table for what has been written: (), 0, 1, 00, 01, 10, 11."""
  row = 0
  for token in tokens:
    row = 2 * row + 1 + token
  return row


def completions(stops):
  """All completions, padded; with `stops` a 1 ends the completion.

  Returns:
    ids, mask and prefix rows, `[N, 3]` each.
  """
  ended = []
  for ids in itertools.product(range(2), repeat=LENGTH):
    length = ids.index(EOS) + 1 if stops and EOS in ids else LENGTH
    ended.append(ids[:length])
  ids = np.zeros((len(set(ended)), LENGTH), np.int32)
  mask, prefixes = np.zeros_like(ids), np.zeros_like(ids)
  for row, tokens in enumerate(sorted(set(ended))):
    mask[row, : len(tokens)] = 1
    ids[row, : len(tokens)] = tokens
    prefixes[row, : len(tokens)] = [
      prefix_of(tokens[:t]) for t in range(len(tokens))
    ]
  return ids, mask, prefixes


def tables(seed):
  """Student and teacher, float64. Shape `[7, 2]` each."""
  rng = np.random.default_rng(seed)
  return rng.normal(0, 1.5, (7, 2)), rng.normal(0, 1.5, (7, 2))


def probability(student, tokens):
  """Of one completion under the student, differentiable."""
  chance = 1.0
  for t, token in enumerate(tokens):
    chance *= jax.nn.softmax(student[prefix_of(tokens[:t])])[token]
  return chance


def true_objective(student, teacher, stops, cost):
  """L(θ) = E_y Σ_t H_t, both factors differentiable; no batch, no mask."""
  total = 0.0
  ids, mask, _ = completions(stops)
  for row, length in zip(ids.tolist(), mask.sum(axis=1), strict=True):
    tokens = row[:length]
    summed = 0.0
    for t in range(length):
      prefix = prefix_of(tokens[:t])
      expert = jax.nn.softmax(teacher[prefix])
      ours = jax.nn.softmax(student[prefix])
      summed -= jnp.sum(expert * jnp.log(ours))
      if cost == "kl":
        summed += jnp.sum(expert * jnp.log(expert))
    total += probability(student, tokens) * summed
  return total


_objective = jax.jit(true_objective, static_argnums=(2, 3))
_gradient = jax.jit(jax.grad(true_objective), static_argnums=(2, 3))


def true_gradient(student, teacher, *, stops, cost="cross_entropy"):
  return np.asarray(_gradient(student, teacher, stops, cost))


def chances(student, ids, mask):
  """Probability of each completion, in NumPy. Shape `[N]`."""
  return np.array(
    [
      np.prod(
        [
          np.exp(formulas.log_softmax(student[prefix_of(row[:t])]))[row[t]]
          for t in range(length)
        ]
      )
      for row, length in zip(ids.tolist(), mask.sum(axis=1), strict=True)
    ]
  )


def surrogate(student, teacher, chance, stops, settings):
  """Expectation of the token losses of `distil`, over all completions.

  The chances are numbers, as the estimator sees samples and not how likely
  they were; `settings` are pairs of name and value.
  """
  ids, mask, prefixes = completions(stops)
  loss = references.distil(
    student[prefixes],
    teacher[prefixes],
    jnp.asarray(ids),
    jnp.asarray(mask),
    **({"normalize": False} | dict(settings)),
  )
  return jnp.sum(chance * jnp.sum(loss.token_losses, axis=1))


_estimate = jax.jit(jax.grad(surrogate), static_argnums=(3, 4))


def estimated_gradient(student, teacher, *, stops, **settings):
  ids, mask, _ = completions(stops)
  chance = chances(student, ids, mask)
  settings = tuple(settings.items())
  return np.asarray(_estimate(student, teacher, chance, stops, settings))


@pytest.fixture
def in_float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("stops", [False, True], ids=["full", "ragged"])
class TestExactEnumeration:
  def test_the_enumeration_is_complete(self, stops):
    student, _ = tables(seed=0)
    ids, mask, _ = completions(stops)
    assert len(ids) == (4 if stops else 8)
    assert chances(student, ids, mask).sum() == pytest.approx(1, abs=1e-14)

  def test_the_true_gradient_is_that_of_finite_differences(self, stops):
    student, teacher = tables(seed=1)
    expected = formulas.numerical_gradient(
      lambda x: _objective(x, teacher, stops, "cross_entropy"), student
    )
    actual = true_gradient(student, teacher, stops=stops)
    np.testing.assert_allclose(actual, expected, atol=1e-8)

  @pytest.mark.parametrize("cost", ["cross_entropy", "kl"])
  @pytest.mark.parametrize("seed", [0, 1, 2])
  def test_expected_gradient_is_exact(self, stops, cost, seed):
    student, teacher = tables(seed)
    actual = estimated_gradient(student, teacher, stops=stops, cost=cost)
    expected = true_gradient(student, teacher, stops=stops, cost=cost)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)

  def test_the_two_costs_have_different_gradients(self, stops):
    student, teacher = tables(seed=0)
    of_cross_entropy = true_gradient(student, teacher, stops=stops)
    of_kl = true_gradient(student, teacher, stops=stops, cost="kl")
    assert np.max(np.abs(of_cross_entropy - of_kl)) > 1e-2

  @pytest.mark.parametrize(
    "settings",
    [
      {"future_weight": 0.0},
      {"future_weight": 0.5},
      {"future_weight": -1.0},
      {"normalize": True},
      {"discount": 0.5},
      # None of the credit is for a last token anyway: without a baseline
      # terminal-neutral credit is exact, so it is not in this list.
    ],
    ids=str,
  )
  def test_other_settings_are_not_exact(self, stops, settings):
    student, teacher = tables(seed=0)
    actual = estimated_gradient(student, teacher, stops=stops, **settings)
    expected = true_gradient(student, teacher, stops=stops)
    assert np.max(np.abs(actual - expected)) > 1e-2

  def test_any_baseline_of_the_prefix_leaves_it_unchanged(self, stops):
    student, teacher = tables(seed=3)
    ids, mask, prefixes = completions(stops)
    chance = chances(student, ids, mask)
    baseline = np.random.default_rng(4).normal(0, 5, 7)[prefixes]

    def surrogate(student, baseline):
      statistics = token_statistics.from_logits(
        student[prefixes], teacher[prefixes], jnp.asarray(ids)
      )
      costs = objectives.token_costs(statistics, mask, cost="cross_entropy")
      scores, _ = references.score_weights(costs, mask, normalize=False)
      losses = objectives.feedback_losses(statistics, mask, scores - baseline)
      return jnp.sum(chance[:, None] * mask * losses)

    gradient = jax.jit(jax.grad(surrogate))
    teacher = jnp.asarray(teacher)
    expected = true_gradient(student, teacher, stops=stops)
    actual = gradient(jnp.asarray(student), baseline)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    # One that looks at the token itself does change it.
    biased = gradient(jnp.asarray(student), baseline * ids)
    assert np.max(np.abs(biased - expected)) > 1e-2

  def test_leave_one_out_leaves_it_unchanged(self, stops):
    student, teacher = tables(seed=5)
    ids, mask, prefixes = completions(stops)
    chance = chances(student, ids, mask)
    # All pairs of independent samples, the two of a group in a row.
    num = len(ids)
    pairs = np.array(list(itertools.product(range(num), repeat=2)))
    members = pairs.ravel()
    pair_chance = np.repeat(chance[pairs].prod(axis=1), 2)
    assert members.size == 2 * num**2

    def surrogate(student, baseline):
      loss = references.distil(
        student[prefixes[members]],
        jnp.asarray(teacher)[prefixes[members]],
        jnp.asarray(ids[members]),
        jnp.asarray(mask[members]),
        normalize=False,
        baseline=baseline,
        group_size=2,
      )
      mean = jnp.sum(pair_chance * jnp.sum(loss.token_losses, axis=1)) / 2
      return mean, loss.token_losses

    gradient = jax.jit(
      jax.grad(surrogate, has_aux=True), static_argnames="baseline"
    )
    student = jnp.asarray(student)
    expected = true_gradient(student, teacher, stops=stops)
    actual, losses = gradient(student, baseline="leave_one_out")
    plain, plain_losses = gradient(student, baseline=None)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain, expected, rtol=0, atol=1e-12)
    # The baseline was there: single samples differ, only their mean does not.
    assert np.max(np.abs(losses - plain_losses)) > 0.1


@pytest.mark.usefixtures("in_float64")
class TestOtherEstimatorsAreExact:
  """As above, with completions that stop, and the average written down."""

  def setup_method(self):
    self.student, self.teacher = tables(seed=6)
    self.ids, self.mask, self.prefixes = completions(stops=True)
    self.chance = chances(self.student, self.ids, self.mask)
    self.lengths = self.mask.sum(axis=1)

  def estimate(self, objective, members=None, chance=None, **settings):
    """Expected gradient; `members` are drawn together, with that chance."""
    members = np.arange(len(self.ids)) if members is None else members
    chance = self.chance if chance is None else chance
    prefixes = self.prefixes[members]

    @jax.jit
    @jax.grad
    def gradient(student):
      loss = objective(
        student[prefixes],
        jnp.asarray(self.teacher)[prefixes],
        jnp.asarray(self.ids[members]),
        jnp.asarray(self.mask[members]),
        normalize=False,
        **settings,
      )
      return jnp.sum(chance * jnp.sum(loss.token_losses, axis=1))

    return np.asarray(gradient(jnp.asarray(self.student)))

  def gradient_of_mean(self, values):
    """∇ Σ_y π_θ(y) · value of y, the values held fixed."""

    @jax.jit
    @jax.grad
    def gradient(student):
      rows = zip(self.ids.tolist(), self.lengths, values, strict=True)
      return sum(
        value * probability(student, tokens[:length])
        for tokens, length, value in rows
      )

    return np.asarray(gradient(jnp.asarray(self.student)))

  @pytest.mark.parametrize(
    ("cost", "local_cost", "is_exact"),
    [
      # The teacher's entropy has no gradient, so the local part may leave it
      # in or out.
      ("cross_entropy", "forward_kl", True),
      ("kl", "forward_cross_entropy", True),
      ("kl", "reverse_kl", False),
    ],
  )
  def test_local_cost_apart_from_what_follows(self, cost, local_cost, is_exact):
    actual = self.estimate(references.distil, cost=cost, local_cost=local_cost)
    expected = true_gradient(self.student, self.teacher, stops=True, cost=cost)
    error = np.max(np.abs(actual - expected))
    assert error < 1e-12 if is_exact else error > 1e-2

  def test_minillm_is_the_kl_of_whole_completions(self):
    # KL between the distributions of completions, from their chances alone.
    expert = chances(self.teacher, self.ids, self.mask)

    @jax.jit
    @jax.grad
    def gradient(student):
      total = 0.0
      for row, length, other in zip(
        self.ids.tolist(), self.lengths, expert, strict=True
      ):
        ours = probability(student, row[:length])
        total += ours * (jnp.log(ours) - np.log(other))
      return total

    np.testing.assert_allclose(
      self.estimate(references.minillm),
      gradient(jnp.asarray(self.student)),
      rtol=0,
      atol=1e-12,
    )

  def test_the_reward_part_is_the_policy_gradient(self):
    # No feedback at all: failure weights of 0, or no teacher signal.
    rewards = np.array([0.3, 1.0, -0.4, 0.6])
    expected = -0.7 * self.gradient_of_mean(rewards)
    assert np.max(np.abs(expected)) > 1e-2
    for no_feedback in ("failure_weights", "sample_mask"):
      actual = self.estimate(
        references.distil,
        advantages=rewards,
        reward_weight=0.7,
        **{no_feedback: np.zeros(4)},
      )
      np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)

  def test_reward_and_feedback_add_up(self):
    rewards = np.array([0.3, 1.0, -0.4, 0.6])
    actual = self.estimate(
      references.distil, advantages=rewards, reward_weight=0.7
    )
    expected = true_gradient(self.student, self.teacher, stops=True)
    expected = expected - 0.7 * self.gradient_of_mean(rewards)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)

  def test_failure_weights_scale_a_problem(self):
    # A member is weighted by the others' failures, of which it knows nothing:
    # the gradient is that of the problem times its failure rate.
    num = len(self.ids)
    rewards = np.array([0.3, 1.0, 0.0, 0.6])
    pairs = np.array(list(itertools.product(range(num), repeat=2)))
    members = pairs.ravel()
    actual = self.estimate(
      references.distil,
      members,
      np.repeat(self.chance[pairs].prod(axis=1), 2) / 2,
      failure_weights=advantages.failure_weights(
        jnp.asarray(rewards[members]), group_size=2
      ),
      baseline="leave_one_out",
      group_size=2,
    )
    failures = 1 - np.sum(self.chance * rewards)
    expected = true_gradient(self.student, self.teacher, stops=True)
    np.testing.assert_allclose(actual, failures * expected, rtol=0, atol=1e-12)

  def test_differential_costs_pay_for_length(self):
    # Every token is given ρ back: the objective is E Σ H less ρ E length. The
    # first token is always there, and its own ρ is no one's future.
    actual = self.estimate(references.distil, average_cost=0.8)
    expected = true_gradient(self.student, self.teacher, stops=True)
    expected = expected - 0.8 * self.gradient_of_mean(self.lengths)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)

  def test_a_teacher_that_is_only_sampled(self):
    # One word of the teacher at each of up to three tokens, all eight of them
    # with their chances, for each completion.
    words = np.array(list(itertools.product(range(2), repeat=LENGTH)))
    members = np.repeat(np.arange(len(self.ids)), len(words))
    candidates = np.tile(words, (len(self.ids), 1))[..., None]
    prefixes, mask = self.prefixes[members], self.mask[members]
    expert = np.exp([*map(formulas.log_softmax, self.teacher)])[prefixes]
    chance = self.chance[members] * np.prod(
      np.take_along_axis(expert, candidates, -1)[..., 0], axis=1
    )
    assert chance.sum() == pytest.approx(1)

    @jax.jit
    @jax.grad
    def gradient(student):
      lists = token_statistics.SparseTeacher(
        candidates, np.zeros(candidates.shape), "samples"
      )
      statistics = fused_statistics.compared_with_list(
        student[prefixes], jnp.eye(2), lists, self.ids[members], Divergence()
      ).statistics()
      costs = objectives.token_costs(statistics, mask, cost="cross_entropy")
      scores, _ = references.score_weights(costs, mask, normalize=False)
      losses = objectives.feedback_losses(statistics, mask, scores)
      return jnp.sum(chance[:, None] * losses)

    actual = gradient(jnp.asarray(self.student))
    expected = true_gradient(self.student, self.teacher, stops=True)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


LENGTHS = (5, 3, 1, 0, 4, 5)


def ragged(seed=0, vocab_size=4):
  """Logits, ids and a mask of sequences of `LENGTHS`."""
  rng = np.random.default_rng(seed)
  shape = (len(LENGTHS), max(LENGTHS), vocab_size)
  student, teacher = rng.normal(0, 2, shape), rng.normal(0, 2, shape)
  ids = rng.integers(0, vocab_size, shape[:2]).astype(np.int32)
  mask = (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.int32)
  return student, teacher, ids, mask


# ----------------------------------------------------- padding and the rest


@functools.partial(jax.jit, static_argnums=0)
def _distilled(settings, student, teacher, ids, mask, arrays):
  def value(student):
    loss = references.distil(
      student, teacher, ids, mask, **arrays, **dict(settings)
    )
    return loss.value, loss

  (_, loss), gradient = jax.value_and_grad(value, has_aux=True)(student)
  return loss, gradient


def value_and_gradient(student, teacher, ids, mask, **settings):
  """One program for all numbers in arrays, which is all that some change."""
  arrays = {k: x for k, x in settings.items() if isinstance(x, np.ndarray)}
  others = tuple((k, x) for k, x in settings.items() if k not in arrays)
  found = _distilled(
    others, student.astype(np.float32), teacher, ids, mask, arrays
  )
  return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
  "variant",
  [
    {},
    {
      "baseline": "leave_one_out",
      "group_size": 2,
      "terminal_neutral": True,
      "cost": "kl",
      "aggregation": "sequence_mean",
      "discount": 0.9,
      "top_k": 2,
    },
  ],
  ids=str,
)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_changes_nothing(garbage, variant):
  student, teacher, ids, mask = ragged()
  student, teacher = student.astype(np.float32), teacher.astype(np.float32)
  clean, clean_gradient = value_and_gradient(
    student, teacher, ids, mask, **variant
  )
  counts = mask[..., None].astype(bool)
  dirty, gradient = value_and_gradient(
    np.where(counts, student, np.float32(garbage)),
    np.where(counts, teacher, np.float32(garbage)),
    np.where(mask, ids, 10**6),
    mask,
    **variant,
  )
  jax.tree.map(np.testing.assert_array_equal, dirty, clean)
  np.testing.assert_array_equal(gradient, clean_gradient)
  np.testing.assert_array_equal(np.where(counts, 0.0, gradient), 0.0)
  assert np.all(np.isfinite(gradient))
  assert np.any(gradient != 0)


@pytest.mark.parametrize(
  "objective",
  [
    functools.partial(references.sdpo, alpha=0.3, top_k=2),
    functools.partial(
      references.opsd, beta=0.6, top_k=2, token_clip=0.05, temperature=1.2
    ),
    references.minillm,
  ],
  ids=["sdpo", "opsd", "minillm"],
)
def test_padding_changes_nothing_in_the_others(objective):
  student, teacher, ids, mask = ragged()

  @jax.jit
  def run(student, teacher, ids):
    def value(student):
      loss = objective(student, teacher, ids, mask)
      return loss.value, loss

    return jax.grad(value, has_aux=True)(student)

  clean = run(student, teacher, ids)
  counts = mask[..., None].astype(bool)
  for garbage in (np.nan, np.inf, -np.inf):
    dirty = run(
      np.where(counts, student, garbage),
      np.where(counts, teacher, garbage),
      np.where(mask, ids, -7),
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
  assert np.all(np.isfinite(clean[0]))


def test_padding_of_old_log_probs_changes_nothing():
  student, teacher, ids, mask = ragged()
  old = np.random.default_rng(2).normal(-1, 0.3, mask.shape)

  @jax.jit
  def run(old):
    def value(student):
      loss = references.distil(
        student, teacher, ids, mask, old_log_probs=old, importance_clip=2.0
      )
      return loss.value, loss

    return jax.grad(value, has_aux=True)(student)

  clean = run(old)
  for garbage in (np.nan, np.inf, -np.inf):
    dirty = run(np.where(mask, old, garbage))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
  assert np.all(np.isfinite(clean[0]))


def test_garbage_that_counts_is_not_hidden():
  student, teacher, ids, mask = ragged()
  for broken in (student, teacher):
    kept = broken[0, 0, 0]
    broken[0, 0, 0] = np.nan
    loss, _ = value_and_gradient(student, teacher, ids, mask)
    assert np.isnan(loss.value)
    broken[0, 0, 0] = kept


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_without_future_it_is_the_local_loss(aggregation):
  student, teacher, ids, mask = ragged(seed=1)
  loss, gradient = value_and_gradient(
    student, teacher, ids, mask, future_weight=0.0, aggregation=aggregation
  )

  def local(student):
    labels = jax.nn.softmax(jnp.asarray(teacher, jnp.float32))
    costs = -jnp.sum(labels * jax.nn.log_softmax(student), axis=-1)
    sums = jnp.sum(mask * costs, axis=1)
    if aggregation == "token_mean":
      return jnp.sum(sums) / sum(LENGTHS)
    return jnp.mean(sums / np.maximum(LENGTHS, 1))

  expected, expected_gradient = jax.jit(jax.value_and_grad(local))(
    student.astype(np.float32)
  )
  np.testing.assert_allclose(loss.value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, atol=1e-7)
  # With future credit it is not.
  other, _ = value_and_gradient(
    student, teacher, ids, mask, aggregation=aggregation
  )
  assert abs(other.value - loss.value) > 1e-2


class TestSampleMask:
  def test_masked_sequences_have_no_say(self):
    student, teacher, ids, mask = ragged()
    keep = np.array([1, 0, 1, 1, 0, 1], np.int32)
    masked, gradient = value_and_gradient(
      student, teacher, ids, mask, sample_mask=keep
    )
    chosen = keep.astype(bool)
    alone, alone_gradient = value_and_gradient(
      student[chosen], teacher[chosen], ids[chosen], mask[chosen]
    )
    np.testing.assert_allclose(masked.value, alone.value, rtol=1e-6)
    np.testing.assert_allclose(gradient[chosen], alone_gradient, atol=1e-7)
    np.testing.assert_array_equal(gradient[~chosen], 0.0)

  @pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
  def test_no_signal_at_all(self, aggregation):
    student, teacher, ids, mask = ragged()
    loss, gradient = value_and_gradient(
      student,
      teacher,
      ids,
      mask,
      sample_mask=np.zeros(len(LENGTHS), np.int32),
      aggregation=aggregation,
    )
    assert loss.value == 0
    np.testing.assert_array_equal(gradient, 0.0)

  @pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
  def test_with_rewards_every_sequence_counts(self, aggregation):
    # The second sequence has no teacher signal; it learns −A log π alone, and
    # its tokens are in the average.
    student, teacher, ids, mask = ragged()
    keep = np.array([1, 0, 1, 1, 1, 1], np.int32)
    rewarded = np.arange(6.0) - 2
    settings = {"sample_mask": keep, "aggregation": aggregation}
    loss, gradient = value_and_gradient(
      student,
      teacher,
      ids,
      mask,
      advantages=rewarded,
      reward_weight=0.5,
      **settings,
    )
    np.testing.assert_allclose(
      loss.token_losses[1], 0.5 * loss.log_probs[1], rtol=1e-6
    )
    totals = np.sum(loss.token_losses, axis=1)
    expected = totals.sum() / sum(LENGTHS)
    if aggregation == "sequence_mean":
      expected = np.mean(totals / np.maximum(LENGTHS, 1))
    np.testing.assert_allclose(loss.value, expected, rtol=1e-5)
    assert np.any(gradient[1] != 0)
    # A weight of 0 is as if there were no rewards.
    none, _ = value_and_gradient(student, teacher, ids, mask, **settings)
    zero, _ = value_and_gradient(
      student, teacher, ids, mask, advantages=rewarded, **settings
    )
    np.testing.assert_array_equal(zero.value, none.value)
    np.testing.assert_array_equal(zero.token_losses[1], 0.0)

  def test_rewards_do_not_touch_the_credit(self):
    # Terminal-neutral credit leaves the last token its reward.
    student, teacher, ids, mask = ragged()
    settings = {"baseline": "batch_mean", "terminal_neutral": True}
    plain, _ = value_and_gradient(student, teacher, ids, mask, **settings)
    both, _ = value_and_gradient(
      student,
      teacher,
      ids,
      mask,
      advantages=np.ones(6),
      reward_weight=2.0,
      **settings,
    )
    np.testing.assert_allclose(
      both.token_losses - plain.token_losses,
      -2 * plain.log_probs,
      rtol=1e-4,
      atol=1e-5,
    )


class TestByHand:
  # Two words; the student is undecided everywhere, so each cross-entropy is
  # ln 2 and so is each −log π. Lengths 3 and 1. Normalised future costs are
  # ln 2 wherever a token follows: losses ln 2 − ln² 2, twice, then ln 2;
  # and ln 2 for the one of the second sequence.
  STUDENT = np.zeros((2, 3, 2), np.float32)
  TEACHER = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
  IDS = np.array([[0, 1, 1], [1, 0, 0]], np.int32)
  MASK = np.array([[1, 1, 1], [1, 0, 0]], np.int32)
  LN2 = np.log(2)

  def loss(self, **settings):
    return references.distil(
      self.STUDENT, self.TEACHER, self.IDS, self.MASK, **settings
    )

  def test_tokens(self):
    loss = self.loss()
    ln2 = self.LN2
    early = ln2 - ln2**2
    np.testing.assert_allclose(
      loss.token_losses, [[early, early, ln2], [ln2, 0, 0]], rtol=1e-6
    )
    np.testing.assert_allclose(loss.costs, ln2 * self.MASK, rtol=1e-6)
    np.testing.assert_allclose(loss.log_probs, -ln2 * self.MASK, rtol=1e-6)
    np.testing.assert_allclose(
      loss.future_costs, [[ln2, ln2, 0], [0, 0, 0]], rtol=1e-6
    )

  def test_plain_sum(self):
    loss = self.loss(normalize=False)
    np.testing.assert_allclose(
      loss.future_costs, [[2 * self.LN2, self.LN2, 0], [0, 0, 0]], rtol=1e-6
    )

  def test_token_mean(self):
    # (3 early and last + 1) / 4 tokens = (4 ln 2 − 2 ln² 2) / 4
    expected = self.LN2 - self.LN2**2 / 2
    np.testing.assert_allclose(self.loss().value, expected, rtol=1e-6)

  def test_sequence_mean(self):
    # ((3 ln 2 − 2 ln² 2) / 3 + ln 2) / 2
    expected = self.LN2 - self.LN2**2 / 3
    loss = self.loss(aggregation="sequence_mean")
    np.testing.assert_allclose(loss.value, expected, rtol=1e-6)

  def test_sequence_without_signal(self):
    # token_mean leaves it out; sequence_mean counts it as 0.
    keep = np.array([0, 1], np.int32)
    np.testing.assert_allclose(
      self.loss(sample_mask=keep).value, self.LN2, rtol=1e-6
    )
    np.testing.assert_allclose(
      self.loss(sample_mask=keep, aggregation="sequence_mean").value,
      self.LN2 / 2,
      rtol=1e-6,
    )


class TestScoreWeights:
  COSTS = np.array([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 7.0, 0.0]], np.float32)
  MASK = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], np.int32)

  def weights(self, **settings):
    scores, later = references.score_weights(
      self.COSTS, self.MASK, normalize=False, **settings
    )
    np.testing.assert_array_equal(
      later, [[14.0, 12.0, 8.0, 0.0], [12.0, 7.0, 0.0, 0.0]]
    )
    return scores

  def test_future_weight(self):
    np.testing.assert_array_equal(
      self.weights(future_weight=0.5), [[7, 6, 4, 0], [6, 3.5, 0, 0]]
    )

  def test_leave_one_out(self):
    # At t = 2 the second member stands at its last token, alive with R = 0,
    # and is charged the first one's R = 8; at t = 3 the first is alone.
    np.testing.assert_array_equal(
      self.weights(baseline="leave_one_out", group_size=2),
      [[2, 5, 8, 0], [-2, -5, -8, 0]],
    )

  def test_terminal_neutral(self):
    # The second member's last token, t = 2, has weight 0 and is no baseline
    # for the first, which has none left there.
    np.testing.assert_array_equal(
      self.weights(
        baseline="leave_one_out", group_size=2, terminal_neutral=True
      ),
      [[2, 5, 8, 0], [-2, -5, 0, 0]],
    )

  def test_batch_mean(self):
    # (14+12)/2, (12+7)/2, (8+0)/2, and the first alone with its own 0
    np.testing.assert_array_equal(
      self.weights(baseline="batch_mean"),
      [[1, 2.5, 4, 0], [-1, -2.5, -4, 0]],
    )
    # Without last tokens the first is alone at t = 2, and its own mean.
    np.testing.assert_array_equal(
      self.weights(baseline="batch_mean", terminal_neutral=True),
      [[1, 2.5, 0, 0], [-1, -2.5, 0, 0]],
    )

  def test_average_cost(self):
    # Less 3 for each token to come.
    scores, later = references.score_weights(
      self.COSTS, self.MASK, normalize=False, average_cost=3.0
    )
    np.testing.assert_array_equal(later, [[5, 6, 5, 0], [6, 4, 0, 0]])
    np.testing.assert_array_equal(scores, later)

  def test_terminal_neutral_without_baseline(self):
    # Without a baseline the last token's weight is 0 already.
    np.testing.assert_array_equal(
      self.weights(terminal_neutral=True), self.weights()
    )

  def test_no_gradient_flows_into_the_weights(self):
    def total(costs):
      scores, later = references.score_weights(
        costs, self.MASK, baseline="leave_one_out", group_size=2
      )
      return jnp.sum(scores) + jnp.sum(later)

    gradient = jax.grad(total)(jnp.asarray(self.COSTS))
    np.testing.assert_array_equal(gradient, 0.0)

  def test_agrees_with_credit(self):
    scores, later = references.score_weights(
      self.COSTS, self.MASK, discount=0.7, future_weight=2.0
    )
    expected = credit.future_costs(self.COSTS, self.MASK, discount=0.7)
    np.testing.assert_array_equal(later, expected)
    np.testing.assert_array_equal(scores, 2 * expected)

  def test_unusable_settings(self):
    with pytest.raises(ValueError, match="needs group_size"):
      self.weights(baseline="leave_one_out")
    with pytest.raises(ValueError, match="baseline='mean' is neither"):
      self.weights(baseline="mean")
    with pytest.raises(ValueError, match=r"group_size=3 .* 2 sequences"):
      self.weights(baseline="leave_one_out", group_size=3)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"cost": "js"}, "cost='js' is neither"),
    ({"local_cost": "js"}, "local_cost='js' is none of"),
    ({"reward_weight": 1.0}, "reward_weight=1.0 needs advantages"),
    ({"importance_clip": -1.0}, "clip=-1.0 must be above 0"),
  ],
  ids=str,
)
def test_unusable_settings(settings, message):
  run = jax.jit(functools.partial(references.distil, **settings))
  student, teacher, ids, mask = ragged()
  with pytest.raises(ValueError, match=message):
    run(student, teacher, ids, mask, old_log_probs=np.zeros(mask.shape))


def test_the_chunked_path_equals_the_logits():
  """What training does, from hidden states, is what the reference says."""
  rng = np.random.default_rng(6)
  size, length, width, vocab_size = 4, 6, 5, 11
  hidden, teacher_hidden = rng.normal(size=(2, size, length, width))
  matrix, teacher_matrix = rng.normal(size=(2, width, vocab_size))
  ids = rng.integers(0, vocab_size, (size, length)).astype(np.int32)
  mask = (np.arange(length) < np.array([[6], [2], [4], [1]])).astype(np.int32)
  keep = np.array([1, 1, 0, 1], np.int32)
  old = rng.normal(-2, 0.5, (size, length)).astype(np.float32)
  rewards = rng.normal(size=size).astype(np.float32)
  failures = rng.uniform(size=size).astype(np.float32)
  credit_settings = {
    "future_weight": 4.0,
    "baseline": "leave_one_out",
    "group_size": 2,
    "terminal_neutral": True,
  }

  def dense(hidden, matrix):
    inputs = (hidden @ matrix, teacher_hidden @ teacher_matrix, ids, mask)
    return [
      references.distil(*inputs, **credit_settings).value,
      references.distil(
        *inputs,
        **credit_settings,
        cost="kl",
        local_cost="reverse_kl",
        top_k=4,
        failure_weights=failures,
        advantages=rewards,
        reward_weight=1.0,
        old_log_probs=old,
        importance_clip=2.0,
        sample_mask=keep,
      ).value,
      references.sdpo(*inputs, alpha=0.3, top_k=4, sample_mask=keep).value,
      references.opsd(*inputs, beta=0.6, token_clip=0.05).value,
      references.minillm(*inputs).value,
    ]

  def chunked(hidden, matrix):
    def statistics(**divergence):
      return references.token_statistics(
        hidden,
        matrix,
        jnp.asarray(teacher_hidden, jnp.float32),
        jnp.asarray(teacher_matrix, jnp.float32),
        ids,
        divergence=Divergence(**divergence),
        chunk_size=4,
      )

    published = statistics()
    weighted = statistics(kind="reverse_kl", top_k=4)
    learned = mask * keep[:, None]
    losses = [
      objectives.feedback_losses(
        published,
        mask,
        references.score_weights(
          objectives.token_costs(published, mask, cost="cross_entropy"),
          mask,
          **credit_settings,
        )[0],
      ),
      objectives.feedback_losses(
        weighted,
        mask,
        references.score_weights(
          objectives.token_costs(weighted, learned, cost="kl"),
          learned,
          **credit_settings,
        )[0],
        failure_weights=failures,
        advantages=rewards,
        reward_weight=1.0,
        teacher_mask=learned,
        importance=advantages.importance_weights(
          weighted.log_probs, old, mask, clip=2.0
        ),
      ),
      objectives.feedback_losses(
        statistics(kind="sdpo", weight=0.3, top_k=4), learned, None
      ),
      objectives.feedback_losses(
        statistics(kind="opsd", weight=0.6, token_clip=0.05), mask, None
      ),
    ]
    minillm = statistics(kind="reverse_kl")
    scores, _ = references.score_weights(
      objectives.sampled_reverse_kl(minillm, mask), mask
    )
    losses.append(objectives.feedback_losses(minillm, mask, scores))
    tokens = [np.sum(m) for m in (mask, mask, learned, mask, mask)]
    return [jnp.sum(x) / n for x, n in zip(losses, tokens, strict=True)]

  def run(losses_of):
    def total(hidden, matrix):
      losses = losses_of(hidden, matrix)
      # Weights that no two objectives share.
      return sum((1 + i) * x for i, x in enumerate(losses)), losses

    gradient = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    return gradient(jnp.asarray(hidden), jnp.asarray(matrix))

  actual = run(chunked)
  with jax.enable_x64(True):
    expected = run(dense)

  def close(x, y):
    assert np.max(np.abs(x - y)) < 1e-5 * np.max(np.abs(y))

  jax.tree.map(close, actual, expected)


def test_sft_by_hand():
  log_probs = np.array([[-1.0, -2.0, np.nan], [-4.0, np.inf, 7.0]], np.float32)
  mask = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
  np.testing.assert_array_equal(
    objectives.sft_losses(log_probs, mask), [[1, 2, 0], [4, 0, 0]]
  )
