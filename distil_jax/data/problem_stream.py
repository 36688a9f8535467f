"""Orders the problems of a run, mixes data sets, and deals them out.

Which problem stands at a position depends on the settings alone, so that the
position is all that a checkpoint needs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grain

from distil_jax.data.data_files import DataError

T = TypeVar("T")


def shuffled(
  items: Sequence[T], *, seed: int, num_epochs: int | None
) -> grain.MapDataset[T]:
  """Returns the epochs of some items as one long sequence.

  Args:
    items: anything but None.
    seed: seed of the order, 0 to 2^32 - 1. Epoch e of seed s has the order of
      epoch 0 of seed s + e.
    num_epochs: None repeats without end.

  Raises:
    DataError: there are no items.
    ValueError: an argument is out of its range.
  """
  if len(items) == 0:
    raise DataError("there are no items to make batches of")
  # Shuffled before it is repeated: every epoch then has an order of its own,
  # and each item once.
  return grain.MapDataset.source(items).shuffle(seed).repeat(num_epochs)


def mixed(
  sequences: Sequence[grain.MapDataset[T]], weights: Sequence[float]
) -> grain.MapDataset[T]:
  """Returns one sequence in which others alternate in proportion.

  Every stretch of it has each of them in its share, up to one item. It ends
  where the first of them, in its share, has no more items.

  Args:
    sequences: at least one.
    weights: positive, one for each; only their ratios count, to a percent of
      the smallest.
  """
  if len(sequences) == 1:
    return sequences[0]
  return grain.MapDataset.mix(sequences, weights)


class ProblemStream(Iterator[list[T]], Generic[T]):
  """Deals out a sequence in global batches, and further items in between.

  A global batch has `batch_size * process_count` items. Process i takes the
  i-th part of each, `batch_size` consecutive items. Therefore:

  * within an epoch every item appears once, in one process;
  * a batch may extend from one epoch into the next. It can hold an item twice
    if it does, or if it is larger than the number of items;
  * a global batch holds the same items in the same order for any number of
    processes;
  * all processes have equally many batches. Items at the end that do not fill a
    global batch are left out.

  The items are not copied. The position is one number, that of items, and the
  same in every process: any number of processes goes on where any other number
  of them stopped.

  Attributes:
    position: number of items that all processes have drawn and that are kept,
      see `keep`.
  """

  def __init__(
    self,
    sequence: grain.MapDataset[T],
    *,
    batch_size: int,
    position: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    arrange_fn: Callable[[Sequence[T]], list[T]] | None = None,
  ):
    """Begins at a position; reads nothing.

    Args:
      sequence: from `shuffled` or `mixed`.
      batch_size: items in a batch of one process.
      position: number of items that were drawn before.
      process_index: number of this process, from 0.
      process_count: number of processes that share the items.
      arrange_fn: orders the items of a batch of one process; None leaves them
        as they are drawn.

    Raises:
      DataError: all items do not fill one global batch.
      ValueError: an argument is out of its range.
    """
    if batch_size < 1:
      raise ValueError(f"batch_size={batch_size} must be positive")
    if not 0 <= process_index < process_count:
      raise ValueError(
        f"process_index={process_index} must be at least 0 and less than "
        f"process_count={process_count}"
      )
    if position < 0:
      raise ValueError(f"position={position} must not be negative")
    if len(sequence) < batch_size * process_count:
      raise DataError(
        f"{len(sequence)} items in all epochs do not fill a batch of "
        f"{batch_size} at each of {process_count} processes; take a smaller "
        "batch, more items or more epochs"
      )
    self.position = position
    self._next = position
    self._sequence: Any = sequence
    self._batch_size = batch_size
    self._process_index = process_index
    self._process_count = process_count
    self._arrange_fn = arrange_fn or list

  def __next__(self) -> list[T]:
    """Returns this process's part of the next global batch."""
    batch = self.draw([self._batch_size] * self._process_count)
    if batch is None:
      raise StopIteration
    return self._arrange_fn(batch)

  def draw(self, counts: Sequence[int]) -> list[T] | None:
    """Returns this process's part of the next items.

    Args:
      counts: number of items for each process, the same in all of them.

    Returns:
      None if fewer are left; then nothing is drawn.
    """
    if self._next + sum(counts) > len(self._sequence):
      return None
    begin = self._next + sum(counts[: self._process_index])
    self._next += sum(counts)
    count = counts[self._process_index]
    return [self._sequence[i] for i in range(begin, begin + count)]

  def keep(self) -> None:
    """Sets `position` to the latest item, once its step has been learned."""
    self.position = self._next
