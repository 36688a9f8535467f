"""Every objective against loops over `formulas`, and by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import formulas, references

LENGTHS = (5, 3, 1, 0, 4, 5)
SIZE, LENGTH, VOCAB_SIZE = len(LENGTHS), max(LENGTHS), 5
SAMPLE_MASK = np.array([1, 1, 1, 1, 0, 1], np.int32)
MASK = (np.arange(LENGTH) < np.array(LENGTHS)[:, None]).astype(np.int32)
TOKENS = [(b, t) for b in range(SIZE) for t in range(LENGTHS[b])]

_rng = np.random.default_rng(0)
STUDENT, TEACHER = _rng.normal(0, 2, (2, SIZE, LENGTH, VOCAB_SIZE))
IDS = _rng.integers(0, VOCAB_SIZE, (SIZE, LENGTH)).astype(np.int32)
LOG_PROBS = np.array(
  [
    [formulas.log_softmax(STUDENT[b, t])[IDS[b, t]] for t in range(LENGTH)]
    for b in range(SIZE)
  ]
)
OLD_LOG_PROBS = LOG_PROBS + _rng.normal(0, 1, LOG_PROBS.shape)
# One ratio past the limit of the log-ratio.
OLD_LOG_PROBS[0, 1] = LOG_PROBS[0, 1] - 30
ADVANTAGES = _rng.normal(0, 1, SIZE)
FAILURE_WEIGHTS = _rng.uniform(0, 1, SIZE)

DISTIL = {
  "top_k": None,
  "top_k_of": "student",
  "tail": True,
  "temperature": 1.0,
  "future_weight": 1.0,
  "normalize": True,
  "discount": 1.0,
  "cost": "cross_entropy",
  "local_cost": None,
  "baseline": None,
  "group_size": None,
  "terminal_neutral": False,
  "average_cost": None,
  "advantages": None,
  "reward_weight": 0.0,
  "failure_weights": None,
  "old_log_probs": None,
  "importance_clip": None,
  "sample_mask": SAMPLE_MASK,
  "aggregation": "token_mean",
}
NAMED = {
  "published": {},
  "local": {"future_weight": 0.0, "aggregation": "sequence_mean"},
  "kl": {"normalize": False, "future_weight": 0.7, "cost": "kl"},
  "terminal_neutral": {
    "discount": 0.8,
    "normalize": False,
    "terminal_neutral": True,
    "sample_mask": None,
  },
  "discounted": {
    "discount": 0.8,
    "aggregation": "sequence_mean",
    "future_weight": 4.0,
  },
  "leave_one_out": {
    "baseline": "leave_one_out",
    "group_size": 3,
    "normalize": False,
  },
  "batch_mean": {
    "baseline": "batch_mean",
    "terminal_neutral": True,
    "discount": 0.9,
    "local_cost": "forward_kl",
  },
  "top_k": {"top_k": 2, "cost": "kl", "normalize": False},
  "renormalised": {"top_k": 3, "top_k_of": "teacher", "tail": False},
  # As published for hard mathematics.
  "temperature": {
    "top_k": 3,
    "top_k_of": "teacher",
    "tail": False,
    "temperature": 0.7,
  },
  "differential": {"average_cost": 0.9, "baseline": "batch_mean", "cost": "kl"},
  "off_policy": {
    "old_log_probs": OLD_LOG_PROBS,
    "importance_clip": 2.0,
    "failure_weights": FAILURE_WEIGHTS,
  },
  "unclipped": {
    "old_log_probs": OLD_LOG_PROBS,
    "advantages": ADVANTAGES,
    "reward_weight": 0.0,
  },
  "failure_weighted": {
    "local_cost": "reverse_kl",
    "cost": "kl",
    "baseline": "leave_one_out",
    "group_size": 2,
    "terminal_neutral": True,
    "future_weight": 4.0,
    "advantages": ADVANTAGES,
    "reward_weight": 1.0,
    "failure_weights": FAILURE_WEIGHTS,
  },
  "all_at_once": {
    "top_k": 2,
    "local_cost": "reverse_kl",
    "baseline": "leave_one_out",
    "group_size": 3,
    "advantages": ADVANTAGES,
    "reward_weight": 0.7,
    "failure_weights": FAILURE_WEIGHTS,
    "old_log_probs": OLD_LOG_PROBS,
    "importance_clip": 2.0,
    "aggregation": "sequence_mean",
  },
}


def token_loss(student, at, *, parts):
  """ℓ at one token; everything under a stop-gradient is a number in `parts`."""
  sides = formulas.support(student, TEACHER[at], **parts["support"])
  local = formulas.divergence(*sides, **parts["divergence"])
  log_prob = formulas.log_softmax(student)[IDS[at]]
  return parts["importance"][at] * (
    parts["local_weight"][at] * local + parts["weights"][at] * log_prob
  )


def expectation(parts):
  """Value, token losses and gradient in the student's logits."""
  average = {"aggregation": parts["aggregation"], "lengths": LENGTHS}
  losses = {at: token_loss(STUDENT[at], at, parts=parts) for at in TOKENS}
  value = formulas.average(losses, counted=parts["counted"], **average)
  gradient = np.zeros_like(STUDENT)
  for at in TOKENS:
    one = {other: float(other == at) for other in TOKENS}
    weight = formulas.average(one, counted=parts["counted"], **average)
    gradient[at] = weight * formulas.numerical_gradient(
      lambda x, at=at: token_loss(x, at, parts=parts), STUDENT[at]
    )
  return value, losses, gradient


