"""Runs a rollout from the host: looks now and then, and makes room.

The device samples (`rollout.advance`) until something is to be decided here:
rings grow in steps of two as completions get longer, slots that nobody needs
any longer are given up, rows whose text contains a stop string are ended. All
processes see the same numbers, and so decide the same.

Each width and each length of a ring that comes up is one compiled program.
There are few: both go in steps whose number is logarithmic.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distil_jax.generation import finished_rows, prefill, sampler, sampler_state
from distil_jax.models import decoder, decoder_config, decoding, sharding
from distil_jax.ops import sampling
from distil_jax.types import Rollout

Report = Callable[[int, int], None]


FIRST_RING = 64
# Tokens between two looks of the host; fewer where it has text to search.
_STEPS, _STEPS_WITH_STOP = sampler.BUFFER_STEPS, 16
# A token of a byte-level vocabulary has a byte at least; some have no text.
_SPARE_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class Usage:
  """What a rollout took.

  Attributes:
    num_tokens: that count.
    num_steps: tokens chosen one after the other.
    num_slot_steps: tokens that could have been chosen: at each step one for
      each slot that was computed.
    cache_bytes: of keys and values at their largest, all devices together.
    num_programs: compiled for this engine so far to advance a rollout.
  """

  num_tokens: int
  num_steps: int
  num_slot_steps: int
  cache_bytes: int
  num_programs: int

  @property
  def slot_efficiency(self) -> float:
    """Share of the slots' steps that gave a token that counts."""
    return self.num_tokens / max(self.num_slot_steps, 1)


