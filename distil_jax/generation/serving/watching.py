"""Follows a batch while it is sampled: hands out tokens, drops who has gone."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import numpy as np

from distil_jax.generation.sampler import BUFFER_STEPS
from distil_jax.generation.serving.jobs import Job, SampleJob
from distil_jax.generation.usage import ReadTokens, Watch

# Decode steps between two looks if somebody reads along: few, so that text
# flows, but the host is waited for at each.
_STREAMED_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Waiting:
  """Holds a job and who waits for it.

  Attributes:
    job: what is asked.
    future: of the answer; whoever cancels it wants nothing any more.
    on_tokens: called with the number of a completion and its new tokens; None
      if nobody reads along.
  """

  job: Job
  future: Future
  on_tokens: Callable[[int, tuple[int, ...]], None] | None = None


def watch(waiting: Sequence[Waiting], group_size: int) -> Watch:
  """Returns what follows the rows of a batch.

  Args:
    waiting: the jobs, whose completions are the first rows in their order.
    group_size: rows of each job.
  """
  is_streamed = any(x.on_tokens for x in waiting)
  return Watch(
    _Batch(waiting, group_size).look,
    _STREAMED_STEPS if is_streamed else BUFFER_STEPS,
  )


class _Batch:
  def __init__(self, waiting: Sequence[Waiting], group_size: int):
    self._waiting = waiting
    self._group_size = group_size
    self._num_told: dict[int, int] = {}

  def look(self, read: ReadTokens) -> np.ndarray | None:
    readers = [i for i, x in enumerate(self._waiting) if _is_read(x)]
    if readers:
      tokens = read()
      for i in readers:
        self._tell(i, *tokens)
    # Asked last, because who has just been told may want no more.
    gone = [i for i, x in enumerate(self._waiting) if x.future.cancelled()]
    if not gone:
      return None
    _, lengths = read()
    ends = np.full(len(lengths), -1)
    for i in gone:
      rows = slice(i * self._group_size, (i + 1) * self._group_size)
      ends[rows] = lengths[rows]
    return ends

  def _tell(self, i: int, ids: np.ndarray, lengths: np.ndarray) -> None:
    waiting = self._waiting[i]
    assert waiting.on_tokens is not None
    assert isinstance(waiting.job, SampleJob), "scores have no tokens"
    for completion in range(waiting.job.count):
      row = i * self._group_size + completion
      first, last = self._num_told.get(row, 0), int(lengths[row])
      if last > first:
        self._num_told[row] = last
        waiting.on_tokens(completion, tuple(ids[row, first:last].tolist()))


def _is_read(waiting: Waiting) -> bool:
  return waiting.on_tokens is not None and not waiting.future.cancelled()
