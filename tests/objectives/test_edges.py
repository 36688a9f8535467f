"""What has no say must not spoil a gradient either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import references

RNG = np.random.default_rng(0)
STUDENT = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
TEACHER = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
IDS = jnp.asarray(RNG.integers(5, size=(2, 3)))
MASK = jnp.asarray([[1, 1, 1], [1, 1, 0]])
OBJECTIVES = {
  "distil": references.distil,
  "sdpo": lambda *a, **k: references.sdpo(*a, alpha=0.5, **k),
  "opsd": lambda *a, **k: references.opsd(*a, beta=0.5, **k),
  "minillm": references.minillm,
}


def gradient(objective, teacher, student=STUDENT, **settings):
  def value(student):
    return objective(student, teacher, IDS, MASK, **settings).value

  return np.asarray(jax.grad(value)(student))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_teacher_without_signal_may_say_anything(name):
  settings = {"sample_mask": jnp.asarray([1, 0])}
  clean = gradient(OBJECTIVES[name], TEACHER, **settings)
  broken = TEACHER.at[1].set(jnp.nan)
  np.testing.assert_array_equal(
    gradient(OBJECTIVES[name], broken, **settings), clean
  )
  assert np.abs(clean[0]).max() > 0
  # Nothing hides it where it counts.
  assert np.isnan(gradient(OBJECTIVES[name], broken)).any()


def test_a_clipped_summand_has_no_gradient_even_at_infinity():
  excluded = STUDENT.at[:, :, 0].set(-jnp.inf)
  ids = jnp.maximum(IDS, 1)

  def value(student):
    return references.opsd(
      student, TEACHER, ids, MASK, beta=0.0, token_clip=0.05
    ).value

  assert np.isfinite(np.asarray(jax.grad(value)(excluded))).all()


def test_failure_weights_without_signal_may_be_anything():
  weights = jnp.asarray([0.5, jnp.nan])
  settings = {"sample_mask": jnp.asarray([1, 0])}
  found = gradient(
    references.distil, TEACHER, failure_weights=weights, **settings
  )
  wanted = gradient(
    references.distil,
    TEACHER,
    failure_weights=weights.at[1].set(0.0),
    **settings,
  )
  np.testing.assert_array_equal(found, wanted)


# The second row has no signal; its last column is padding.
UNTAUGHT = jnp.asarray([1, 0])
OLD = jnp.asarray(RNG.normal(-2, 0.5, (2, 3)), jnp.float32)


def value_and_gradient(objective, student=STUDENT, mask=MASK, **settings):
  @jax.jit
  def run(student):
    return jax.value_and_grad(
      lambda x: objective(x, TEACHER, IDS, mask, **settings).value
    )(student)

  return run(student)


def assert_same(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert np.abs(wanted[1]).max() > 0
  assert all(np.isfinite(x).all() for x in wanted)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_without_signal_may_think_anything(name):
  settings = {"sample_mask": UNTAUGHT}
  clean = value_and_gradient(OBJECTIVES[name], **settings)
  broken = STUDENT.at[1].set(jnp.nan)
  assert_same(value_and_gradient(OBJECTIVES[name], broken, **settings), clean)


@pytest.mark.parametrize("name", ["distil", "sdpo"])
def test_old_log_probs_without_signal_may_be_anything(name):
  settings = {"sample_mask": UNTAUGHT, "importance_clip": 2.0}
  clean = value_and_gradient(OBJECTIVES[name], old_log_probs=OLD, **settings)
  broken = OLD.at[1].set(jnp.nan)
  dirty = value_and_gradient(OBJECTIVES[name], old_log_probs=broken, **settings)
  assert_same(dirty, clean)


def test_old_log_probs_of_a_rewarded_row_count_without_signal_too():
  value, _ = value_and_gradient(
    references.distil,
    sample_mask=UNTAUGHT,
    old_log_probs=OLD.at[1].set(jnp.nan),
    advantages=jnp.asarray([0.5, -0.5]),
    reward_weight=1.0,
  )
  assert np.isnan(value)


def test_a_rewarded_row_learns_without_signal_whatever_its_teacher_says():
  def run(teacher):
    return jax.jit(
      jax.grad(
        lambda x: (
          references.distil(
            x,
            teacher,
            IDS,
            MASK,
            sample_mask=UNTAUGHT,
            advantages=jnp.asarray([0.5, -0.5]),
            reward_weight=1.0,
          ).value
        )
      )
    )(STUDENT)

  clean = run(TEACHER)
  np.testing.assert_array_equal(run(TEACHER.at[1].set(jnp.nan)), clean)
  assert np.abs(clean[1]).max() > 1e-2


def test_the_advantage_of_an_empty_row_may_be_anything():
  empty = MASK.at[1].set(0)
  advantages = jnp.asarray([0.5, 0.0])
  settings = {"mask": empty, "reward_weight": 1.0}
  clean = value_and_gradient(
    references.distil, advantages=advantages, **settings
  )
  for garbage in (jnp.nan, jnp.inf):
    dirty = advantages.at[1].set(garbage)
    assert_same(
      value_and_gradient(references.distil, advantages=dirty, **settings), clean
    )
    # Nothing hides it where it counts.
    counted = advantages.at[0].set(garbage)
    value, _ = value_and_gradient(
      references.distil, advantages=counted, **settings
    )
    assert not np.isfinite(value)


def test_advantages_of_no_weight_are_not_read():
  clean = value_and_gradient(references.distil, sample_mask=UNTAUGHT)
  for garbage in (jnp.nan, jnp.inf):
    dirty = value_and_gradient(
      references.distil,
      sample_mask=UNTAUGHT,
      advantages=jnp.full(2, garbage),
      reward_weight=0.0,
    )
    assert_same(dirty, clean)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 3, 5)], ids=str)
def test_nothing_to_learn_from_is_a_loss_of_zero(name, shape):
  logits, ids = jnp.zeros(shape), jnp.zeros(shape[:2], jnp.int32)
  for aggregation in ("token_mean", "sequence_mean"):
    loss = OBJECTIVES[name](logits, logits, ids, ids, aggregation=aggregation)
    np.testing.assert_array_equal(loss.value, 0.0)
    assert loss.future_costs.shape == shape[:2]


def test_nothing_to_learn_from_with_every_setting():
  loss = references.distil(
    *jnp.zeros((2, 2, 0, 5)),
    *jnp.zeros((2, 2, 0), jnp.int32),
    baseline="leave_one_out",
    group_size=2,
    terminal_neutral=True,
    advantages=jnp.ones(2),
    reward_weight=1.0,
    old_log_probs=jnp.zeros((2, 0)),
  )
  np.testing.assert_array_equal(loss.value, 0.0)


def test_a_token_outside_the_vocabulary_is_not_hidden_where_it_counts():
  run = jax.jit(lambda ids: references.distil(STUDENT, TEACHER, ids, MASK))
  clean = run(IDS).value
  for token in (5, -1):
    assert np.isnan(run(IDS.at[0, 1].set(token)).value)
    padding = run(IDS.at[1, 2].set(token))
    np.testing.assert_array_equal(padding.value, clean)
    assert np.isfinite(padding.log_probs).all()


def test_a_list_of_more_than_all_tokens_is_the_vocabulary():
  for name in ("distil", "sdpo", "opsd"):
    whole, more = (
      OBJECTIVES[name](STUDENT, TEACHER, IDS, MASK, top_k=k).value
      for k in (None, 6)
    )
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
    references.grpo(OLD, OLD, jnp.ones(2), MASK, group_size=0)