class Engine:
  """Samples completions of prompts, as many at once as there are slots."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    *,
    max_completion_length: int,
    eos_ids: Sequence[int],
    pad_id: int,
    num_slots: int | None = None,
    cache_dtype: str | None = None,
    stop: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Nothing is compiled yet.

    Args:
      graphdef: from `qwen3.make`.
      max_completion_length: T.
      eos_ids: any of them ends a completion, and is its last token.
      pad_id: what stands after the end.
      num_slots: samples in flight at once; None: all that are asked for.
      cache_dtype: of keys and values; None: bfloat16 on accelerators, that of
        the activations on a CPU.
      stop: strings; the first token with which the text contains one of them
        is the last of a completion.
      decode: ids to text; needed with `stop`.
      mesh: where to sample. Parameters that live on another mesh of the same
        devices are brought here at each call. None: the mesh in use.
    """
    if num_slots is not None and num_slots < 1:
      raise ValueError(f"num_slots={num_slots} must be positive")
    if isinstance(stop, str) or not all(isinstance(x, str) and x for x in stop):
      raise ValueError(f"stop={stop!r} must be a list of strings, none empty")
    if cache_dtype is not None:
      cache_dtype = decoder_config.float_name("cache_dtype", cache_dtype)
    if stop and decode is None:
      raise ValueError(f"stop={stop!r} needs decode, which turns ids to text")
    self._graphdef = graphdef
    self._length = max_completion_length
    self._eos_ids = tuple(eos_ids)
    self._pad_id = pad_id
    self._num_slots = num_slots
    self._cache_dtype = cache_dtype
    self._stop = tuple(stop)
    self._decode = decode
    self._mesh = mesh
    self._programs: set[tuple[int, ...]] = set()

  def __call__(
    self,
    params: decoder.Params,
    prompt_ids: jax.Array,
    prompt_mask: jax.Array,
    keys: jax.Array,
    choice: sampling.Choice | None = None,
    max_lengths: Any = None,
    *,
    report: Report = lambda num_tokens, num_done: None,
    ended: finished_rows.OnFinished | None = None,
  ) -> tuple[Rollout, Usage]:
    """Samples G completions of each prompt.

    Args:
      params: the student's.
      prompt_ids: left-padded, at least one token each. Shape `[P, S]`.
      prompt_mask: shape `[P, S]`.
      keys: from `rollout.sample_keys`. Shape `[P, G]`.
      choice: how tokens are chosen; scalars, or shape `[P, G]` each. Other
        values need no other program. None: as the policy says.
      max_lengths: of each completion, at most T; a scalar, or shape `[P, G]`.
        None: T.
      report: told how many tokens and how many completions are done.
      ended: told of each row of this process, while others are still sampled:
        its place among them, and its tokens. All are told by the end.

    Returns:
      the rollout, members of a group in a row, and what it took.
    """
    weights = self.weights(params)
    with self._context():
      state = self._start(
        weights, prompt_ids, prompt_mask, keys, choice, max_lengths
      )
      state, usage = self._sample(weights, state, report, ended)
      sampled = _finish(state, prompt_ids, prompt_mask, pad_id=self._pad_id)
    return sampled, usage

  def weights(self, params: decoder.Params) -> decoding.Weights:
    """The parameters as they are sampled from, on the mesh of this engine."""
    # What stays as it is is not passed through: it would be copied.
    same = {k: v for k, v in params.items() if k != "layers"}
    found = {**same, **_changed_weights(self._graphdef, params)}
    mesh = self._mesh
    if mesh is None:
      return found
    return jax.tree.map(_brought, found, decoding.shardings(mesh, found))

  def _context(self):
    if self._mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self._mesh)

  def _start(self, weights, ids, mask, keys, choice, max_lengths):
    num_slots = min(self._num_slots or keys.size, keys.size)
    if max_lengths is not None and not isinstance(max_lengths, jax.Array):
      limits = np.asarray(max_lengths)
      if limits.min() < 1 or limits.max() > self._length:
        raise ValueError(
          f"max_lengths from {limits.min()} to {limits.max()} must be in 1.."
          f"max_completion_length={self._length}"
        )
    return _start(
      weights,
      ids,
      mask,
      keys,
      choice or sampling.Choice(),
      self._length if max_lengths is None else max_lengths,
      graphdef=self._graphdef,
      num_slots=num_slots,
      cache_length=min(FIRST_RING, self._length),
      max_completion_length=self._length,
      cache_dtype=self._cache_dtype or _cache_dtype(weights),
    )

  def _sample(
    self,
    weights: decoding.Weights,
    state: sampler_state.SamplerState,
    report: Report,
    ended: finished_rows.OnFinished | None,
  ) -> tuple[sampler_state.SamplerState, Usage]:
    """Until all rows are done."""
    ends = None if ended is None else finished_rows.FinishedRows(ended, state)
    searched = np.zeros(state.completions.lengths.shape, np.int32)
    num_parts, width = state.slots.rows.shape
    widths = ladder(width)
    ring = state.kv_cache.cache.keys[0].shape[2]
    num_steps = num_slot_steps = largest = 0
    while True:
      narrower = [w for w in widths if w < width]
      largest = max(largest, cache_bytes(state))
      self._programs.add((num_parts, width, ring, state.prompts.lengths.size))
      state = _advance(
        weights,
        state,
        np.int32(_STEPS_WITH_STOP if self._stop else _STEPS),
        np.int32(max(narrower, default=0)),
        graphdef=self._graphdef,
        eos_ids=self._eos_ids,
      )
      if ends is not None:
        ends.tell()  # while the device goes on
      if self._stop:
        state = self._end_at_stop_strings(state, searched)
      seen = {name: np.asarray(x) for name, x in _look(state).items()}
      if ends is not None:
        ends.pick(state, seen["num_ended"])
      look = {name: int(x.sum()) for name, x in seen.items()}
      num_slot_steps += (look["num_steps"] - num_steps) * num_parts * width
      num_steps = look["num_steps"]
      report(look["num_tokens"], look["num_ended"])
      if not look["num_alive"] and not look["num_waiting"]:
        break
      fitting = [w for w in narrower if w >= look["num_alive"]]
      shape = (width, ring)
      if not look["num_waiting"]:
        width = min(fitting, default=width)
      if look["longest"] >= ring:
        ring = min(2 * ring, self._length)
      if (width, ring) != shape:
        # Old and new rings are there together for a moment.
        before = sum(x.nbytes for x in jax.tree.leaves(state.kv_cache.cache))
        state = _resize(state, width=width, cache_length=ring)
        largest = max(largest, before + cache_bytes(state))
    if ends is not None:
      ends.tell()
    usage = Usage(
      num_tokens=look["num_tokens"],
      num_steps=num_steps,
      num_slot_steps=num_slot_steps,
      cache_bytes=largest,
      num_programs=len(self._programs),
    )
    return state, usage

  def _end_at_stop_strings(
    self, state: sampler_state.SamplerState, searched: np.ndarray
  ) -> sampler_state.SamplerState:
    """Ends the rows whose text contains a stop string.

    Args:
      state: under way.
      searched: tokens of each row that have been looked at; brought up to
        date. Shape `[D, N]`.
    """
    ids, lengths = (np.asarray(x) for x in _written(state))
    ends = np.full(lengths.shape, -1, np.int32)
    for row in zip(*np.nonzero(lengths > searched), strict=True):
      end = self._stop_of(ids[row], int(searched[row]), int(lengths[row]))
      if end is not None:
        ends[row] = end
    searched[...] = lengths
    return _stop(state, ends) if (ends >= 0).any() else state

  def _stop_of(self, ids: np.ndarray, first: int, last: int) -> int | None:
    """With how many tokens the text first contains a stop string."""
    longest = max(len(text.encode()) for text in self._stop)
    start = max(0, first - longest - _SPARE_TOKENS)
    if not self._is_in(ids[start:last]):
      return None
    return next(
      (n for n in range(first + 1, last + 1) if self._is_in(ids[:n])), None
    )

  def _is_in(self, ids: np.ndarray) -> bool:
    assert self._decode is not None
    text = self._decode(ids.tolist())
    return any(string in text for string in self._stop)


