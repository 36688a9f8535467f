"""Runs a rollout from the host: looks at it now and then, and makes room.

The device samples (`sampler.advance`) until the host has to decide something:
the KV cache doubles as completions get longer, slots that no row needs any
longer are given up, and rows whose text contains a stop string are ended. All
processes see the same numbers, and so decide the same.

Each pair of a number of slots and a length of the KV cache is one compiled
program. There are few, because both change in logarithmically many steps.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distil_jax.generation import (
  finished_rows,
  prefill,
  sampler,
  sampling_weights,
)
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.sampler_state import SamplerSizes, SamplerState
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.generation.stop_strings import StopStringSearch
from distil_jax.generation.usage import (
  Listener,
  OnFinished,
  Report,
  Usage,
  Watch,
  no_report,
)
from distil_jax.models import cached_forward, layers, sharding
from distil_jax.models.decoder_config import LoRA
from distil_jax.types import Rollout

# Tokens that the KV cache can hold at first.
FIRST_CACHE_LENGTH = 64
# Decode steps between two looks of the host. It looks more often if it has text
# to search, because slots are wasted on rows that should have ended.
_STEPS, _STEPS_WITH_STOP = sampler.BUFFER_STEPS, 16


class Engine:
  """Samples completions of prompts, as many at once as there are slots."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    config: EngineConfig | None = None,
    *,
    eos_ids: Sequence[int],
    pad_id: int,
    decode: Callable[[list[int]], str] | None = None,
    special_ids: Mapping[str, int] | None = None,
    adapters: LoRA | None = None,
  ):
    """Prepares the engine; nothing is compiled yet.

    Args:
      graphdef: From `decoder.make`, without `adapters`.
      config: Slots, type of the KV cache and mesh; None means the defaults.
      eos_ids: Each of them ends a completion, as its last token.
      pad_id: Fills the completions after their end.
      decode: Turns token ids into text; needed to find stop strings.
      special_ids: Tokens without text, by the stop strings that mean them.
      adapters: Those of the parameters, into which they are merged once a call;
        None means that there are none.
    """
    self.config = config or EngineConfig()
    self._graphdef = graphdef
    self._eos_ids = tuple(eos_ids)
    self._pad_id = pad_id
    self._decode = decode
    self._special_ids = special_ids or {}
    self._adapters = adapters
    self._programs: set[tuple[int, ...]] = set()

  def __call__(
    self,
    params: layers.Params,
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: SamplingParams,
    max_lengths: Any = None,
    *,
    report: Report = no_report,
    on_finished: OnFinished | None = None,
  ) -> tuple[Rollout, Usage]:
    """Samples G completions of each prompt.

    Args:
      params: Parameters of the student.
      prompt_ids: Left-padded, at least one token each. Shape `[P, S]`.
      prompt_mask: 1 where the token counts. Shape `[P, S]`.
      keys: From `random_keys.sample_keys`. Shape `[P, G]`.
      sampling: How tokens are chosen and where completions end. Only another
        `max_tokens` needs another program.
      max_lengths: Most tokens of each completion, up to T; a scalar, or shape
        `[P, G]`. None means T.
      report: Called with the number of tokens and of completions that are done.
      on_finished: Called once for each row of this process, while others are
        still sampled: with its number among them, and its tokens.

    Returns:
      The rollout, with the completions of a problem next to each other, and
      what it took.

    Raises:
      ValueError: A length is out of its range, or there are stop strings and no
        `decode`.
    """
    return self.sample(
      self.weights(params),
      prompt_ids,
      prompt_mask,
      keys,
      sampling,
      max_lengths,
      listener=Listener(report, on_finished),
    )

  def sample(
    self,
    weights: cached_forward.Weights,
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    sampling: SamplingParams,
    max_lengths: Any = None,
    *,
    listener: Listener | None = None,
  ) -> tuple[Rollout, Usage]:
    """Samples with weights that are prepared already; see `__call__`.

    Args:
      weights: From `weights`; they serve any number of calls.
      prompt_ids, prompt_mask, keys, sampling, max_lengths: As for `__call__`.
      listener: Who is told what; None means nobody.

    Returns:
      As `__call__`.
    """
    if sampling.stop and self._decode is None:
      raise ValueError(
        f"stop={sampling.stop!r} needs decode, which turns ids to text"
      )
    with self._mesh_context():
      state = self._start(
        weights, prompt_ids, prompt_mask, keys, sampling, max_lengths
      )
      state, usage = self._sample(
        weights, state, sampling, listener or Listener()
      )
      sampled = _finish(state, prompt_ids, prompt_mask, pad_id=self._pad_id)
    return sampled, usage

  def weights(self, params: layers.Params) -> cached_forward.Weights:
    """Returns the parameters as they are sampled from, on the engine's mesh."""
    return sampling_weights.prepare(
      self._graphdef, params, adapters=self._adapters, mesh=self.config.mesh
    )

  def _mesh_context(self):
    if self.config.mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self.config.mesh)

  def _start(self, weights, ids, mask, keys, sampling, max_lengths):
    length = sampling.max_tokens
    num_slots = min(self.config.num_slots or keys.size, keys.size)
    # Reading an array of the device would wait for it. Prefill clips it
    # instead.
    if max_lengths is not None and not isinstance(max_lengths, jax.Array):
      limits = np.asarray(max_lengths)
      if limits.min() < 1 or limits.max() > length:
        raise ValueError(
          f"max_lengths from {limits.min()} to {limits.max()} must be in 1.."
          f"max_tokens={length}"
        )
    return _start(
      weights,
      ids,
      mask,
      keys,
      sampling.arrays(),
      length if max_lengths is None else max_lengths,
      graphdef=self._graphdef,
      sizes=SamplerSizes(
        num_slots=num_slots,
        cache_length=min(FIRST_CACHE_LENGTH, length),
        max_completion_length=length,
        cache_dtype=self.config.cache_dtype
        or sampling_weights.cache_dtype(weights),
      ),
    )

  def _sample(
    self,
    weights: cached_forward.Weights,
    state: SamplerState,
    sampling: SamplingParams,
    listener: Listener,
  ) -> tuple[SamplerState, Usage]:
    """Samples until all rows are done."""
    finished = search = None
    if listener.on_finished is not None:
      finished = finished_rows.FinishedRows(listener.on_finished, state)
    if sampling.stop:
      assert self._decode is not None
      search = StopStringSearch(sampling.stop, self._decode, self._special_ids)
    watch = listener.watch
    num_steps_at_once = min(
      _STEPS_WITH_STOP if search else _STEPS,
      watch.num_steps if watch else _STEPS,
    )
    num_parts, width = state.slots.rows.shape
    widths = ladder(width)
    cache_length = state.cache_length
    num_steps = num_slot_steps = peak_bytes = 0
    while True:
      narrower = [w for w in widths if w < width]
      peak_bytes = max(peak_bytes, cache_bytes(state))
      self._programs.add(
        (num_parts, width, cache_length, state.prompts.lengths.size)
      )
      # Both limits are arrays of one type, so that other values need no other
      # program. The device returns as soon as the next number of slots would
      # do.
      state = _advance(
        weights,
        state,
        np.int32(num_steps_at_once),
        np.int32(max(narrower, default=0)),
        graphdef=self._graphdef,
        eos_ids=self._eos_ids,
      )
      # Dispatch is asynchronous: the host reports the rows of the last look
      # while the device already samples on.
      if finished is not None:
        finished.report()
      # Rows are ended before the host counts, so that it counts them as ended.
      if search is not None:
        state = _end_at_stop_strings(state, search)
      if watch is not None:
        state = _end_watched(state, watch)
      # The host waits for the device here.
      by_part = {name: np.asarray(x) for name, x in _look(state).items()}
      # The device gathers before the next `_advance` takes the state's buffers.
      if finished is not None:
        finished.gather(state, by_part["num_ended"])
      look = {name: int(x.sum()) for name, x in by_part.items()}
      num_slot_steps += (look["num_steps"] - num_steps) * num_parts * width
      num_steps = look["num_steps"]
      listener.report(look["num_tokens"], look["num_ended"])
      if not look["num_alive"] and not look["num_waiting"]:
        break
      fitting = [w for w in narrower if w >= look["num_alive"]]
      shape = (width, cache_length)
      # As long as rows wait, a free slot is filled in the next step.
      if not look["num_waiting"]:
        width = min(fitting, default=width)
      # The device stops at a full cache, so it grows before the next call.
      if look["longest"] >= cache_length:
        cache_length = min(2 * cache_length, sampling.max_tokens)
      if (width, cache_length) != shape:
        # The old and the new KV cache are in memory together for a moment.
        before = sum(x.nbytes for x in jax.tree.leaves(state.kv_cache.cache))
        state = _resize(state, width=width, cache_length=cache_length)
        peak_bytes = max(peak_bytes, before + cache_bytes(state))
    # The rows of the last look have no later turn of the loop to report them.
    if finished is not None:
      finished.report()
    usage = Usage(
      num_tokens=look["num_tokens"],
      num_steps=num_steps,
      num_slot_steps=num_slot_steps,
      cache_bytes=peak_bytes,
      num_programs=len(self._programs),
    )
    return state, usage


