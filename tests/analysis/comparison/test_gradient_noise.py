"""What is measured of an estimator of the gradient."""

import jax
import numpy as np
import pytest

from distil_jax import config as configs
from distil_jax.analysis.comparison import compiled_trial, gradient_noise
from tests.analysis.comparison import tiny

KEY = jax.random.key(2)
LOCAL = tiny.PUBLISHED.model_copy(update={"future_weight": 0.0})


def share(base, objective):
  return gradient_noise.score_share(
    base,
    base,
    KEY,
    setting=tiny.setting(objective),
    experience=compiled_trial.experience,
  )


def test_share_of_the_score_function(base):
  assert share(base, LOCAL) == 0
  assert share(base, configs.SDPOConfig()) == 0
  assert share(base, configs.SFTConfig()) == 0
  assert share(base, configs.GRPOConfig()) == 1
  assert 0 < share(base, tiny.PUBLISHED) < 1


def test_rewards_are_a_score_functions_too(base):
  both = LOCAL.model_copy(update={"reward_weight": 1.0})
  assert 0 < share(base, both) < 1


@pytest.fixture(scope="module")
def qualities(base):
  return gradient_noise.qualities(
    {
      "exact": tiny.setting(gradient_noise.EXACT),
      "local": tiny.setting(LOCAL),
      "again": tiny.setting(gradient_noise.EXACT),
    },
    base,
    experience=compiled_trial.experience,
    num_batches=24,
    num_reference=96,
  )


def test_an_exact_estimator_points_where_the_reference_does(qualities):
  exact, local = qualities["exact"], qualities["local"]
  assert exact.cosine_of_mean > 0.97
  assert local.cosine_of_mean < exact.cosine_of_mean - 0.1
  # One batch is a poorer guide than 24.
  assert local.cosine_of_batch < local.cosine_of_mean
  assert exact.cosine_of_batch < exact.cosine_of_mean


def test_all_are_measured_on_the_same_batches(qualities):
  assert qualities["exact"] == qualities["again"]


def test_noise_is_variance_in_units_of_the_mean(qualities, base):
  """By hand, from the gradients themselves."""
  setting = tiny.setting(gradient_noise.EXACT)
  gradient_fn = jax.jit(
    gradient_noise._gradient_fn(setting, compiled_trial.experience)
  )
  # The batches of `qualities` with its seed 0.
  keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 24)
  rows = []
  for key in keys:
    leaves = jax.tree.leaves(gradient_fn(base, base, key))
    rows.append(np.concatenate([np.ravel(x) for x in leaves]))
  rows = np.asarray(rows, np.float64)
  variance = rows.var(axis=0, ddof=1).sum()
  exact = qualities["exact"]
  np.testing.assert_allclose(exact.variance, variance, rtol=1e-3)
  noise = np.sqrt(variance) / np.linalg.norm(rows.mean(axis=0))
  np.testing.assert_allclose(exact.noise, noise, rtol=1e-3)
