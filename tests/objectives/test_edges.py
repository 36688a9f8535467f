"""What has no say must not spoil a gradient either."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import references

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(2, 3, 5)).astype(np.float32)
TEACHER = RNG.normal(size=(2, 3, 5)).astype(np.float32)
IDS = RNG.integers(5, size=(2, 3)).astype(np.int32)
MASK = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
OBJECTIVES = {
  "distil": references.distil,
  "sdpo": lambda *a, **k: references.sdpo(*a, alpha=0.5, **k),
  "opsd": lambda *a, **k: references.opsd(*a, beta=0.5, **k),
  "minillm": references.minillm,
}


def changed(array, index, value):
  array = np.array(array)
  array[index] = value
  return array


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(objective, settings, student, teacher, mask, arrays):
  return jax.value_and_grad(
    lambda x: objective(x, teacher, IDS, mask, **arrays, **dict(settings)).value
  )(student)


def value_and_gradient(
  objective, student=STUDENT, teacher=TEACHER, mask=MASK, **settings
):
  """One program for all numbers in arrays, which is all that some change."""
  arrays = {k: x for k, x in settings.items() if isinstance(x, np.ndarray)}
  others = tuple((k, x) for k, x in settings.items() if k not in arrays)
  return jax.tree.map(
    np.asarray, _run(objective, others, student, teacher, mask, arrays)
  )


def gradient(objective, teacher, **settings):
  return value_and_gradient(objective, teacher=teacher, **settings)[1]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_teacher_without_signal_may_say_anything(name):
  settings = {"sample_mask": np.array([1, 0])}
  clean = gradient(OBJECTIVES[name], TEACHER, **settings)
  broken = changed(TEACHER, 1, np.nan)
  np.testing.assert_array_equal(
    gradient(OBJECTIVES[name], broken, **settings), clean
  )
  assert np.abs(clean[0]).max() > 0
  # Nothing hides it where it counts.
  assert np.isnan(gradient(OBJECTIVES[name], broken)).any()


def test_a_clipped_summand_has_no_gradient_even_at_infinity():
  excluded = changed(STUDENT, (slice(None), slice(None), 0), -np.inf)
  ids = np.maximum(IDS, 1)

  @jax.jit
  @jax.grad
  def run(student):
    return references.opsd(
      student, TEACHER, ids, MASK, beta=0.0, token_clip=0.05
    ).value

  assert np.isfinite(np.asarray(run(excluded))).all()


def test_failure_weights_without_signal_may_be_anything():
  weights = np.array([0.5, np.nan], np.float32)
  settings = {"sample_mask": np.array([1, 0])}
  found = gradient(
    references.distil, TEACHER, failure_weights=weights, **settings
  )
  wanted = gradient(
    references.distil,
    TEACHER,
    failure_weights=changed(weights, 1, 0.0),
    **settings,
  )
  np.testing.assert_array_equal(found, wanted)


# The second row has no signal; its last column is padding.
UNTAUGHT = np.array([1, 0])
OLD = RNG.normal(-2, 0.5, (2, 3)).astype(np.float32)


def assert_same(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert np.abs(wanted[1]).max() > 0
  assert all(np.isfinite(x).all() for x in wanted)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_without_signal_may_think_anything(name):
  settings = {"sample_mask": UNTAUGHT}
  clean = value_and_gradient(OBJECTIVES[name], **settings)
  broken = changed(STUDENT, 1, np.nan)
  assert_same(value_and_gradient(OBJECTIVES[name], broken, **settings), clean)


@pytest.mark.parametrize("name", ["distil", "sdpo"])
def test_old_log_probs_without_signal_may_be_anything(name):
  settings = {"sample_mask": UNTAUGHT, "importance_clip": 2.0}
  clean = value_and_gradient(OBJECTIVES[name], old_log_probs=OLD, **settings)
  broken = changed(OLD, 1, np.nan)
  dirty = value_and_gradient(OBJECTIVES[name], old_log_probs=broken, **settings)
  assert_same(dirty, clean)


def test_old_log_probs_of_a_rewarded_row_count_without_signal_too():
  value, _ = value_and_gradient(
    references.distil,
    sample_mask=UNTAUGHT,
    old_log_probs=changed(OLD, 1, np.nan),
    advantages=np.array([0.5, -0.5], np.float32),
    reward_weight=1.0,
  )
  assert np.isnan(value)


def test_a_rewarded_row_learns_without_signal_whatever_its_teacher_says():
  def run(teacher):
    return gradient(
      references.distil,
      teacher,
      sample_mask=UNTAUGHT,
      advantages=np.array([0.5, -0.5], np.float32),
      reward_weight=1.0,
    )

  clean = run(TEACHER)
  np.testing.assert_array_equal(run(changed(TEACHER, 1, np.nan)), clean)
  assert np.abs(clean[1]).max() > 1e-2


def test_the_advantage_of_an_empty_row_may_be_anything():
  empty = changed(MASK, 1, 0)
  advantages = np.array([0.5, 0.0], np.float32)
  settings = {"mask": empty, "reward_weight": 1.0}
  clean = value_and_gradient(
    references.distil, advantages=advantages, **settings
  )
  for garbage in (np.nan, np.inf):
    dirty = changed(advantages, 1, garbage)
    assert_same(
      value_and_gradient(references.distil, advantages=dirty, **settings), clean
    )
    # Nothing hides it where it counts.
    counted = changed(advantages, 0, garbage)
    value, _ = value_and_gradient(
      references.distil, advantages=counted, **settings
    )
    assert not np.isfinite(value)


def test_advantages_of_no_weight_are_not_read():
  clean = value_and_gradient(references.distil, sample_mask=UNTAUGHT)
  for garbage in (np.nan, np.inf):
    dirty = value_and_gradient(
      references.distil,
      sample_mask=UNTAUGHT,
      advantages=np.full(2, garbage, np.float32),
      reward_weight=0.0,
    )
    assert_same(dirty, clean)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 3, 5)], ids=str)
def test_nothing_to_learn_from_is_a_loss_of_zero(name, shape):
  @jax.jit
  def run():
    logits, ids = jnp.zeros(shape), jnp.zeros(shape[:2], jnp.int32)
    return [
      OBJECTIVES[name](logits, logits, ids, ids, aggregation=aggregation)
      for aggregation in ("token_mean", "sequence_mean")
    ]

  for loss in run():
    np.testing.assert_array_equal(loss.value, 0.0)
    assert loss.future_costs.shape == shape[:2]


def test_nothing_to_learn_from_with_every_setting():
  run = jax.jit(
    lambda: references.distil(
      *jnp.zeros((2, 2, 0, 5)),
      *jnp.zeros((2, 2, 0), jnp.int32),
      baseline="leave_one_out",
      group_size=2,
      terminal_neutral=True,
      advantages=jnp.ones(2),
      reward_weight=1.0,
      old_log_probs=jnp.zeros((2, 0)),
    )
  )
  np.testing.assert_array_equal(run().value, 0.0)


def test_a_token_outside_the_vocabulary_is_not_hidden_where_it_counts():
  run = jax.jit(lambda ids: references.distil(STUDENT, TEACHER, ids, MASK))
  clean = run(IDS).value
  for token in (5, -1):
    assert np.isnan(run(changed(IDS, (0, 1), token)).value)
    padding = run(changed(IDS, (1, 2), token))
    np.testing.assert_array_equal(padding.value, clean)
    assert np.isfinite(padding.log_probs).all()


def test_a_list_of_more_than_all_tokens_is_the_vocabulary():
  @jax.jit
  def run(student):
    return [
      [
        OBJECTIVES[name](student, TEACHER, IDS, MASK, top_k=k).value
        for k in (None, 6)
      ]
      for name in ("distil", "sdpo", "opsd")
    ]

  for whole, more in run(STUDENT):
    np.testing.assert_array_equal(more, whole)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ({"discount": 0.0}, r"discount=0.0 is outside \(0, 1\]; 1 for none"),
    ({"discount": 1.5}, "discount=1.5 is outside"),
    ({"discount": np.nan}, "discount=nan is outside"),
    (
      {"baseline": "leave_one_out", "group_size": 0},
      "group_size=0 must be at least 1",
    ),
    (
      {"baseline": "leave_one_out", "group_size": -2},
      "group_size=-2 must be at least 1",
    ),
    ({"importance_clip": 2.0}, "importance_clip=2.0 .* old_log_probs; give"),
    ({"top_k": 2.0}, "top_k=2.0 must be at least 1, a whole number"),
    ({"top_k": -1}, "top_k=-1 must be at least 1"),
  ],
  ids=str,
)
def test_unusable_settings(settings, said):
  with pytest.raises(ValueError, match=said):
    references.distil(STUDENT, TEACHER, IDS, MASK, **settings)


def test_other_objectives_refuse_the_same():
  with pytest.raises(ValueError, match=r"importance_clip=1\.5"):
    OBJECTIVES["sdpo"](STUDENT, TEACHER, IDS, MASK, importance_clip=1.5)
  with pytest.raises(ValueError, match="group_size=0 must be at least 1"):
    references.grpo(OLD, OLD, np.ones(2), MASK, group_size=0)