def ladder(width: int) -> list[int]:
  """Returns the numbers of slots that a rollout steps down through.

  They fall by a quarter, then by a third, and so on. Halving alone would leave
  a quarter of the slots idle on average.
  """
  steps = [width]
  while width > 1:
    steps += [-(-3 * width // 4), -(-width // 2)]
    width = -(-width // 2)
  return sorted(set(steps), reverse=True)


def cache_bytes(state: SamplerState) -> int:
  """Returns the bytes of all keys and values, on all devices together."""
  arrays = jax.tree.leaves((state.prompts.cache, state.kv_cache.cache))
  return sum(x.nbytes for x in arrays)


def _end_at_stop_strings(
  state: SamplerState, search: StopStringSearch
) -> SamplerState:
  """Ends the rows whose text contains a stop string."""
  ends = search.find(*(np.asarray(x) for x in _tokens(state)))
  # Most looks find nothing, which saves a program.
  return _stop(state, ends) if (ends >= 0).any() else state


def _end_watched(state: SamplerState, watch: Watch) -> SamplerState:
  """Ends the rows that whoever watches wants no more of."""

  def read() -> tuple[np.ndarray, np.ndarray]:
    ids, lengths = (np.asarray(x) for x in _tokens(state))
    return ids.reshape(lengths.size, -1), lengths.reshape(-1)

  ends = watch.look(read)
  if ends is None:
    return state
  shape = state.completions.lengths.shape
  return _stop(state, ends.astype(np.int32).reshape(shape))


def _look_at(state: SamplerState) -> dict[str, jax.Array]:
  """Returns the numbers by which the host decides.

  Scalars, except for `num_ended`, which has a value for each part.
  """
  # Every process sees the numbers of all parts: rows are gathered by a program
  # of all devices, so that all processes must call it equally often.
  num_ended = state.num_rows - state.num_waiting - state.num_alive
  return {
    "num_alive": jnp.max(state.num_alive),
    "num_waiting": jnp.max(state.num_waiting),
    "longest": state.longest,
    "num_steps": state.num_steps,
    "num_tokens": jnp.sum(state.completions.lengths),
    "num_ended": _replicate(num_ended),
  }


def _tokens_of(state: SamplerState) -> tuple[jax.Array, jax.Array]:
  """Returns tokens and lengths of all rows, on every device."""
  completions = state.completions
  return _replicate(completions.ids), _replicate(completions.lengths)


def _replicate(x: jax.Array) -> jax.Array:
  return sharding.constrain(x, *(None,) * x.ndim)


# Compiled functions are shared by all engines, so that engines with equal
# shapes share their programs.
_start = jax.jit(prefill.prefill, static_argnames=("graphdef", "sizes"))
# A donated state is updated in place. Its KV cache is the largest array of a
# rollout, and a second one would often not fit.
_advance = jax.jit(
  sampler.advance, static_argnames=("graphdef", "eos_ids"), donate_argnums=1
)
# The result has other shapes, so donating the state would free nothing.
_resize = jax.jit(sampler.resize, static_argnames=("width", "cache_length"))
_stop = jax.jit(sampler.stop, donate_argnums=0)
_finish = jax.jit(sampler.finish, static_argnames="pad_id")
_look, _tokens = jax.jit(_look_at), jax.jit(_tokens_of)
