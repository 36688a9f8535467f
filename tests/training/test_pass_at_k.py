"""pass@k by hand and over all choices of k samples."""

import fractions
import itertools

import pytest

from distil_jax.training.evaluation import pass_at_k


@pytest.mark.parametrize(
  ("num_samples", "num_correct", "k", "expected"),
  [
    (4, 0, 1, 0.0),
    (4, 1, 1, 1 / 4),
    (4, 1, 2, 1 / 2),  # 3 of the 6 pairs have it
    (4, 2, 2, 5 / 6),  # 1 of the 6 pairs misses both
    (4, 1, 4, 1.0),
    (4, 3, 2, 1.0),  # there are not two wrong ones
    (4, 4, 1, 1.0),
    (4, 0, 4, 0.0),
    (1, 1, 1, 1.0),
    (1, 0, 1, 0.0),
  ],
)
def test_by_hand(num_samples, num_correct, k, expected):
  assert pass_at_k(num_samples, num_correct, k) == pytest.approx(
    expected, abs=1e-12
  )


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_counts_all_choices(num_samples):
  for num_correct in range(num_samples + 1):
    is_right = [i < num_correct for i in range(num_samples)]
    for k in range(1, num_samples + 1):
      chosen = [any(c) for c in itertools.combinations(is_right, k)]
      expected = fractions.Fraction(sum(chosen), len(chosen))
      assert pass_at_k(num_samples, num_correct, k) == pytest.approx(
        float(expected), abs=1e-12
      )


def test_one_sample_is_the_mean():
  for num_correct in range(17):
    assert pass_at_k(16, num_correct, 1) == pytest.approx(num_correct / 16)


def test_many_samples_stay_exact():
  # The binomial coefficients have 300 digits: floats would overflow.
  assert pass_at_k(2048, 1, 512) == pytest.approx(0.25, abs=1e-12)
  assert pass_at_k(2048, 0, 512) == 0.0


@pytest.mark.parametrize("k", [0, -1, 5])
def test_k_must_be_possible(k):
  with pytest.raises(ValueError, match=f"k={k} .*num_samples=4"):
    pass_at_k(4, 1, k)
