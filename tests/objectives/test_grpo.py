"""GRPO: by hand, against loops, by finite differences, and at padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import objectives
from tests import formulas, references

# A group of two: A = ½ and −½. Ratios 1, 2, ½ in each.
MASK = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.int32)
OLD = np.log(np.full((2, 4), 0.4))
NOW = OLD + np.log([[1, 2, 0.5, 1], [1, 2, 0.5, 1.1]])
REWARDS = np.array([1.0, 0.0])


def test_by_hand():
  loss = references.grpo(NOW, OLD, REWARDS, MASK, group_size=2)
  # A > 0: at most 1.28; A < 0: at least 0.8.
  expected = [[-0.5, -0.64, -0.25, 0], [0.5, 1, 0.4, 0.55]]
  np.testing.assert_allclose(loss.token_losses, expected, rtol=1e-5)
  np.testing.assert_allclose(loss.value, 1.06 / 7, rtol=1e-5)
  np.testing.assert_allclose(loss.log_probs, NOW * MASK, rtol=1e-6)
  np.testing.assert_array_equal(loss.costs, 0.0)
  np.testing.assert_array_equal(loss.future_costs, 0.0)
  by_sequence = references.grpo(
    NOW, OLD, REWARDS, MASK, group_size=2, aggregation="sequence_mean"
  )
  np.testing.assert_allclose(
    by_sequence.value, (-1.39 / 3 + 2.45 / 4) / 2, rtol=1e-5
  )


def test_standard_deviation():
  # It is ½.
  plain = references.grpo(NOW, OLD, REWARDS, MASK, group_size=2)
  scaled = references.grpo(
    NOW, OLD, REWARDS, MASK, group_size=2, normalize_std=True
  )
  np.testing.assert_allclose(
    scaled.token_losses, plain.token_losses / (0.5 + 1e-6), rtol=1e-5
  )


def in_numpy(log_probs, old, rewards, lengths, reference, settings):
  size, losses = settings["group_size"], {}
  for b, length in enumerate(lengths):
    group = rewards[b // size * size :][:size]
    advantage = rewards[b] - np.mean(group)
    if settings["normalize_std"]:
      advantage /= np.std(group) + 1e-6
    for t in range(length):
      ratio = np.exp(log_probs[b, t] - old[b, t])
      low, high = 1 - settings["clip_low"], 1 + settings["clip_high"]
      clipped = min(max(ratio, low), high)
      losses[b, t] = -min(ratio * advantage, clipped * advantage)
      away = reference[b, t] - log_probs[b, t]
      losses[b, t] += settings["kl_weight"] * (np.exp(away) - away - 1)
  counted = np.ones(len(lengths))
  return formulas.average(losses, lengths, counted, settings["aggregation"])


@pytest.mark.parametrize(
  "settings",
  [
    {
      "group_size": 3,
      "clip_low": 0.2,
      "clip_high": 0.28,
      "normalize_std": True,
      "kl_weight": 0.0,
      "aggregation": "sequence_mean",
    },
    {
      "group_size": 2,
      "clip_low": 0.1,
      "clip_high": 0.4,
      "normalize_std": False,
      "kl_weight": 0.3,
      "aggregation": "token_mean",
    },
  ],
  ids=str,
)
def test_against_numpy(settings):
  rng = np.random.default_rng(0)
  lengths = (4, 1, 0, 3, 2, 4)
  mask = (np.arange(4) < np.array(lengths)[:, None]).astype(np.int32)
  log_probs = rng.normal(-2, 0.5, mask.shape)
  old, reference = log_probs + rng.normal(0, 0.4, (2, *mask.shape))
  rewards = rng.uniform(size=6)

  def value(log_probs, old, reference, rewards):
    return references.grpo(
      log_probs, old, rewards, mask, reference_log_probs=reference, **settings
    ).value

  expected = in_numpy(log_probs, old, rewards, lengths, reference, settings)
  slope = formulas.numerical_gradient(
    lambda x: in_numpy(x, old, rewards, lengths, reference, settings), log_probs
  )
  dirty = [np.where(mask, x, np.nan) for x in (log_probs, old, reference)]
  dirty[1][2, 0], dirty[0][2, 0] = np.inf, np.inf
  with jax.enable_x64(True):
    actual, gradients = jax.jit(jax.value_and_grad(value, (0, 1, 2, 3)))(
      *map(jnp.asarray, dirty), jnp.asarray(rewards)
    )
  # The weights of the average are float32.
  np.testing.assert_allclose(actual, expected, rtol=1e-6)
  np.testing.assert_allclose(gradients[0], slope, rtol=1e-6, atol=1e-9)
  assert np.max(np.abs(slope)) > 1e-2
  # Only the policy of now is learned.
  for gradient in gradients[1:]:
    np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize(
  ("clip_low", "clip_high"), [(0.2, 0.28), (0.0, 0.0), (0.0, 0.3), (1.0, 0.0)]
)
def test_on_policy_it_is_the_plain_policy_gradient(clip_low, clip_high):
  mask = MASK.astype(np.float32)

  def value(log_probs):
    return references.grpo(
      log_probs,
      jax.lax.stop_gradient(log_probs),
      REWARDS,
      MASK,
      group_size=2,
      clip_low=clip_low,
      clip_high=clip_high,
    ).value

  gradient = jax.jit(jax.grad(value))(jnp.asarray(NOW, jnp.float32))
  np.testing.assert_allclose(
    gradient, -np.array([[0.5], [-0.5]]) * mask / 7, rtol=1e-5
  )


def test_far_ratios_have_finite_gradients():
  now = jnp.asarray([[0.0, -500.0], [0.0, -500.0]])
  old = jnp.asarray([[-500.0, 0.0], [-500.0, 0.0]])
  gradient = jax.grad(
    lambda x: (
      references.grpo(x, old, REWARDS, np.ones((2, 2)), group_size=2).value
    )
  )(now)
  assert np.all(np.isfinite(gradient))


def test_the_advantage_of_an_empty_row_may_be_anything():
  def total(log_probs, advantages):
    return jnp.sum(
      objectives.policy_gradient_losses(log_probs, OLD, advantages, mask)
    )

  mask = MASK * np.array([[1], [0]])
  run = jax.jit(jax.value_and_grad(total))
  clean = run(jnp.asarray(NOW), jnp.array([0.5, 0.0]))
  dirty = run(jnp.asarray(NOW), jnp.array([0.5, np.nan]))
  jax.tree.map(np.testing.assert_array_equal, dirty, clean)
  assert np.all(np.isfinite(clean[1]))


def test_garbage_that_counts_is_not_hidden():
  for broken in range(2):
    inputs = [NOW.copy(), OLD.copy()]
    inputs[broken][0, 0] = np.nan
    assert np.isnan(references.grpo(*inputs, REWARDS, MASK, group_size=2).value)


def test_unusable_settings():
  with pytest.raises(ValueError, match=r"kl_weight=0.1 needs reference"):
    references.grpo(NOW, OLD, REWARDS, MASK, group_size=2, kl_weight=0.1)
  with pytest.raises(ValueError, match="group_size=3 does not divide"):
    references.grpo(NOW, OLD, REWARDS, MASK, group_size=3)
