"""What prompts begin with is split off where that saves tokens."""

import numpy as np
import pytest

from distil_jax.data import shared_prefixes

PAD = 0


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
  assert found.ids.shape == (8, 2)  # a quarter of a prompt
  for mask in (found.mask, found.prefix_mask):
    assert (np.diff(mask) >= 0).all()


@pytest.mark.parametrize(
  ("rest", "width"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, None)]
)
def test_rests_have_one_of_three_widths(rest, width):
  """Four prompts of 8 take 32 tokens; a prefix of 4 and rests of 8 take 36."""
  rows = [[1, *[i + 2] * rest] for i in range(4)]
  found = split(rows, num_sharing=4)
  if width is None:
    assert found is None
  else:
    assert found.ids.shape == (4, width)
  assert shared_prefixes.prompt_widths(8) == [8, 4, 2]
  assert shared_prefixes.prompt_widths(9) == [9, 5, 3]


def test_nothing_is_split_where_that_saves_nothing():
  rows = [[1, 2, 3], [1, 2, 4]] * 2
  # A prefix of 12 for two rests of 2 is as much as two prompts of 8.
  assert split(rows, max_prefix_length=12) is None
  assert split(rows, max_prefix_length=11) is not None
