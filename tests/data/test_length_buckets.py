"""Lengths are rounded up to few sizes, the same under every limit."""

import math

import pytest

from distil_jax.data import length_buckets


def test_sizes_lie_four_to_an_octave():
  sizes = sorted({length_buckets.bucket_size(n, 10**6) for n in range(257)})
  whole = [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]
  assert sizes == whole
  assert length_buckets.num_sizes(256) == len(sizes)


@pytest.mark.parametrize("limit", [100, 1000, 16384])
def test_a_size_holds_its_rows_and_little_more(limit):
  for length in range(1, limit + 1):
    size = length_buckets.bucket_size(length, limit)
    assert length <= size <= limit
    assert size == 32 or length > 0.8 * size
  most = 4 * math.log2(limit / 32) + 2
  assert length_buckets.num_sizes(limit) <= most


def test_a_looser_limit_changes_no_size():
  for length in range(1, 100):
    sizes = {length_buckets.bucket_size(length, 2**k) for k in range(7, 14)}
    assert len(sizes) == 1


def test_sizes_are_multiples_up_to_the_limit():
  found = [
    length_buckets.bucket_size(n, 100, multiple=6) for n in (1, 33, 95, 100)
  ]
  assert found == [36, 42, 96, 100]
