"""Sampling completions: prompts are read once, then tokens are chosen.

What is asked for is a number of rows, G for each problem; what is computed at
once is a number of slots. A slot whose completion has ended takes the next row
that waits, on the device and in the same step. `generate` is the whole of it in
one program; the functions that it is made of let a host stop in between, look,
and make room (`engine`).

A completion depends on its key, its prompt, its settings and the parameters
alone: not on the slot, on who is beside it or on when it is taken up.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.experimental import layout

from distil_jax.generation import token_buffer
from distil_jax.models import decoder, decoding, sharding
from distil_jax.ops import fused_linear, sampling
from distil_jax.types import Array, Rollout, StopReason

# Tokens that slots choose before what they chose is sorted in.
JOURNAL_STEPS = 128
# Tokens of the vocabulary whose logits stand together.
_LOGITS_BLOCK = 256
# Tokens of prompts that are read at once, in each part of the batch.
_PREFILL_TOKENS = 16384


@struct.dataclass
class Requests:
  """What is asked for, N rows in each of D parts of the batch.

  Attributes:
    keys: of each row's noise. Shape `[D, N]`.
    last_ids: the last token of each prompt, which the others are read before.
      Shape `[D, P / D]`.
    choice: how each row chooses its tokens. Shape `[D, N]` each.
    max_lengths: of each row's completion, at most T. Shape `[D, N]`.
  """

  keys: jax.Array
  last_ids: jax.Array
  choice: sampling.Choice
  max_lengths: jax.Array


@struct.dataclass
class Slots:
  """W samples in flight in each part. Shape `[D, W]` each.

  Attributes:
    rows: which row it works on.
    homes: where among the prompts in memory its prompt is.
    lengths: tokens chosen so far.
    ids: the newest token: the prompt's last one at first.
    is_alive: whether it works on a row.
    keys, choice, max_lengths: of its row, as in `Requests`.
  """

  rows: jax.Array
  homes: jax.Array
  lengths: jax.Array
  ids: jax.Array
  is_alive: jax.Array
  keys: jax.Array
  choice: sampling.Choice
  max_lengths: jax.Array


@struct.dataclass
class State:
  """A rollout that is under way.

  Attributes:
    requests: what is asked for.
    prompts: in memory.
    rings: of the samples in flight.
    slots: the samples in flight.
    in_flight: which of them reads which prompt.
    completions: of all rows.
    next_row: the first row that waits. Shape `[D]`.
    num_steps: tokens chosen for each slot so far. Scalar.
  """

  requests: Requests
  prompts: decoding.Prompts
  rings: decoding.Rings
  slots: Slots
  in_flight: decoding.Members
  completions: token_buffer.Completions
  next_row: jax.Array
  num_steps: jax.Array

  @property
  def num_rows(self) -> int:
    """N."""
    return self.requests.keys.shape[1]

  @property
  def num_waiting(self) -> jax.Array:
    """Rows that no slot has taken up yet. Shape `[D]`."""
    return self.num_rows - self.next_row

  @property
  def num_alive(self) -> jax.Array:
    """Slots at work. Shape `[D]`."""
    return jnp.sum(self.slots.is_alive, axis=1, dtype=jnp.int32)

  @property
  def longest(self) -> jax.Array:
    """Tokens of the longest completion in flight. Scalar."""
    return jnp.max(jnp.where(self.slots.is_alive, self.slots.lengths, 0))


def identities(names: Sequence[int]) -> np.ndarray:
  """What tells the problems of a batch apart, when sampling.

  Args:
    names: one non-negative number for each problem, below 2**32.

  Returns:
    the name and how often it stood earlier in the batch, so that a problem
    that comes twice gets other samples. uint32, shape `[P, 2]`.
  """
  seen = collections.Counter()
  rows = []
  for name in names:
    rows.append((name, seen[name]))
    seen[name] += 1
  return np.asarray(rows, np.uint32).reshape(-1, 2)


def sample_keys(
  key: jax.Array, identities: Array, group_size: int
) -> jax.Array:
  """One key for each (problem, sample).

  A sample's noise depends on the key and on its own identity alone: not on
  its place in the batch, nor on who else is there.

  Args:
    key: of this step; no two steps may use the same.
    identities: from `identities`. Shape `[P, 2]`.
    group_size: G.

  Returns:
    keys of shape `[P, G]`.
  """
  fold = jax.random.fold_in
  data = jax.random.key_data(key)
  if data.shape[-1] > 2:
    # Batched, other generators than threefry draw all rows from one key.
    key = jax.random.wrap_key_data(data[..., :2], impl="threefry2x32")

  def of_problem(identity):
    problem_key = fold(fold(key, identity[0]), identity[1])
    return jax.vmap(lambda g: fold(problem_key, g))(jnp.arange(group_size))

  return jax.vmap(of_problem)(identities)


def generate(
  params: decoder.Params,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  max_completion_length: int,
  eos_ids: tuple[int, ...],
  pad_id: int,
  choice: sampling.Choice | None = None,
  cache_dtype: Any = None,
) -> Rollout:
  """Samples G completions of each prompt, all at once, in one program.

  Pure; it may stand inside another compiled function. Runs as long as the
  longest completion; see `engine` for more rows than slots.

  Args:
    params: the student's parameters.
    prompt_ids: left-padded, at least one token each. Shape `[P, S]`.
    prompt_mask: shape `[P, S]`.
    keys: from `sample_keys`. Shape `[P, G]`.
    graphdef: from `qwen3.make`.
    max_completion_length: T.
    eos_ids: any of them ends a completion, and is its last token.
    pad_id: what stands after the end.
    choice: how tokens are chosen; scalars, or shape `[P, G]`. None: as the
      policy says, at temperature 1.
    cache_dtype: of keys and values; None for that of the activations.

  Returns:
    the rollout; members of a group stand in a row.
  """
  weights = decoding.by_layer(graphdef, params)
  state = start(
    weights,
    prompt_ids,
    prompt_mask,
    keys,
    choice or sampling.Choice(),
    max_completion_length,
    graphdef=graphdef,
    num_slots=keys.size,
    ring_length=max_completion_length,
    max_completion_length=max_completion_length,
    cache_dtype=cache_dtype,
  )
  state = advance(
    weights,
    state,
    graphdef=graphdef,
    eos_ids=eos_ids,
    journal_length=max_completion_length,
  )
  return finish(state, prompt_ids, prompt_mask, pad_id=pad_id)


def start(
  weights: decoding.Weights,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  choice: sampling.Choice,
  max_lengths: Any,
  *,
  graphdef: nnx.GraphDef,
  num_slots: int,
  ring_length: int,
  max_completion_length: int,
  cache_dtype: Any = None,
) -> State:
  """Reads the prompts; no token is chosen yet.

  Args:
    weights: from `decoding.by_layer`.
    prompt_ids, prompt_mask, keys: as for `generate`.
    choice, max_lengths: of each row; scalars, or shape `[P, G]`.
    graphdef: from `qwen3.make`.
    num_slots: in all parts together; at most P * G.
    ring_length: tokens of a completion that can be looked back at.
    max_completion_length: T.
    cache_dtype: of keys and values; None for that of the activations.
  """
  num_parts = _num_parts(keys.shape[0])

  def of_rows(x):
    rows = jnp.broadcast_to(x, keys.shape).reshape(num_parts, -1)
    return sharding.constrain(rows, "batch", None)

  prompts = _read_prompts(
    weights,
    prompt_ids,
    prompt_mask,
    graphdef=graphdef,
    num_parts=num_parts,
    dtype=cache_dtype,
  )
  width = -(-num_slots // num_parts)
  requests = Requests(
    keys=keys.reshape(num_parts, -1),
    last_ids=prompt_ids[:, -1].reshape(num_parts, -1),
    choice=sampling.Choice(
      temperature=of_rows(jnp.asarray(choice.temperature, jnp.float32)),
      top_k=of_rows(jnp.asarray(choice.top_k, jnp.int32)),
      top_p=of_rows(jnp.asarray(choice.top_p, jnp.float32)),
      min_p=of_rows(jnp.asarray(choice.min_p, jnp.float32)),
    ),
    max_lengths=of_rows(
      jnp.clip(jnp.asarray(max_lengths, jnp.int32), 1, max_completion_length)
    ),
  )
  zeros = jnp.zeros((num_parts, width), jnp.int32)
  slots = Slots(
    rows=zeros,
    homes=zeros,
    lengths=zeros,
    ids=zeros,
    is_alive=zeros.astype(bool),
    **_asked(requests, zeros),
  )
  rows_shape = (num_parts, keys.size // num_parts)
  tokens_shape = (*rows_shape, max_completion_length)
  state = State(
    requests=requests,
    prompts=prompts,
    rings=decoding.empty_rings(prompts, width, ring_length),
    slots=slots,
    in_flight=_members(slots, prompts, group_size=keys.shape[1]),
    completions=token_buffer.Completions(
      ids=jnp.zeros(tokens_shape, jnp.int32),
      log_probs=jnp.zeros(tokens_shape, jnp.float32),
      behavior_log_probs=jnp.zeros(tokens_shape, jnp.float32),
      lengths=jnp.zeros(rows_shape, jnp.int32),
      stop_reasons=jnp.full(rows_shape, StopReason.LENGTH, jnp.int32),
    ),
    next_row=jnp.zeros(num_parts, jnp.int32),
    num_steps=jnp.int32(0),
  )
  return _constrained(state)


def advance(
  weights: decoding.Weights,
  state: State,
  num_steps: Any = None,
  shrink_at: Any = 0,
  *,
  graphdef: nnx.GraphDef,
  eos_ids: tuple[int, ...],
  journal_length: int = JOURNAL_STEPS,
) -> State:
  """Chooses tokens until all rows are done, or the host has to look.

  Args:
    weights: from `decoding.by_layer`.
    state: donate it.
    num_steps: at most so many tokens for each slot; None: `journal_length`.
    shrink_at: stops when nothing waits and no part has more slots at work.
    graphdef: from `qwen3.make`.
    eos_ids: any of them ends a completion.
    journal_length: C, more steps are not taken.

  Returns:
    the state, where all rows are done, or so many steps are taken, or the
    longest completion in flight fills its ring, or it can shrink.
  """
  first = state.num_steps
  ring_length = state.rings.cache.keys[0].shape[2]
  limit = journal_length
  if num_steps is not None:
    limit = jnp.minimum(num_steps, limit)

  def goes_on(carry):
    state, _ = carry
    num_alive, num_waiting = (
      jnp.max(state.num_alive),
      jnp.max(state.num_waiting),
    )
    is_running = (num_alive > shrink_at) | (num_waiting > 0)
    has_room = state.longest < ring_length
    return is_running & has_room & (state.num_steps - first < limit)

  def step(carry):
    state, journal = carry
    state, entry = _step(
      weights, _admit(state), graphdef=graphdef, eos_ids=eos_ids
    )
    t = state.num_steps - first - 1
    journal = jax.tree.map(
      lambda book, x: jax.lax.dynamic_update_index_in_dim(book, x, t, 0),
      journal,
      entry,
    )
    return state, journal

  blank = token_buffer.blank(
    journal_length, *state.slots.rows.shape, num_rows=state.num_rows
  )
  state, journal = jax.lax.while_loop(goes_on, step, (state, blank))
  completions = token_buffer.sorted_in(state.completions, journal)
  return _constrained(dataclasses.replace(state, completions=completions))


def resize(state: State, *, width: int, ring_length: int) -> State:
  """Fewer slots, or longer rings.

  Fewer slots only where no row waits and no part has more at work; prompts
  that nobody reads any longer are let go of then.

  Args:
    state: under way.
    width: slots of each part from now on.
    ring_length: tokens that can be looked back at.
  """
  slots = state.slots
  # Those at work come first, in the order in which they stand.
  order = jnp.argsort(~slots.is_alive, axis=1, stable=True)[:, :width]
  is_shrinking = width < slots.rows.shape[1]
  kept = jax.tree.map(
    lambda x: jax.vmap(lambda x, order: x[order])(x, order), slots
  )
  prompts = state.prompts
  num_prompts = prompts.lengths.shape[1]
  if is_shrinking and width < num_prompts:
    # A prompt for each slot; several of them may be the same.
    prompts = decoding.keep_prompts(prompts, kept.homes)
    first = kept.homes[:, :, None] == kept.homes[:, None, :]
    kept = dataclasses.replace(
      kept, homes=jnp.argmax(first, axis=2).astype(jnp.int32)
    )
  group_size = _group_size(state)
  return _constrained(
    dataclasses.replace(
      state,
      slots=kept,
      in_flight=_members(kept, prompts, group_size=group_size),
      prompts=prompts,
      rings=decoding.resize_rings(state.rings, order, ring_length),
    )
  )


def stop(state: State, lengths: jax.Array) -> State:
  """Ends rows at what the host found in their text.

  Args:
    state: donate it.
    lengths: tokens that the row keeps; negative where nothing was found.
      Shape `[D, N]`.
  """
  is_found = lengths >= 0
  completions = state.completions
  completions = dataclasses.replace(
    completions,
    lengths=jnp.where(is_found, lengths, completions.lengths),
    stop_reasons=jnp.where(
      is_found, StopReason.STOP_STRING, completions.stop_reasons
    ),
  )
  slots = state.slots
  is_stopped = jnp.take_along_axis(is_found, slots.rows, axis=1)
  slots = dataclasses.replace(slots, is_alive=slots.is_alive & ~is_stopped)
  return _constrained(
    dataclasses.replace(state, completions=completions, slots=slots)
  )


def finish(
  state: State, prompt_ids: jax.Array, prompt_mask: jax.Array, *, pad_id: int
) -> Rollout:
  """What has been sampled, as the rest of the package knows it."""
  found = state.completions
  length = found.ids.shape[-1]
  counts = jnp.arange(length)[None, None] < found.lengths[..., None]

  def flat(x):
    x = x.reshape(-1, *x.shape[2:])
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

  return Rollout(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    completion_ids=flat(jnp.where(counts, found.ids, pad_id)),
    completion_mask=flat(counts.astype(jnp.int32)),
    log_probs=flat(jnp.where(counts, found.log_probs, 0.0)),
    behavior_log_probs=flat(jnp.where(counts, found.behavior_log_probs, 0.0)),
    stop_reasons=flat(found.stop_reasons),
  )


def _num_parts(num_problems: int) -> int:
  """Into how many parts the batch is cut; each looks after its own rows."""
  num_shards = sharding.num_shards("batch")
  return num_shards if num_problems % num_shards == 0 else 1


def _read_prompts(weights, ids, mask, *, graphdef, num_parts, dtype):
  """All but the last token of each prompt, some prompts at a time."""
  dtype = dtype or weights["embedding"].dtype
  if ids.shape[1] > 1:
    ids, mask = ids[:, :-1], mask[:, :-1]
  else:
    mask = jnp.zeros_like(mask)

  def read(ids, mask):
    return decoding.prefill(
      graphdef, weights, ids, mask, num_parts=num_parts, dtype=dtype
    )

  size = ids.shape[0] // num_parts
  at_once = max(1, _PREFILL_TOKENS // ids.shape[1])
  count = next(
    n for n in range(1, size + 1) if size % n == 0 and size // n <= at_once
  )
  if count == 1:
    return read(ids, mask)

  def cut(x):
    parts = x.reshape(num_parts, count, -1, x.shape[-1])
    pieces = jnp.swapaxes(parts, 0, 1).reshape(count, -1, x.shape[-1])
    return sharding.constrain(pieces, None, "batch", None)

  def joined(x):
    parts = x.reshape(count, num_parts, -1, *x.shape[2:])
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *x.shape[2:])

  pieces = jax.lax.map(lambda piece: read(*piece), (cut(ids), cut(mask)))
  return decoding.Prompts(
    cache=jax.tree.map(joined, pieces.cache),
    lengths=joined(pieces.lengths.reshape(count, -1)).reshape(num_parts, -1),
  )


def _admit(state: State) -> State:
  """Gives the rows that wait to the slots that are free."""
  slots, requests = state.slots, state.requests
  num_rows, group_size = state.num_rows, _group_size(state)
  is_free = ~slots.is_alive
  order = jnp.cumsum(is_free, axis=1, dtype=jnp.int32) - 1
  rows = state.next_row[:, None] + order
  is_new = is_free & (rows < num_rows)

  def admit():
    # Rows wait only while all prompts are in memory, in their order.
    kept_rows = jnp.where(is_new, rows, slots.rows)
    problems = kept_rows // group_size
    ids = jnp.take_along_axis(requests.last_ids, problems, axis=1)
    filled = Slots(
      rows=kept_rows,
      homes=jnp.where(is_new, problems, slots.homes),
      lengths=jnp.where(is_new, 0, slots.lengths),
      ids=jnp.where(is_new, ids, slots.ids),
      is_alive=slots.is_alive | is_new,
      **_asked(requests, kept_rows),
    )
    in_flight = _members(filled, state.prompts, group_size=group_size)
    return filled, in_flight

  slots, in_flight = jax.lax.cond(
    jnp.any(is_new), admit, lambda: (slots, state.in_flight)
  )
  return dataclasses.replace(
    state,
    slots=slots,
    in_flight=in_flight,
    next_row=state.next_row
    + jnp.sum(is_new, axis=1, dtype=state.next_row.dtype),
  )


def _asked(requests: Requests, rows: jax.Array) -> dict[str, Any]:
  """What is asked for in some rows of each part. Shape of `rows` each."""

  def of_slots(x):
    return jax.vmap(lambda x, rows: x[rows])(x, rows)

  return {
    "keys": of_slots(requests.keys),
    "choice": jax.tree.map(of_slots, requests.choice),
    "max_lengths": of_slots(requests.max_lengths),
  }


def _group_size(state: State) -> int:
  return state.num_rows // state.requests.last_ids.shape[1]


def _members(slots: Slots, prompts, *, group_size: int) -> decoding.Members:
  return decoding.members(
    slots.homes,
    slots.is_alive,
    num_prompts=prompts.lengths.shape[1],
    num_lanes=min(group_size, slots.rows.shape[1]),
  )


def _step(
  weights, state: State, *, graphdef, eos_ids
) -> tuple[State, token_buffer.Journal]:
  """One token for every slot at work, and what to write down of it."""
  slots = state.slots
  hidden, rings = decoding.decode(
    graphdef,
    weights,
    slots.ids,
    slots.lengths,
    slots.homes,
    state.in_flight,
    state.prompts,
    state.rings,
  )
  ids, log_probs, behavior_log_probs = sampling.choose(
    _logits(weights, hidden),
    jax.vmap(jax.vmap(_uniform))(slots.keys, slots.lengths),
    slots.choice,
    num_vocab_shards=sharding.num_shards("vocab"),
  )
  is_end = jnp.isin(ids, jnp.asarray(eos_ids, jnp.int32))
  lengths = slots.lengths + 1
  is_full = lengths >= slots.max_lengths
  entry = token_buffer.Journal(
    rows=jnp.where(slots.is_alive, slots.rows, state.num_rows),
    ages=slots.lengths,
    ids=ids,
    log_probs=log_probs,
    behavior_log_probs=behavior_log_probs,
    stop_reasons=jnp.where(is_end, StopReason.EOS, StopReason.LENGTH).astype(
      jnp.int32
    ),
  )
  slots = dataclasses.replace(
    slots,
    ids=ids,
    lengths=lengths,
    is_alive=slots.is_alive & ~is_end & ~is_full,
  )
  state = dataclasses.replace(
    state, rings=rings, slots=slots, num_steps=state.num_steps + 1
  )
  return state, entry


def _logits(weights: decoding.Weights, hidden: jax.Array) -> jax.Array:
  """Of the next token of each sample.

  A tied embedding is read as it lies, block by block; a product that turns it
  round is slower by a quarter on a CPU.

  Args:
    weights: from `decoding.by_layer`.
    hidden: shape `[D, W, D']`.

  Returns:
    float32, shape `[D, W, V]`.
  """
  rows = hidden.shape[:-1]
  embedding = weights["embedding"]
  vocab_size = embedding.shape[0]
  block = _LOGITS_BLOCK * sharding.num_shards("vocab")
  if "unembedding" in weights or vocab_size % block:
    return fused_linear.logits(hidden, decoder.unembedding(weights))
  blocks = embedding.reshape(-1, _LOGITS_BLOCK, embedding.shape[-1])
  products = jnp.einsum(
    "dwe,nve->ndwv", hidden, blocks, preferred_element_type=jnp.float32
  )
  logits = jnp.moveaxis(products, 0, 2).reshape(*rows, vocab_size)
  # Turned round once, not again for each look at them (a seventh of a step).
  in_order = layout.Layout(tuple(range(logits.ndim)))
  return layout.with_layout_constraint(logits, in_order)


def _uniform(key, t):
  return jax.random.uniform(jax.random.fold_in(key, t), dtype=jnp.float32)


def _constrained(state: State) -> State:
  """Each part of the batch where its rows are."""

  def place(x):
    return sharding.constrain(x, "batch", *(None,) * (x.ndim - 1))

  return dataclasses.replace(
    state,
    requests=jax.tree.map(place, state.requests),
    slots=jax.tree.map(place, state.slots),
    in_flight=jax.tree.map(place, state.in_flight),
    completions=jax.tree.map(place, state.completions),
    next_row=place(state.next_row),
  )
