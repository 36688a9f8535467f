"""Answers jobs in one thread that owns the devices, many at a time.

Handlers of requests run in threads of their own and wait here. What waits while
the devices are busy makes the next batch. Numbers of rows and lengths are
rounded up to a few sizes, so that after each has occurred once nothing is
compiled any more.
"""

import collections
import contextlib
import functools
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.data import padding
from distil_jax.generation import engine, random_keys
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.policy import Policy
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.generation.serving import scoring
from distil_jax.generation.serving.jobs import (
  Closed,
  Job,
  OnTokens,
  Sampled,
  SampleJob,
  Scored,
  ScoreJob,
)
from distil_jax.generation.serving.watching import Waiting, watch
from distil_jax.generation.usage import Listener
from distil_jax.types import StopReason

# Tokens, padding included, of the sequences that are scored at once.
_SCORED_TOKENS = 16384
_SHORTEST = 16


class Worker:
  """Runs jobs on a policy; a context manager, whose thread ends with it."""

  def __init__(
    self,
    policy: Policy,
    *,
    mesh: jax.sharding.Mesh | None = None,
    max_batch: int = 16,
    cache_dtype: str | None = None,
    seed: int = 0,
  ):
    """Prepares the worker; nothing is compiled yet.

    Args:
      policy: Is asked.
      mesh: The mesh on which its parameters lie; None means one device.
      max_batch: Completions sampled, or sequences scored, at once.
      cache_dtype: Type of keys and values, see `EngineConfig`.
      seed: Of completions that have no seed of their own.
    """
    self.policy = policy
    self._mesh = mesh
    self._max_batch = max_batch
    self._seeds = np.random.default_rng(seed)
    self._engine = engine.Engine(
      policy.sampling_graphdef,
      EngineConfig(num_slots=max_batch, cache_dtype=cache_dtype),
      eos_ids=policy.tokenizer.eos_ids,
      pad_id=policy.tokenizer.pad_id,
      decode=policy.tokenizer.decode,
      special_ids=policy.tokenizer.special_ids,
      adapters=policy.config.merged_lora,
    )
    self._weights: Any = None
    self._waiting: collections.deque[Waiting] = collections.deque()
    self._changed = threading.Condition()
    self._is_closed = False
    self._thread = threading.Thread(target=self._run, name="serving")

  def __enter__(self) -> "Worker":
    self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Refuses jobs that wait, and returns when those under way are done."""
    with self._changed:
      self._is_closed = True
      waiting = list(self._waiting)
      self._waiting.clear()
      self._changed.notify_all()
    _fail(waiting, Closed("the server is stopping"))
    self._thread.join()

  def submit(
    self, jobs: Sequence[Job], on_tokens: OnTokens | None = None
  ) -> list[Future]:
    """Returns the future answer of each job: `Scored`, or `Sampled` in a list.

    Jobs that are submitted together are seen together, so that the devices do
    not begin with the first of them alone. One whose future is cancelled is
    not begun, and no more of its tokens are sampled than up to the next look.

    Args:
      jobs: what is asked.
      on_tokens: called in the worker's thread with the number of a job, that of
        a completion, and its new tokens, before the job has its answer.
    """
    waiting = [
      Waiting(job, Future(), on_tokens and functools.partial(on_tokens, i))
      for i, job in enumerate(jobs)
    ]
    with self._changed:
      if not self._is_closed:
        self._waiting.extend(waiting)
        self._changed.notify()
        return [x.future for x in waiting]
    _fail(waiting, Closed("the server is stopping"))
    return [x.future for x in waiting]

  def _run(self) -> None:
    mesh = self._mesh
    context = contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
    with context:
      while batch := self._next_batch():
        try:
          answers: Sequence[Any] = self._answers(batch)
        # Whatever went wrong, the handlers wait, and the next batch may work.
        except Exception as error:
          _fail(batch, error)
          continue
        for waiting, answer in zip(batch, answers, strict=True):
          # Somebody may cancel a job at any time.
          with contextlib.suppress(InvalidStateError):
            waiting.future.set_result(answer)

  def _next_batch(self) -> list[Waiting]:
    """Waits for jobs; returns those that run together, none at the end."""
    with self._changed:
      while not self._drop_cancelled() and not self._is_closed:
        self._changed.wait()
      if not self._waiting:
        return []
      group = _group(self._waiting[0].job)
      chosen, kept, length = [], collections.deque(), 0
      while self._waiting:
        item = self._waiting.popleft()
        job = item.job
        longest = max(length, _length(job))
        is_fitting = (
          _group(job) == group
          and self._is_fitting(job, len(chosen) + 1, longest)
        ) or not chosen
        if is_fitting:
          chosen.append(item)
          length = longest
        else:
          kept.append(item)
      self._waiting = kept
    return chosen

  def _drop_cancelled(self) -> bool:
    """Returns True if jobs are left that somebody waits for."""
    kept = [x for x in self._waiting if not x.future.cancelled()]
    self._waiting = collections.deque(kept)
    return bool(kept)

  def _is_fitting(self, job: Job, count: int, length: int) -> bool:
    """Returns True if so many jobs like this one fit into a batch."""
    if isinstance(job, ScoreJob):
      tokens = size_for(count) * size_for(length, _SHORTEST)
      return count <= self._max_batch and tokens <= _SCORED_TOKENS
    return count * size_for(job.count) <= self._max_batch

  def _answers(self, batch: Sequence[Waiting]) -> Sequence[Any]:
    jobs: Sequence[Any] = [x.job for x in batch]
    if isinstance(jobs[0], ScoreJob):
      return self._score(jobs)
    listener = Listener(watch=watch(batch, size_for(jobs[0].count)))
    return self._sample(jobs, listener)

  def _score(self, jobs: Sequence[ScoreJob]) -> list[Scored]:
    ids, mask = self._padded(
      [job.ids for job in jobs], padding.pad_right, len(jobs)
    )
    policy = self.policy
    found = scoring.score(
      policy.params,
      ids,
      mask,
      graphdef=policy.graphdef,
      size=min(
        size_for(max(job.size for job in jobs)), policy.tokenizer.vocab_size
      ),
    )
    found = [np.asarray(x) for x in found]
    scored = []
    for row, job in enumerate(jobs):
      own, ranks, top_ids, top = (x[row, : len(job.ids) - 1] for x in found)
      size = job.size
      scored.append(Scored(own, ranks, top_ids[:, :size], top[:, :size]))
    return scored

  def _sample(
    self, jobs: Sequence[SampleJob], listener: Listener
  ) -> list[list[Sampled]]:
    group_size = size_for(jobs[0].count)
    rows = size_for(len(jobs))
    ids, mask = self._padded([job.prompt for job in jobs], padding.pad_left)
    # Rows that fill up the batch end after their first token.
    limits = np.ones((rows, group_size), np.int32)
    for row, job in enumerate(jobs):
      limits[row, : job.count] = job.max_tokens
    filled = [*jobs, *[SampleJob((0,))] * (rows - len(jobs))]
    sampling = SamplingParams(
      **{
        name: [getattr(job, name) for job in filled]
        for name in ("temperature", "top_k", "top_p", "min_p")
      },
      stop=jobs[0].stop,
      max_tokens=size_for(int(limits.max())),
    )
    if self._weights is None:
      # Prepared in this thread, where the mesh is set, and once: the engine
      # would copy all layers at each call.
      self._weights = self._engine.weights(self.policy.params)
    rollout, _ = self._engine.sample(
      self._weights,
      jnp.asarray(ids),
      jnp.asarray(mask),
      self._keys(filled, group_size),
      sampling,
      limits,
      listener=listener,
    )
    tokens, counts, reasons = (
      np.asarray(x)
      for x in (
        rollout.completion_ids,
        rollout.completion_mask,
        rollout.stop_reasons,
      )
    )
    return [
      [
        Sampled(
          tuple(tokens[i][counts[i] == 1].tolist()), StopReason(int(reasons[i]))
        )
        for i in range(row * group_size, row * group_size + job.count)
      ]
      for row, job in enumerate(jobs)
    ]

  def _keys(self, jobs: Sequence[SampleJob], group_size: int) -> jax.Array:
    """Returns a key for each completion, as `generate` makes it."""
    seeds = [
      self._seeds.integers(2**32) if job.seed is None else job.seed
      for job in jobs
    ]
    # Width and byte order are fixed, so that every machine gives the same.
    names = [
      zlib.crc32(np.asarray(job.prompt, "<i4").tobytes()) for job in jobs
    ]
    identities = [random_keys.identities([name]) for name in names]
    return _keys(np.asarray(seeds, np.uint32), np.stack(identities), group_size)

  def _padded(self, rows, pad, count: int | None = None):
    """Returns ids and mask of a size that few batches do not have."""
    tokenizer, longest = self.policy.tokenizer, max(map(len, rows))
    length = min(
      size_for(longest, _SHORTEST), max(self.policy.config.max_positions, 1)
    )
    filled = [*rows, *[(0,)] * (size_for(count or len(rows)) - len(rows))]
    return pad(filled, max(length, longest), tokenizer.pad_id)


def _fail(waiting: Sequence[Waiting], error: Exception) -> None:
  for x in waiting:
    with contextlib.suppress(InvalidStateError):
      x.future.set_exception(error)


def size_for(count: int, smallest: int = 1) -> int:
  """Returns the next power of two, and `smallest` at least."""
  return max(smallest, 1 << max(count - 1, 0).bit_length())


def _group(job: Job) -> tuple[Any, ...]:
  """Returns what jobs of a batch have in common."""
  if isinstance(job, ScoreJob):
    return ("score", size_for(job.size))
  return ("sample", job.stop, size_for(job.count), size_for(job.max_tokens))


def _length(job: Job) -> int:
  return len(job.ids if isinstance(job, ScoreJob) else job.prompt)


def _keys_of(
  seeds: jax.Array, identities: jax.Array, group_size: int
) -> jax.Array:
  def of_job(seed, identity):
    key = jax.random.key(seed)
    return random_keys.sample_keys(key, identity, group_size)[0]

  return jax.vmap(of_job)(seeds, identities)


_keys = jax.jit(_keys_of, static_argnums=2)