def importance(old_log_probs, clip):
  ratios = dict.fromkeys(TOKENS, 1.0)
  for at in TOKENS if old_log_probs is not None else ():
    difference = LOG_PROBS[at] - old_log_probs[at]
    ratios[at] = np.exp(max(-20, min(20, difference)))
    if clip is not None:
      ratios[at] = min(ratios[at], clip)
  return ratios


def scores_of(costs, settings, taught):
  """future_weight · (R − b) of costs `{(b, t): cost}`, and R."""
  costs = {at: cost for at, cost in costs.items() if taught[at[0]]}
  later = formulas.future_costs(
    costs,
    LENGTHS,
    discount=settings["discount"],
    normalize=settings["normalize"],
    average_cost=settings["average_cost"] or 0.0,
  )
  neutral = settings["terminal_neutral"]
  credited = [(b, t) for b, t in later if not (neutral and t == LENGTHS[b] - 1)]
  baseline = formulas.baselines(
    later,
    credited,
    baseline=settings["baseline"],
    group_size=settings["group_size"],
  )
  scores = dict.fromkeys(TOKENS, 0.0)
  for at in credited:
    scores[at] = settings["future_weight"] * (later[at] - baseline[at])
  return scores, later


def distil_parts(settings):
  """What `token_loss` needs, and R."""
  where = {k: settings[k] for k in ("top_k", "top_k_of", "tail", "temperature")}
  taught = settings["sample_mask"]
  taught = np.ones(SIZE) if taught is None else taught
  costs = {}
  for at in TOKENS:
    sides = formulas.support(STUDENT[at], TEACHER[at], **where)
    costs[at] = formulas.divergence(*sides, "forward_cross_entropy")
    if settings["cost"] == "kl":
      costs[at] -= formulas.entropy(sides[1])
  scores, later = scores_of(costs, settings, taught)
  failures, advantages = settings["failure_weights"], settings["advantages"]
  failures = np.ones(SIZE) if failures is None else failures
  advantages = np.zeros(SIZE) if advantages is None else advantages
  same = "forward_kl" if settings["cost"] == "kl" else "forward_cross_entropy"
  reward_weight = settings["reward_weight"]
  return {
    "support": where,
    "divergence": {"kind": settings["local_cost"] or same},
    "local_weight": {at: failures[at[0]] * taught[at[0]] for at in TOKENS},
    "weights": {
      (b, t): failures[b] * scores[b, t] - reward_weight * advantages[b]
      for b, t in TOKENS
    },
    "importance": importance(
      settings["old_log_probs"], settings["importance_clip"]
    ),
    "counted": np.ones(SIZE) if reward_weight else taught,
    "aggregation": settings["aggregation"],
  }, later


def run(objective, **settings):
  """Loss, and gradients in student and teacher, in float64."""

  def value(student, teacher):
    loss = objective(student, teacher, IDS, MASK, **settings)
    return loss.value, loss

  with jax.enable_x64(True):
    gradients, loss = jax.jit(jax.grad(value, (0, 1), has_aux=True))(
      jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    )
  return loss, *gradients


def dense(values):
  """`{(b, t): value}` as an array, 0 elsewhere."""
  array = np.zeros((SIZE, LENGTH))
  for at, value in values.items():
    array[at] = value
  return array


