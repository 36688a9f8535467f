"""Sorts the sequences of an update by length into micro-batches.

Each micro-batch is as wide as its longest sequence, and has as many sequences
as its width leaves room for.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distil_jax.data import length_buckets
from distil_jax.training import trimming
from distil_jax.types import TrainBatch

# A micro-batch may be full, or have a half or a quarter of its rows: each
# number of rows is a program, and without the last two much would be padding.
_SHARES = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
  """Says which sequences are learned from at once.

  Attributes:
    rows: of the batch, longest first. Those beyond the last are filled with
      copies that count nowhere.
    num_rows: with the filling.
    width: T.
  """

  rows: np.ndarray
  num_rows: int
  width: int


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Says how large micro-batches may be.

  Attributes:
    num_tokens: the budget: rows times columns, of all processes. A micro-batch
      has one sequence for each part of the batch even if that is more.
    num_shards: parts into which this process's devices cut a batch.
    num_processes: processes with a batch of the same size each.
    multiple: divides widths, see `length_buckets.bucket_size`.
  """

  num_tokens: int
  num_shards: int = 1
  num_processes: int = 1
  multiple: int = 1

  def row_counts(self, num_columns: int) -> list[int]:
    """Returns the numbers of rows that a micro-batch may have, the most first.

    They depend on the width alone, so that there are few programs.

    Args:
      num_columns: of the longer of the two sequences that a row is read as.
    """
    of_shard = self.num_tokens // (
      num_columns * self.num_shards * self.num_processes
    )
    counts = {-(-max(of_shard, 1) // share) for share in _SHARES}
    return [count * self.num_shards for count in sorted(counts, reverse=True)]


def plan(
  order: np.ndarray,
  lengths: Sequence[int],
  sizes: Sizes,
  *,
  prompt_width: int,
  limit: int,
) -> list[MicroBatch]:
  """Returns the micro-batches that compute the fewest tokens.

  Args:
    order: rows from the longest to the shortest.
    lengths: of the rows in this order; the largest of all processes, so that
      all have the same plan.
    sizes: of micro-batches.
    prompt_width: columns before the completion.
    limit: the largest width of a completion.
  """
  # The least cost of all rows from some place on, and the choice behind it:
  # rows and width of the micro-batch that begins there.
  count = len(order)
  costs, choices = [0] * (count + 1), [(0, 0)] * count
  for start in reversed(range(count)):
    width = length_buckets.bucket_size(
      int(lengths[start]), limit, multiple=sizes.multiple
    )
    columns = prompt_width + width
    # Of equal costs the first is taken, with the most rows: fewer programs run.
    costs[start], num_rows = min(
      (
        (num_rows * columns + costs[min(start + num_rows, count)], num_rows)
        for num_rows in sizes.row_counts(columns)
      ),
      key=lambda found: found[0],
    )
    choices[start] = num_rows, width
  found, start = [], 0
  while start < count:
    num_rows, width = choices[start]
    rows = order[start : start + num_rows]
    found.append(MicroBatch(rows, num_rows, width))
    start += num_rows
  return found


def take(batch: TrainBatch, micro: MicroBatch) -> TrainBatch:
  """Returns the rows of a micro-batch, and filling of which nothing counts.

  Args:
    batch: on the host, without prefixes of the teacher's prompts.
    micro: what to take.
  """

  def taken(field: str) -> np.ndarray | None:
    value = getattr(batch, field)
    if value is None:
      return None
    return take_rows(
      value, micro, is_zeroed=field.endswith(("_mask", "_weights"))
    )

  fields = [field.name for field in dataclasses.fields(batch)]
  found = dataclasses.replace(batch, **{name: taken(name) for name in fields})
  return trimming.cut(found, {"completion": micro.width})


def take_rows(
  values: np.ndarray, micro: MicroBatch, *, is_zeroed: bool
) -> np.ndarray:
  """Returns the values of a micro-batch's rows; its filling is a copy, or 0."""
  num_filled = micro.num_rows - len(micro.rows)
  rows = np.concatenate([micro.rows, np.repeat(micro.rows[:1], num_filled)])
  found = values[rows]
  if is_zeroed:
    found[len(micro.rows) :] = 0
  return found


def put_back(
  pieces: Sequence[np.ndarray], micros: Sequence[MicroBatch], width: int
) -> np.ndarray:
  """Returns what was found in micro-batches, in the rows of their batch.

  Args:
    pieces: `[b, t]` each.
    micros: where they belong; together they have every row once.
    width: T of the batch; columns that a piece lacks become 0.
  """
  count = sum(len(micro.rows) for micro in micros)
  found = np.zeros((count, width), pieces[0].dtype)
  for piece, micro in zip(pieces, micros, strict=True):
    found[micro.rows, : micro.width] = piece[: len(micro.rows)]
  return found
