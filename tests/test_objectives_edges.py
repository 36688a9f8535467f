"""What has no say must not spoil a gradient either."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import objectives

RNG = np.random.default_rng(0)
STUDENT = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
TEACHER = jnp.asarray(RNG.normal(size=(2, 3, 5)), jnp.float32)
IDS = jnp.asarray(RNG.integers(5, size=(2, 3)))
MASK = jnp.asarray([[1, 1, 1], [1, 1, 0]])
OBJECTIVES = {
  "distil": objectives.distil,
  "sdpo": lambda *a, **k: objectives.sdpo(*a, alpha=0.5, **k),
  "opsd": lambda *a, **k: objectives.opsd(*a, beta=0.5, **k),
  "minillm": objectives.minillm,
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
    return objectives.opsd(
      student, TEACHER, ids, MASK, beta=0.0, token_clip=0.05
    ).value

  assert np.isfinite(np.asarray(jax.grad(value)(excluded))).all()


def test_failure_weights_without_signal_may_be_anything():
  weights = jnp.asarray([0.5, jnp.nan])
  settings = {"sample_mask": jnp.asarray([1, 0])}
  found = gradient(
    objectives.distil, TEACHER, failure_weights=weights, **settings
  )
  wanted = gradient(
    objectives.distil,
    TEACHER,
    failure_weights=weights.at[1].set(0.0),
    **settings,
  )
  np.testing.assert_array_equal(found, wanted)
