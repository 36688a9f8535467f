"""Advantages, failure weights and importance weights: by hand and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import advantages

# Two groups of three: one that succeeds once, one that always does.
REWARDS = np.array([1, 0, 0.5, 1, 1, 1], np.float32)


class TestGroupAdvantages:
  @pytest.mark.parametrize(
    ("settings", "expected"),
    [
      # the mean is 1/2
      ({}, [0.5, -0.5, 0, 0, 0, 0]),
      # of the others: 1/4, 3/4, 1/2
      ({"leave_one_out": True}, [0.75, -0.75, 0, 0, 0, 0]),
      # the variance is (1/4 + 1/4) / 3
      (
        {"normalize_std": True, "epsilon": 0.0001},
        [
          0.5 / (np.sqrt(1 / 6) + 0.0001),
          -0.5 / (np.sqrt(1 / 6) + 0.0001),
          *[0.0] * 4,
        ],
      ),
      (
        {"normalize_std": True, "leave_one_out": True},
        [0.75 * np.sqrt(6), -0.75 * np.sqrt(6), *[0.0] * 4],
      ),
    ],
    ids=str,
  )
  def test_by_hand(self, settings, expected):
    actual = advantages.group_advantages(REWARDS, group_size=3, **settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)

  @pytest.mark.parametrize("leave_one_out", [False, True])
  def test_equals_a_loop_in_float64(self, leave_one_out):
    rewards = np.random.default_rng(0).uniform(size=20)
    expected = []
    for i, reward in enumerate(rewards):
      first = i // 5 * 5
      group = list(rewards[first : first + 5])
      others = group[: i - first] + group[i - first + 1 :]
      mean = np.mean(others if leave_one_out else group)
      expected.append((reward - mean) / (np.std(group) + 1e-6))
    with jax.enable_x64(True):
      actual = advantages.group_advantages(
        jnp.asarray(rewards),
        group_size=5,
        normalize_std=True,
        leave_one_out=leave_one_out,
      )
    np.testing.assert_allclose(actual, expected, rtol=1e-12)

  @pytest.mark.parametrize("reward", [0.0, 0.1, 0.7, 1.0])
  @pytest.mark.parametrize("leave_one_out", [False, True])
  def test_equal_rewards_have_no_advantage(self, reward, leave_one_out):
    # Rounding must not be divided by ε.
    actual = advantages.group_advantages(
      np.full(8, reward, np.float32),
      group_size=8,
      normalize_std=True,
      leave_one_out=leave_one_out,
    )
    np.testing.assert_array_equal(actual, 0.0)

  def test_whole_numbers_are_rewards_too(self):
    actual = advantages.group_advantages(jnp.array([1, 0]), group_size=2)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, [0.5, -0.5])

  def test_unusable_groups(self):
    with pytest.raises(ValueError, match=r"group_size=4 .* 6 sequences"):
      advantages.group_advantages(REWARDS, group_size=4)
    with pytest.raises(ValueError, match="group_size=1 leaves no other"):
      advantages.group_advantages(REWARDS, group_size=1, leave_one_out=True)


class TestFailureWeights:
  def test_by_hand(self):
    np.testing.assert_allclose(
      advantages.failure_weights(REWARDS, group_size=3),
      [0.75, 0.25, 0.5, 0, 0, 0],
    )

  def test_do_not_depend_on_the_member_itself(self):
    slope = jax.jacobian(
      lambda rewards: advantages.failure_weights(rewards, group_size=3)
    )(jnp.asarray(REWARDS))
    np.testing.assert_array_equal(np.diag(slope), 0.0)
    np.testing.assert_array_equal(slope[0], [0, -0.5, -0.5, 0, 0, 0])

  def test_unusable_groups(self):
    with pytest.raises(ValueError, match=r"group_size=4 .* 6 sequences"):
      advantages.failure_weights(REWARDS, group_size=4)
    with pytest.raises(ValueError, match="group_size=1 leaves no other"):
      advantages.failure_weights(REWARDS, group_size=1)


class TestImportanceWeights:
  # Ratios 1, 3, 1/2, and padding.
  NOW = np.log([[0.5, 0.6, 0.2, 0.1]]).astype(np.float32)
  OLD = np.log([[0.5, 0.2, 0.4, 0.2]]).astype(np.float32)
  MASK = np.array([[1, 1, 1, 0]], np.int32)

  @pytest.mark.parametrize(
    ("clip", "expected"),
    [(None, [1, 3, 0.5, 0]), (2.0, [1, 2, 0.5, 0]), (0.7, [0.7, 0.7, 0.5, 0])],
  )
  def test_by_hand(self, clip, expected):
    actual = advantages.importance_weights(
      self.NOW, self.OLD, self.MASK, clip=clip
    )
    np.testing.assert_allclose(actual, [expected], rtol=1e-6)

  @pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
  def test_padding_changes_nothing(self, garbage):
    now, old = self.NOW.copy(), self.OLD.copy()
    for now_3, old_3 in ((garbage, 0), (0, garbage), (garbage, garbage)):
      now[0, 3], old[0, 3] = now_3, old_3
      actual = advantages.importance_weights(now, old, self.MASK, clip=2.0)
      np.testing.assert_allclose(actual, [[1, 2, 0.5, 0]], rtol=1e-6)

  def test_far_ratios_are_finite(self):
    actual = advantages.importance_weights(
      jnp.array([[0.0, -500.0]]),
      jnp.array([[-500.0, 0.0]]),
      np.ones((1, 2)),
      clip=None,
    )
    np.testing.assert_allclose(actual, np.exp([[20.0, -20.0]]), rtol=1e-5)

  def test_garbage_that_counts_is_not_hidden(self):
    now = np.where([[1, 0, 0, 0]], np.float32(np.nan), self.NOW)
    actual = advantages.importance_weights(now, self.OLD, self.MASK, clip=2.0)
    assert np.isnan(actual[0, 0])

  def test_is_a_constant_but_the_ratio_is_not(self):
    def total(function, **settings):
      return jax.grad(
        lambda now: jnp.sum(function(now, self.OLD, self.MASK, **settings))
      )(jnp.asarray(self.NOW))

    constant = total(advantages.importance_weights, clip=None)
    np.testing.assert_array_equal(constant, 0.0)
    np.testing.assert_allclose(
      total(advantages.probability_ratios), [[1, 3, 0.5, 0]], rtol=1e-6
    )

  def test_unusable_clip(self):
    with pytest.raises(ValueError, match="clip=0 must be above 0"):
      advantages.importance_weights(self.NOW, self.OLD, self.MASK, clip=0)
