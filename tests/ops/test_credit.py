"""Credit over time: by hand, against double loops, and at padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import credit
from tests import references

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
      worth = 1.0  # falls with each token that counts
      for i in range(t + 1, length):
        if mask[b, i]:
          cost = float(costs[b, i]) - average_cost
          total += worth * cost
          weight += worth
          worth *= discount
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


def test_what_is_followed_by_hand():
  mask = np.array(
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
  )
  expected = [
    [1, 1, 1, 0],
    [1, 0, 0, 0],
    [0, 0, 0, 0],
    [0, 0, 0, 0],
    [1, 1, 0, 0],  # in the hole too
  ]
  np.testing.assert_array_equal(credit.is_followed(jnp.asarray(mask)), expected)


class TestHoles:
  """What tools wrote between the student's tokens."""

  COSTS = np.array([[1.0, 2.0, 64.0, 4.0, 8.0]], np.float32)
  MASK = np.array([[1, 1, 0, 1, 1]], np.int32)

  @pytest.mark.parametrize(
    ("discount", "normalize", "expected"),
    [
      # 2+4+8, 4+8, 4+8 from within the hole, 8, nothing
      (1.0, False, [14, 12, 12, 8, 0]),
      # 14/3, 12/2, 12/2, 8/1
      (1.0, True, [14 / 3, 6, 6, 8, 0]),
      # 2 + 4/2 + 8/4: the hole takes no time; 4 + 8/2, twice; 8
      (0.5, False, [6, 8, 8, 8, 0]),
      # 6 / (1 + 1/2 + 1/4), 8 / (1 + 1/2), twice; 8 / 1
      (0.5, True, [24 / 7, 16 / 3, 16 / 3, 8, 0]),
    ],
    ids=["plain", "normalized", "discounted", "discounted_normalized"],
  )
  def test_by_hand(self, discount, normalize, expected):
    actual = credit.future_costs(
      self.COSTS, self.MASK, discount=discount, normalize=normalize
    )
    np.testing.assert_allclose(actual, [expected], rtol=1e-6)

  def test_terminal_neutral_credit_by_hand(self):
    weights, later = references.score_weights(
      self.COSTS, self.MASK, normalize=False, terminal_neutral=True
    )
    # The token before the hole is not the last one.
    np.testing.assert_allclose(weights, [[14, 12, 0, 8, 0]], rtol=1e-6)
    np.testing.assert_allclose(later, [[14, 12, 0, 8, 0]], rtol=1e-6)

  def test_a_baseline_sees_across_the_hole_of_another(self):
    costs = np.concatenate([self.COSTS, self.COSTS / 2])
    mask = np.concatenate([self.MASK, np.array([[1, 1, 1, 1, 0]], np.int32)])
    # R: 14, 12, (12), 8, 0 and 1+32+2, 32+2, 2, 0.
    for neutral, expected in (
      (False, [[14 - 35, 12 - 34, 0, 8, 0], [35 - 14, 34 - 12, 2 - 12, -8, 0]]),
      # Neither the second's last token nor the first's stands in a baseline.
      (True, [[14 - 35, 12 - 34, 0, 8, 0], [35 - 14, 34 - 12, 2 - 12, 0, 0]]),
    ):
      weights, _ = references.score_weights(
        costs,
        mask,
        normalize=False,
        baseline="leave_one_out",
        group_size=2,
        terminal_neutral=neutral,
      )
      np.testing.assert_allclose(weights, expected, rtol=1e-6)

  @pytest.mark.parametrize("baseline", [None, "leave_one_out", "batch_mean"])
  @pytest.mark.parametrize("terminal_neutral", [False, True])
  @pytest.mark.parametrize("normalize", [False, True])
  def test_a_hole_is_as_if_it_were_cut_out(
    self, normalize, terminal_neutral, baseline
  ):
    """Holes at the same place in all: what is left has the same columns."""
    costs, mask = ragged(seed=7)
    settings = {
      "normalize": normalize,
      "terminal_neutral": terminal_neutral,
      "baseline": baseline,
      "group_size": 3,
      "average_cost": 0.5,
      "discount": 0.9,
    }
    kept = np.array([0, 1, 4, 5, 8])
    with_holes = np.zeros_like(mask)
    with_holes[:, kept] = mask[:, kept]
    dirty = np.where(with_holes, costs, np.float32(np.nan))
    found = references.score_weights(dirty, with_holes, **settings)
    expected = references.score_weights(
      costs[:, kept], mask[:, kept], **settings
    )
    for whole, short in zip(found, expected, strict=True):
      np.testing.assert_allclose(whole[:, kept], short, rtol=1e-6)
      np.testing.assert_array_equal(np.delete(whole, kept, axis=1), 0.0)

  @pytest.mark.parametrize("discount", [1.0, 0.9])
  @pytest.mark.parametrize("normalize", [False, True])
  def test_ragged_holes_against_a_double_loop(self, normalize, discount):
    costs, mask = ragged(seed=8)
    mask = mask * np.random.default_rng(8).integers(0, 2, mask.shape, np.int32)
    with jax.enable_x64(True):
      actual = credit.future_costs(
        costs.astype(np.float64), mask, discount=discount, normalize=normalize
      )
    expected = brute_force(costs, mask, discount, normalize)
    np.testing.assert_allclose(
      np.where(mask, actual, 0.0), expected, rtol=1e-12, atol=1e-13
    )

  @pytest.mark.parametrize("terminal_neutral", [False, True])
  @pytest.mark.parametrize("baseline", [None, "leave_one_out", "batch_mean"])
  def test_stretches_make_the_whole(self, baseline, terminal_neutral):
    costs, mask = ragged(seed=9)
    mask = mask * np.random.default_rng(9).integers(0, 2, mask.shape, np.int32)
    settings = {
      "discount": 0.9,
      "baseline": baseline,
      "group_size": 3,
      "terminal_neutral": terminal_neutral,
    }
    whole = references.score_weights(costs, mask, **settings)
    later = credit.nothing_later(len(mask))
    parts = []
    # Cuts within holes and beside them.
    for start, end in ((6, 9), (5, 6), (1, 5), (0, 1)):
      *part, later = references.score_weights_before(
        jnp.asarray(costs[:, start:end]), mask[:, start:end], later, **settings
      )
      parts.insert(0, part)
    for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
      np.testing.assert_allclose(
        np.concatenate(found, axis=1), expected, rtol=1e-5, atol=1e-6
      )
