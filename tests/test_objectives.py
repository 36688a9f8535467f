"""DistIL: exact by enumeration, in NumPy, by hand, and at padding.

The enumeration has V = 2 words and T = 3 tokens, so 8 completions. Student and
teacher are tables: two logits for each of the 7 prefixes shorter than T.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import objectives
from distil_jax.ops import credit, unembedding

LENGTH = 3
EOS = 1


def log_softmax(logits):
  shifted = logits - logits.max()
  return shifted - np.log(np.exp(shifted).sum())


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
          np.exp(log_softmax(student[prefix_of(row[:t])]))[row[t]]
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
  loss = objectives.distil(
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
    expected = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
      nudge = np.zeros_like(student)
      nudge[index] = 1e-5
      above = _objective(student + nudge, teacher, stops, "cross_entropy")
      below = _objective(student - nudge, teacher, stops, "cross_entropy")
      expected[index] = (above - below) / 2e-5
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
      statistics = unembedding.from_logits(
        student[prefixes], jax.nn.softmax(teacher)[prefixes], jnp.asarray(ids)
      )
      costs = objectives.token_costs(statistics, mask, cost="cross_entropy")
      scores, _ = objectives.score_weights(costs, mask, normalize=False)
      losses = objectives.distil_losses(statistics, mask, scores - baseline)
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
      loss = objectives.distil(
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


# ---------------------------------------------------------------- in NumPy


def reference(
  student, teacher, ids, lengths, sample_mask, settings, scores=None
):
  """The loss of section-by-section formulas, in float64 and loops.

  Args:
    scores: weights of log π held fixed, as under a stop-gradient.

  Returns:
    value, and the weights of log π as `{(b, t): weight}`.
  """
  costs, log_probs = {}, {}
  for b, length in enumerate(lengths):
    for t in range(length):
      ours = log_softmax(student[b, t])
      expert = log_softmax(teacher[b, t])
      costs[b, t] = -np.sum(np.exp(expert) * ours)
      if settings["cost"] == "kl":
        costs[b, t] += np.sum(np.exp(expert) * expert)
      log_probs[b, t] = ours[ids[b, t]]
  if scores is None:
    scores = reference_scores(costs, lengths, sample_mask, settings)
  losses = {at: costs[at] + scores[at] * log_probs[at] for at in costs}
  counted = [b for b, length in enumerate(lengths) if sample_mask[b] and length]
  if settings["aggregation"] == "token_mean":
    tokens = [at for at in losses if at[0] in counted]
    value = sum(losses[at] for at in tokens) / max(len(tokens), 1)
  else:
    means = [
      np.mean([losses[b, t] for t in range(lengths[b])]) for b in counted
    ]
    value = sum(means) / len(lengths)
  return value, scores


def reference_scores(costs, lengths, sample_mask, settings):
  """A sequence without signal gets no credit, and gives no baseline."""
  later = {}
  for b, t in costs:
    rest = range(t + 1, lengths[b])
    weights = [settings["discount"] ** (i - t - 1) for i in rest]
    total = sum(w * costs[b, i] for w, i in zip(weights, rest, strict=True))
    if settings["normalize"] and weights:
      total /= sum(weights)
    later[b, t] = total
  neutral = settings["terminal_neutral"]
  credited = [
    (b, t)
    for b, t in later
    if sample_mask[b] and not (neutral and t == lengths[b] - 1)
  ]
  scores = dict.fromkeys(later, 0.0)
  for b, t in credited:
    baseline = 0.0
    if settings["baseline"]:
      size = settings["group_size"]
      group = range(b // size * size, b // size * size + size)
      others = [later[j, t] for j in group if j != b and (j, t) in credited]
      baseline = np.mean(others) if others else 0.0
    scores[b, t] = settings["future_weight"] * (later[b, t] - baseline)
  return scores


DEFAULTS = {
  "future_weight": 1.0,
  "normalize": True,
  "discount": 1.0,
  "cost": "cross_entropy",
  "baseline": None,
  "group_size": None,
  "terminal_neutral": False,
  "aggregation": "token_mean",
}
VARIANTS = [
  {},
  {"future_weight": 0.0, "aggregation": "sequence_mean"},
  {"normalize": False, "future_weight": 0.7, "cost": "kl"},
  {"discount": 0.8, "normalize": False, "terminal_neutral": True},
  {"discount": 0.8, "aggregation": "sequence_mean", "future_weight": 4.0},
  {"baseline": "leave_one_out", "group_size": 3, "normalize": False},
  {
    "baseline": "leave_one_out",
    "group_size": 2,
    "terminal_neutral": True,
    "cost": "kl",
    "aggregation": "sequence_mean",
    "discount": 0.9,
  },
]
LENGTHS = (5, 3, 1, 0, 4, 5)
SAMPLE_MASK = np.array([1, 1, 1, 1, 0, 1], np.int32)


def ragged(seed=0, vocab_size=4):
  """Logits, ids and a mask of sequences of `LENGTHS`."""
  rng = np.random.default_rng(seed)
  shape = (len(LENGTHS), max(LENGTHS), vocab_size)
  student, teacher = rng.normal(0, 2, shape), rng.normal(0, 2, shape)
  ids = rng.integers(0, vocab_size, shape[:2]).astype(np.int32)
  mask = (np.arange(shape[1]) < np.array(LENGTHS)[:, None]).astype(np.int32)
  return student, teacher, ids, mask


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
class TestAgainstNumPy:
  def test_value(self, variant):
    student, teacher, ids, mask = ragged()
    settings = DEFAULTS | variant
    expected, _ = reference(
      student, teacher, ids, LENGTHS, SAMPLE_MASK, settings
    )
    loss = objectives.distil(
      jnp.asarray(student, jnp.float32),
      jnp.asarray(teacher, jnp.float32),
      ids,
      mask,
      sample_mask=SAMPLE_MASK,
      **settings,
    )
    assert loss.value.dtype == jnp.float32
    np.testing.assert_allclose(loss.value, expected, rtol=1e-5)

  def test_gradient(self, variant):
    student, teacher, ids, mask = ragged()
    settings = DEFAULTS | variant
    _, scores = reference(student, teacher, ids, LENGTHS, SAMPLE_MASK, settings)
    expected = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
      values = []
      for step in (1e-5, -1e-5):
        nudged = student.copy()
        nudged[index] += step
        value, _ = reference(
          nudged, teacher, ids, LENGTHS, SAMPLE_MASK, settings, scores
        )
        values.append(value)
      expected[index] = (values[0] - values[1]) / 2e-5

    def value(student, teacher):
      return objectives.distil(
        student, teacher, ids, mask, sample_mask=SAMPLE_MASK, **settings
      ).value

    with jax.enable_x64(True):
      gradient, to_teacher = jax.jit(jax.grad(value, (0, 1)))(
        jnp.asarray(student), jnp.asarray(teacher)
      )
      np.testing.assert_array_equal(to_teacher, 0.0)
    assert np.max(np.abs(expected)) > 1e-2
    # The weights of the average are float32.
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


# ----------------------------------------------------- padding and the rest


def value_and_gradient(student, teacher, ids, mask, **settings):
  def value(student):
    loss = objectives.distil(student, teacher, ids, mask, **settings)
    return loss.value, loss

  (_, loss), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(
    jnp.asarray(student, jnp.float32)
  )
  return loss, gradient


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[6]], ids=str)
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

  expected, expected_gradient = jax.value_and_grad(local)(
    jnp.asarray(student, jnp.float32)
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
    return objectives.distil(
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
    scores, later = objectives.score_weights(
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

  def test_terminal_neutral_without_baseline(self):
    # Without a baseline the last token's weight is 0 already.
    np.testing.assert_array_equal(
      self.weights(terminal_neutral=True), self.weights()
    )

  def test_no_gradient_flows_into_the_weights(self):
    def total(costs):
      scores, later = objectives.score_weights(
        costs, self.MASK, baseline="leave_one_out", group_size=2
      )
      return jnp.sum(scores) + jnp.sum(later)

    gradient = jax.grad(total)(jnp.asarray(self.COSTS))
    np.testing.assert_array_equal(gradient, 0.0)

  def test_agrees_with_credit(self):
    scores, later = objectives.score_weights(
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


def test_unknown_cost():
  student, teacher, ids, mask = ragged()
  with pytest.raises(ValueError, match="cost='js' is neither"):
    objectives.distil(
      jnp.asarray(student), jnp.asarray(teacher), ids, mask, cost="js"
    )


def test_distil_equals_the_chunked_path():
  """What training does, from hidden states, is what `distil` says."""
  rng = np.random.default_rng(6)
  size, length, width, vocab_size = 4, 6, 5, 11
  hidden, teacher_hidden = rng.normal(size=(2, size, length, width)).astype(
    np.float32
  )
  matrix, teacher_matrix = rng.normal(size=(2, width, vocab_size)).astype(
    np.float32
  )
  ids = rng.integers(0, vocab_size, (size, length)).astype(np.int32)
  lengths = np.array([6, 2, 4, 1])
  mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
  settings = {"baseline": "leave_one_out", "group_size": 2}

  def dense(hidden, matrix):
    loss = objectives.distil(
      hidden @ matrix,
      jnp.asarray(teacher_hidden @ teacher_matrix),
      ids,
      mask,
      **settings,
    )
    return loss.value

  def chunked(hidden, matrix):
    statistics = unembedding.token_statistics(
      hidden, matrix, teacher_hidden, teacher_matrix, ids, chunk_size=4
    )
    costs = objectives.token_costs(statistics, mask, cost="cross_entropy")
    scores, _ = objectives.score_weights(costs, mask, **settings)
    losses = objectives.distil_losses(statistics, mask, scores)
    return jnp.sum(losses) / np.sum(mask)

  expected = jax.jit(jax.value_and_grad(dense, (0, 1)))(hidden, matrix)
  actual = jax.jit(jax.value_and_grad(chunked, (0, 1)))(hidden, matrix)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
    actual,
    expected,
  )


def test_sft_by_hand():
  log_probs = np.array([[-1.0, -2.0, np.nan], [-4.0, np.inf, 7.0]], np.float32)
  mask = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
  np.testing.assert_array_equal(
    objectives.sft_losses(log_probs, mask), [[1, 2, 0], [4, 0, 0]]
  )