def check(results, parts, later):
  loss, gradient, to_teacher = results
  value, losses, expected = expectation(parts)
  # The weights of the average are float32.
  np.testing.assert_allclose(loss.value, value, rtol=1e-6)
  np.testing.assert_allclose(loss.token_losses, dense(losses), rtol=1e-9)
  np.testing.assert_allclose(loss.future_costs, dense(later), atol=1e-12)
  np.testing.assert_allclose(loss.log_probs, LOG_PROBS * MASK)
  sides = {
    at: formulas.support(STUDENT[at], TEACHER[at], **parts["support"])
    for at in TOKENS
  }
  costs = {
    at: formulas.divergence(*sides[at], **parts["divergence"]) for at in TOKENS
  }
  np.testing.assert_allclose(loss.costs, dense(costs), atol=1e-12)
  assert np.max(np.abs(expected)) > 1e-3
  np.testing.assert_allclose(
    gradient, expected, rtol=1e-6, atol=1e-8 * max(1, np.abs(expected).max())
  )
  np.testing.assert_array_equal(to_teacher, 0.0)


@pytest.mark.parametrize("name", NAMED)
def test_distil(name):
  settings = DISTIL | NAMED[name]
  check(run(references.distil, **settings), *distil_parts(settings))


def local_parts(divergence, where, aggregation, ratios=None):
  nothing = dict.fromkeys(TOKENS, 0.0)
  return {
    "support": where,
    "divergence": divergence,
    "local_weight": {at: SAMPLE_MASK[at[0]] for at in TOKENS},
    "weights": nothing,
    "importance": ratios or dict.fromkeys(TOKENS, 1.0),
    "counted": SAMPLE_MASK,
    "aggregation": aggregation,
  }, nothing


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_sdpo(alpha):
  where = {} if alpha == 0 else {"top_k": 2}
  results = run(
    references.sdpo,
    alpha=alpha,
    old_log_probs=OLD_LOG_PROBS,
    importance_clip=2.0,
    sample_mask=SAMPLE_MASK,
    **where,
  )
  check(
    results,
    *local_parts(
      {"kind": "sdpo", "weight": alpha},
      where,
      "token_mean",
      importance(OLD_LOG_PROBS, 2.0),
    ),
  )


@pytest.mark.parametrize(
  ("beta", "token_clip", "top_k"), [(0.0, None, None), (0.7, 0.05, 3)]
)
def test_opsd(beta, token_clip, top_k):
  results = run(
    references.opsd,
    beta=beta,
    token_clip=token_clip,
    top_k=top_k,
    temperature=1.1,
    sample_mask=SAMPLE_MASK,
    aggregation="sequence_mean",
  )
  # Its own defaults: the teacher's words, without a tail.
  where = {"top_k_of": "teacher", "tail": False, "temperature": 1.1}
  check(
    results,
    *local_parts(
      {"kind": "opsd", "weight": beta, "token_clip": token_clip},
      where | {"top_k": top_k},
      "sequence_mean",
    ),
  )


@pytest.mark.parametrize("normalize", [True, False])
def test_minillm(normalize):
  results = run(
    references.minillm,
    future_weight=0.6,
    normalize=normalize,
    sample_mask=SAMPLE_MASK,
  )
  costs = {
    at: LOG_PROBS[at] - formulas.log_softmax(TEACHER[at])[IDS[at]]
    for at in TOKENS
  }
  settings = DISTIL | {"future_weight": 0.6, "normalize": normalize}
  scores, later = scores_of(costs, settings, SAMPLE_MASK)
  parts, _ = local_parts({"kind": "reverse_kl"}, {}, "token_mean")
  check(results, parts | {"weights": scores}, later)


def test_the_defaults_of_sdpo_are_the_students_words_and_a_tail():
  check(
    run(references.sdpo, alpha=0.5, top_k=2, sample_mask=SAMPLE_MASK),
    *local_parts(
      {"kind": "sdpo", "weight": 0.5},
      {"top_k": 2, "top_k_of": "student", "tail": True},
      "token_mean",
    ),
  )


def test_numbers_are_float32():
  loss = jax.eval_shape(
    lambda student, teacher: references.distil(
      student, teacher, IDS, MASK, old_log_probs=LOG_PROBS.astype(np.float32)
    ),
    jax.ShapeDtypeStruct(STUDENT.shape, jnp.bfloat16),
    jax.ShapeDtypeStruct(STUDENT.shape, jnp.float32),
  )
  assert {x.dtype for x in jax.tree.leaves(loss)} == {jnp.dtype("float32")}
