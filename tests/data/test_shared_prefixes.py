"""What prompts begin with is split off where that saves tokens."""

import numpy as np
import pytest

from distil_jax.data import length_buckets, shared_prefixes

PAD = 0


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
  monkeypatch.setattr(length_buckets, "SMALLEST", 1)


def split(rows, *, num_sharing=2, max_prefix_length=4, max_prompt_length=8):
  return shared_prefixes.split(
    rows,
    num_sharing=num_sharing,
    max_prefix_length=max_prefix_length,
    max_prompt_length=max_prompt_length,
    pad_id=PAD,
  )


def tokens(ids, mask):
  return [
    row[counts == 1].tolist() for row, counts in zip(ids, mask, strict=True)
  ]


@pytest.mark.parametrize(
  ("rows", "expected"),
  [
    ([[1, 2, 3], [1, 2, 4]], [1, 2]),
    ([[1, 2, 3], [1, 2, 3]], [1, 2]),  # a last token stays
    ([[1, 2], [1, 2, 3]], [1]),
    ([[1, 2, 3], None], [1, 2]),
    ([None, None], []),
    ([[2, 1], [1, 2]], []),
    ([[5], [5]], []),
  ],
)
def test_the_common_prefix(rows, expected):
  assert shared_prefixes.common_prefix(rows) == expected


def test_prompts_are_split_group_by_group():
  rows = [
    *([1, 2, 3, 4], [1, 2, 3, 5]),
    *([1, 2, 3, 4, 5, 6], None),
    *([7], [8, 9]),
    *(None, None),
  ]
  found = split(rows)
  assert tokens(found.prefix_ids, found.prefix_mask) == [
    [1, 2, 3],
    [1, 2, 3, 4],  # as long as a prefix may be
    [],
    [],
  ]
  assert tokens(found.ids, found.mask) == [
    *([4], [5]),
    *([5, 6], [PAD]),
    *([7], [8, 9]),
    *([PAD], [PAD]),
  ]
  assert found.prefix_ids.shape == (4, 4)
  # What is padding everywhere is cut off later.
  assert found.ids.shape == (8, 8)
  for mask in (found.mask, found.prefix_mask):
    assert (np.diff(mask) >= 0).all()


def test_sampled_prompts_have_one_of_three_widths():
  assert shared_prefixes.prompt_widths(8) == [8, 4, 2]
  assert shared_prefixes.prompt_widths(9) == [9, 5, 3]


@pytest.mark.parametrize("limit", [8, 64])
@pytest.mark.parametrize(
  ("prefix", "rest", "is_split"),
  [(1, 1, True), (1, 3, True), (3, 1, True), (0, 3, False)],
)
def test_the_longest_rows_decide_and_not_the_limits(
  limit, prefix, rest, is_split
):
  """A prefix and two rests, against two prompts; an empty one has a column."""
  rows = [[*[1] * prefix, *[i + 2] * rest] for i in range(2)]
  found = split(rows, max_prefix_length=limit, max_prompt_length=limit)
  assert (found is not None) == is_split


def test_nothing_is_split_where_that_saves_nothing():
  # A prefix of one column and rests of 3, in place of prompts of 3.
  assert split([[1, 2, 3], [2, 2, 4]] * 2) is None
  assert split([[1, 2, 3], [1, 2, 4]] * 2) is not None
