"""Averages over a batch: by hand, and however the batch is cut."""

import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import masking

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.int32)


class TestAggregationWeights:
  @pytest.mark.parametrize(
    ("aggregation", "sample_mask", "expected"),
    [
      (
        "token_mean",  # 8 tokens
        [1, 1, 1],
        [[1 / 8, 1 / 8, 1 / 8, 0], [1 / 8, 0, 0, 0], [1 / 8] * 4],
      ),
      (
        "token_mean",  # 5 tokens: the sequence without signal is not counted
        [0, 1, 1],
        [[0, 0, 0, 0], [1 / 5, 0, 0, 0], [1 / 5] * 4],
      ),
      (
        "sequence_mean",
        [1, 1, 1],
        [[1 / 9, 1 / 9, 1 / 9, 0], [1 / 3, 0, 0, 0], [1 / 12] * 4],
      ),
      (
        "sequence_mean",  # still a third each: it counts as a loss of 0
        [0, 1, 1],
        [[0, 0, 0, 0], [1 / 3, 0, 0, 0], [1 / 12] * 4],
      ),
    ],
  )
  def test_by_hand(self, aggregation, sample_mask, expected):
    weights = masking.aggregation_weights(
      MASK, np.array(sample_mask), aggregation=aggregation
    )
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

  @pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
  def test_nothing_counts(self, aggregation):
    nobody, everybody = np.zeros(3, np.int32), np.ones(3, np.int32)
    for mask, samples in [(MASK, nobody), (0 * MASK, everybody)]:
      weights = masking.aggregation_weights(
        mask, samples, aggregation=aggregation
      )
      np.testing.assert_array_equal(weights, 0.0)

  def test_an_empty_sequence_counts_as_a_loss_of_zero(self):
    mask = np.array([[1, 1], [0, 0]], np.int32)
    weights = masking.aggregation_weights(
      mask, np.ones(2, np.int32), aggregation="sequence_mean"
    )
    np.testing.assert_allclose(weights, [[0.25, 0.25], [0, 0]], rtol=1e-6)

  def test_unknown_aggregation(self):
    with pytest.raises(ValueError, match="aggregation='mean' is neither"):
      masking.aggregation_weights(
        MASK, np.ones(3, np.int32), aggregation="mean"
      )


class TestWhereCounts:
  def test_by_hand(self):
    x = np.array([[1.0, np.nan, np.inf, -1e30]], np.float32)
    mask = np.array([[1, 0, 0, 0]], np.int32)
    np.testing.assert_array_equal(
      masking.where_counts(x, mask), [[1.0, 0.0, 0.0, 0.0]]
    )

  def test_hides_nothing_that_counts(self):
    x = np.array([[np.nan, np.inf]], np.float32)
    actual = masking.where_counts(x, np.ones((1, 2), np.int32))
    np.testing.assert_array_equal(actual, x)

  @pytest.mark.parametrize("mask_dtype", [bool, np.int32, np.float32])
  def test_dtypes(self, mask_dtype):
    mask = np.array([[1, 0]], mask_dtype)
    actual = masking.where_counts(jnp.ones((1, 2), jnp.bfloat16), mask)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, [[1.0, 0.0]])
