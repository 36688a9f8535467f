"""Credit over time: by hand, against double loops, and at padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import credit

# One full sequence and one that ends after two tokens.
COSTS = np.array([[1.0, 2.0, 4.0, 8.0], [3.0, 5.0, 7.0, 9.0]], np.float32)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32)


def brute_force(costs, mask, discount, normalize, average_cost=0.0):
  """R in float64, one token at a time."""
  size, length = costs.shape
  totals = np.zeros((size, length))
  for b in range(size):
    for t in range(length):
      if not mask[b, t]:
        continue
      total = weight = 0.0
      for i in range(t + 1, length):
        if mask[b, i]:
          cost = float(costs[b, i]) - average_cost
          total += discount ** (i - t - 1) * cost
          weight += discount ** (i - t - 1)
      if normalize:
        total = total / weight if weight else 0.0
      totals[b, t] = total
  return totals


def ragged(seed, size=6, length=9):
  """Costs and masks of every kind of length, none and all included."""
  rng = np.random.default_rng(seed)
  costs = rng.exponential(2.0, (size, length)).astype(np.float32)
  lengths = rng.integers(0, length + 1, size)
  lengths[:3] = 0, 1, length
  mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
  return costs, mask


class TestFutureCosts:
  @pytest.mark.parametrize(
    ("discount", "normalize", "expected"),
    [
      # 2+4+8, 4+8, 8, nothing; 5, nothing, padding, padding
      (1.0, False, [[14, 12, 8, 0], [5, 0, 0, 0]]),
      # 14/3, 12/2, 8/1
      (1.0, True, [[14 / 3, 6, 8, 0], [5, 0, 0, 0]]),
      # 2 + 4/2 + 8/4, 4 + 8/2, 8
      (0.5, False, [[6, 8, 8, 0], [5, 0, 0, 0]]),
      # 6 / (1 + 1/2 + 1/4), 8 / (1 + 1/2), 8 / 1
      (0.5, True, [[24 / 7, 16 / 3, 8, 0], [5, 0, 0, 0]]),
    ],
    ids=["plain", "normalized", "discounted", "discounted_normalized"],
  )
  def test_by_hand(self, discount, normalize, expected):
    actual = credit.future_costs(
      COSTS, MASK, discount=discount, normalize=normalize
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  @pytest.mark.parametrize("discount", [1.0, 0.9, 0.1])
  @pytest.mark.parametrize("normalize", [False, True])
  def test_equals_a_double_loop_in_float64(self, discount, normalize):
    costs, mask = ragged(seed=0)
    with jax.enable_x64(True):
      actual = credit.future_costs(
        costs.astype(np.float64), mask, discount=discount, normalize=normalize
      )
      assert actual.dtype == np.float64
    expected = brute_force(costs, mask, discount, normalize)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=0)

  @pytest.mark.parametrize("normalize", [False, True])
  def test_last_token_has_no_future(self, normalize):
    costs, mask = ragged(seed=1)
    actual = credit.future_costs(costs, mask, normalize=normalize)
    for row, length in zip(actual, mask.sum(axis=1), strict=True):
      np.testing.assert_array_equal(row[max(length - 1, 0) :], 0.0)
      # The one before it pays for exactly the last token.
      assert np.all(row[: max(length - 1, 0)] > 0)

  @pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf, -np.inf])
  @pytest.mark.parametrize("normalize", [False, True])
  def test_padding_changes_nothing(self, garbage, normalize):
    costs, mask = ragged(seed=2)
    weights = np.random.default_rng(3).normal(size=costs.shape)
    weights = jnp.asarray(weights, jnp.float32)

    @jax.value_and_grad
    def total(costs):
      later = credit.future_costs(
        costs, mask, discount=0.9, normalize=normalize
      )
      return jnp.sum(weights * later)

    value, gradient = total(jnp.asarray(np.where(mask, costs, 0.0)))
    dirty_value, dirty_gradient = total(
      jnp.asarray(np.where(mask, costs, np.float32(garbage)))
    )
    np.testing.assert_array_equal(dirty_value, value)
    np.testing.assert_array_equal(dirty_gradient, gradient)
    np.testing.assert_array_equal(np.where(mask, 0.0, dirty_gradient), 0.0)
    assert np.any(gradient != 0)

  def test_masked_equals_cut_off(self):
    costs, mask = ragged(seed=4)
    whole = credit.future_costs(costs, mask)
    for row, length in enumerate(mask.sum(axis=1)):
      if length == 0:
        continue
      alone = credit.future_costs(
        costs[[row], :length], np.ones((1, length), np.int32)
      )
      np.testing.assert_array_equal(whole[[row], :length], alone)

  @pytest.mark.parametrize(
    ("normalize", "expected"),
    [
      # 2+4+8 less 3·3, 4+8 less 2·3, 8 less 3, no future; 5 less 3
      (False, [[5, 6, 5, 0], [2, 0, 0, 0]]),
      # a mean of costs less 3
      (True, [[5 / 3, 3, 5, 0], [2, 0, 0, 0]]),
    ],
  )
  def test_differential_by_hand(self, normalize, expected):
    actual = credit.future_costs(
      COSTS, MASK, normalize=normalize, average_cost=3.0
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  @pytest.mark.parametrize("normalize", [False, True])
  def test_differential_equals_a_double_loop(self, normalize):
    costs, mask = ragged(seed=5)
    dirty = np.where(mask, costs, np.float32(np.nan))
    with jax.enable_x64(True):
      actual = credit.future_costs(
        dirty.astype(np.float64),
        mask,
        discount=0.9,
        normalize=normalize,
        average_cost=jnp.asarray(1.7),
      )
    expected = brute_force(costs, mask, 0.9, normalize, average_cost=1.7)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)

  def test_the_average_cost_is_one_number(self):
    with pytest.raises(AssertionError):
      credit.future_costs(COSTS, MASK, average_cost=jnp.ones(2))

  def test_bfloat16_costs_are_summed_in_float32(self):
    # 256 ones: in bfloat16 a sum of ones cannot pass 256, and loses ones
    # before that wherever it is combined with fractions.
    costs = jnp.full((1, 400), 1.0, jnp.bfloat16)
    mask = jnp.ones((1, 400), jnp.int32)
    actual = credit.future_costs(costs, mask, normalize=False)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual[0], np.arange(399, -1, -1))


class TestLeaveOneOutBaseline:
  # A group of three: the second ends at its second token (alive there, with
  # R = 0), the third at its third.
  LATER = np.array(
    [[9.0, 6.0, 3.0, 0.0], [4.0, 0.0, 0.0, 0.0], [5.0, 2.0, 0.0, 0.0]],
    np.float32,
  )
  MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], np.int32)
  EXPECTED = np.array(
    [
      # (4+5)/2, (0+2)/2, the third alone with R = 0, nobody
      [4.5, 1.0, 0.0, 0.0],
      # (9+5)/2, (6+2)/2, padding
      [7.0, 4.0, 0.0, 0.0],
      # (9+4)/2, (6+0)/2, the first alone, padding
      [6.5, 3.0, 3.0, 0.0],
    ],
    np.float32,
  )

  def test_by_hand(self):
    actual = credit.leave_one_out_baseline(self.LATER, self.MASK, group_size=3)
    np.testing.assert_allclose(actual, self.EXPECTED, rtol=1e-6)

  def test_groups_do_not_mix(self):
    later = np.concatenate([self.LATER, 100 * self.LATER])
    mask = np.concatenate([self.MASK, self.MASK])
    actual = credit.leave_one_out_baseline(later, mask, group_size=3)
    expected = np.concatenate([self.EXPECTED, 100 * self.EXPECTED])
    np.testing.assert_allclose(actual, expected, rtol=1e-6)

  @pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
  def test_padding_changes_nothing(self, garbage):
    later = np.where(self.MASK, self.LATER, np.float32(garbage))
    actual = credit.leave_one_out_baseline(later, self.MASK, group_size=3)
    np.testing.assert_allclose(actual, self.EXPECTED, rtol=1e-6)

  def test_does_not_depend_on_the_member_itself(self):
    def own(later):
      baseline = credit.leave_one_out_baseline(later, self.MASK, group_size=3)
      return baseline[0]

    slope = jax.jacobian(own)(jnp.asarray(self.LATER))  # [T, B, T]
    np.testing.assert_array_equal(slope[:, 0], 0.0)
    assert np.any(slope[:, 1:] != 0)

  def test_alone_has_no_baseline(self):
    actual = credit.leave_one_out_baseline(self.LATER, self.MASK, group_size=1)
    np.testing.assert_array_equal(actual, 0.0)

  def test_group_size_must_divide_the_batch(self):
    with pytest.raises(ValueError, match=r"group_size=2 .* 3 sequences"):
      credit.leave_one_out_baseline(self.LATER, self.MASK, group_size=2)


class TestBatchMeanBaseline:
  LATER, MASK = TestLeaveOneOutBaseline.LATER, TestLeaveOneOutBaseline.MASK
  # (9+4+5)/3, (6+0+2)/3, (3+0)/2, and the first alone with its own 0
  EXPECTED = np.array([6, 8 / 3, 1.5, 0]) * MASK

  @pytest.mark.parametrize("garbage", [0.0, 1e30, np.nan, np.inf])
  def test_by_hand(self, garbage):
    later = np.where(self.MASK, self.LATER, np.float32(garbage))
    actual = credit.batch_mean_baseline(later, self.MASK)
    np.testing.assert_allclose(actual, self.EXPECTED, rtol=1e-6)

  def test_all_sequences_count_once(self):
    # What is subtracted sums to what there was.
    costs, mask = ragged(seed=6)
    baseline = credit.batch_mean_baseline(costs, mask)
    np.testing.assert_allclose(
      np.sum(baseline, axis=0), np.sum(costs * mask, axis=0), rtol=1e-5
    )
    np.testing.assert_array_equal(np.where(mask, 0.0, baseline), 0.0)


def test_last_tokens_by_hand():
  mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
  expected = [[0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(
    credit.last_tokens(jnp.asarray(mask, jnp.int32)), expected
  )