def ladder(width: int) -> list[int]:
  """The widths that a rollout steps down: by a quarter, then by a third.

  Halves alone would leave a quarter of the slots idle on average.
  """
  steps = [width]
  while width > 1:
    steps += [-(-3 * width // 4), -(-width // 2)]
    width = -(-width // 2)
  return sorted(set(steps), reverse=True)


def cache_bytes(state: sampler_state.SamplerState) -> int:
  """Of the keys and values in memory, all devices together."""
  arrays = jax.tree.leaves((state.prompts.cache, state.kv_cache.cache))
  return sum(x.nbytes for x in arrays)


def _cache_dtype(weights: decoding.Weights) -> str:
  array = weights["embedding"]
  platform = next(iter(array.sharding.device_set)).platform
  return array.dtype.name if platform == "cpu" else "bfloat16"


def _changed(graphdef: nnx.GraphDef, params: decoder.Params) -> dict[str, Any]:
  """Of the weights those that are not parameters as they are."""
  return {
    name: value
    for name, value in decoding.by_layer(graphdef, params).items()
    if name == "layers" or value.dtype != params[name].dtype
  }


def _brought(x: jax.Array, place: jax.sharding.NamedSharding) -> jax.Array:
  """Lays an array out on another mesh; nothing passes through the host.

  Between meshes of the same devices `device_put` copies through the host in
  some versions of jax; a program does in none.
  """
  here = x.sharding
  if (
    isinstance(here, jax.sharding.NamedSharding)
    and _devices_in_order(here) == _devices_in_order(place)
    # A program would copy what is there already.
    and not here.is_equivalent_to(place, x.ndim)
  ):
    return jax.jit(_same, out_shardings=place)(x)
  return jax.device_put(x, place)


def _devices_in_order(place: jax.sharding.NamedSharding) -> list[int]:
  devices = place.mesh.devices
  assert devices is not None  # None belongs to an abstract mesh
  return [device.id for device in devices.flat]


def _same(x: jax.Array) -> jax.Array:
  return x


def _look_at(state: sampler_state.SamplerState) -> dict[str, jax.Array]:
  """What the host decides by. Scalars, but for `num_ended` of each part."""
  num_ended = state.num_rows - state.num_waiting - state.num_alive
  return {
    "num_alive": jnp.max(state.num_alive),
    "num_waiting": jnp.max(state.num_waiting),
    "longest": state.longest,
    "num_steps": state.num_steps,
    "num_tokens": jnp.sum(state.completions.lengths),
    "num_ended": _everywhere(num_ended),
  }


def _whole(state: sampler_state.SamplerState) -> tuple[jax.Array, jax.Array]:
  """Tokens and lengths of all rows, on every device."""
  found = state.completions
  return _everywhere(found.ids), _everywhere(found.lengths)


def _everywhere(x: jax.Array) -> jax.Array:
  return sharding.constrain(x, *(None,) * x.ndim)


# One set of programs for all engines: those of equal shapes share them.
_changed_weights = jax.jit(_changed, static_argnums=0)
_start = jax.jit(
  prefill.prefill,
  static_argnames=(
    "graphdef",
    "num_slots",
    "cache_length",
    "max_completion_length",
    "cache_dtype",
  ),
)
_advance = jax.jit(
  sampler.advance, static_argnames=("graphdef", "eos_ids"), donate_argnums=1
)
_resize = jax.jit(sampler.resize, static_argnames=("width", "cache_length"))
_stop = jax.jit(sampler.stop, donate_argnums=0)
_finish = jax.jit(sampler.finish, static_argnames="pad_id")
_look, _written = jax.jit(_look_at), jax.jit(_whole)
