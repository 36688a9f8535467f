"""Has the worker do what a request asks, as long as its client is there."""

import concurrent.futures
import queue
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.serving import answers
from distil_jax.generation.serving.answers import Json
from distil_jax.generation.serving.jobs import (
  Job,
  OnTokens,
  Sampled,
  SampleJob,
  Scored,
  ScoreJob,
)
from distil_jax.generation.serving.requests import Request
from distil_jax.generation.serving.streams import Chunks, TextStream
from distil_jax.types import StopReason

# Returns True if the client waits for no answer any more.
IsGone = Callable[[], bool]
# Between two looks whether a client that waits is still there.
_POLL_SECONDS = 0.2


class ClientGoneError(Exception):
  """The error of a request whose client has hung up."""


class Submits(Protocol):
  """Takes jobs, as `Worker` does."""

  def submit(
    self, jobs: Sequence[Job], on_tokens: OnTokens | None = None
  ) -> list[Future]: ...


def whole(
  worker: Submits, tokenizer: Tokenizer, request: Request, is_gone: IsGone
) -> Json:
  """Returns the answer, but for its name and time.

  Raises:
    ClientGoneError: nobody waits for it any more.
  """
  sampled = _sample(worker, request.jobs, is_gone)
  scored = _score(worker, request, sampled, is_gone)
  return answers.answer(request, sampled, scored, tokenizer)


def stream(
  worker: Submits,
  tokenizer: Tokenizer,
  request: Request,
  chunks: Chunks,
  is_gone: IsGone,
) -> Generator[Json]:
  """Yields the chunks of an answer while its tokens are sampled.

  The first comes when there is a token. Closing the iterator ends the sampling.

  Raises:
    ClientGoneError: nobody waits for it any more.
  """
  # Numbers of job and completion and new tokens; None at a job's end.
  events: queue.SimpleQueue[Any] = queue.SimpleQueue()
  jobs = request.jobs
  futures = worker.submit(jobs, lambda *event: events.put(event))
  for i, future in enumerate(futures):
    future.add_done_callback(lambda _, i=i: events.put((i, None, ())))
  texts = [[TextStream(x, tokenizer) for _ in range(x.count)] for x in jobs]
  num_tokens, num_open, has_begun = 0, len(jobs), False
  try:
    while num_open:
      i, completion, ids = _next(events, is_gone)
      # Raises before anything is sent, if the first news is that it failed.
      ended = futures[i].result() if completion is None else ()
      if not has_begun:
        yield from chunks.first(tokenizer)
        has_begun = True
      first = i * jobs[i].count  # equal for all jobs
      if completion is not None:
        text = texts[i][completion].push(ids)
        yield from chunks.delta(first + completion, text, ids)
        continue
      num_open -= 1
      for number, sampled in enumerate(ended):
        num_tokens += len(sampled.ids)
        text = texts[i][number].end(sampled)
        yield chunks.end(first + number, text, sampled.reason)
    yield from chunks.usage(num_tokens)
  finally:
    _cancel(futures)


def _next(events: queue.SimpleQueue[Any], is_gone: IsGone) -> Any:
  while True:
    try:
      return events.get(timeout=_POLL_SECONDS)
    except queue.Empty:
      if is_gone():
        raise ClientGoneError("the client has hung up") from None


def _sample(
  worker: Submits, jobs: Sequence[SampleJob], is_gone: IsGone
) -> list[list[Sampled]]:
  if jobs[0].max_tokens == 0:
    nothing = Sampled((), StopReason.LENGTH)
    return [[nothing] * job.count for job in jobs]
  return _results(worker.submit(jobs), is_gone)


def _score(
  worker: Submits,
  request: Request,
  sampled: Sequence[Sequence[Sampled]],
  is_gone: IsGone,
) -> list[list[Scored | None]]:
  if not request.score_sizes:
    return [[None] * len(completions) for completions in sampled]
  # The sampler's tokens are scored again in one pass: it does not keep the
  # most probable ones beside them.
  size = max(request.score_sizes)
  futures = worker.submit(
    [
      ScoreJob((*job.prompt, *completion.ids), size)
      for job, completions in zip(request.jobs, sampled, strict=True)
      for completion in completions
    ]
  )
  found = iter(_results(futures, is_gone))
  return [[next(found) for _ in completions] for completions in sampled]


def _results(futures: Sequence[Future], is_gone: IsGone) -> list[Any]:
  try:
    while concurrent.futures.wait(futures, _POLL_SECONDS).not_done:
      if is_gone():
        raise ClientGoneError("the client has hung up")
    return [future.result() for future in futures]
  finally:
    _cancel(futures)


def _cancel(futures: Sequence[Future]) -> None:
  """Cancels what is not done; one that is stays as it is."""
  for future in futures:
    future.cancel()
