"""Decoding: one token further for every sample in flight.

Keys and values stand in one buffer a layer, heads before time: this is what a
batched product reads without moving anything. A prompt's are stored once, and
read once a step, for all samples of its group; each sample has a ring of
columns for its own tokens. All rings are written in the same column, so that a
step writes one slice however old its samples are.

Layers are laid out one after the other, where the passes over whole sequences
scan them: a scan would copy a layer's cache each time it takes it out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from distil_jax.models import attention, decoder, sharding

Weights = dict[str, Any]


@struct.dataclass
class KeysValues:
  """Of every layer: a tuple of L arrays each.

  Of prompts `[D * R, K, S, H]`, of completions `[D * W, K, T, H]`, where D is
  the number of parts that the batch is cut into, R the prompts of a part and W
  the samples in flight there. (With an axis of its own for the parts, XLA on a
  CPU would copy them for each product.)
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]


@struct.dataclass
class Prompts:
  """What samples of a group share.

  Attributes:
    cache: column i holds the prompt's i-th token. `[D * R, K, S, H]` a
      layer.
    lengths: how many columns count; may be 0. Shape `[D, R]`.
  """

  cache: KeysValues
  lengths: jax.Array


@struct.dataclass
class Rings:
  """What each sample in flight has for itself.

  Attributes:
    cache: the last columns written, up to `column`. `[D * W, K, T, H]` a
      layer.
    column: where the next token is written. Scalar.
  """

  cache: KeysValues
  column: jax.Array


@struct.dataclass
class Members:
  """Which sample in flight reads which prompt, both ways round.

  Attributes:
    places: of each sample, in a table of M lanes a prompt; R * M and more
      where it is in none. Shape `[D, W]`.
    samples: the sample in each lane; any where there is none. `[D, R * M]`.
  """

  places: jax.Array
  samples: jax.Array


def by_layer(graphdef: nnx.GraphDef, params: decoder.Params) -> Weights:
  """Parameters as decoding wants them: layer by layer, in the compute dtype.

  Cast and cut once for a rollout, not once a token.

  Args:
    graphdef: from `qwen3.make`.
    params: of the network, layers stacked.
  """
  config = decoder.merge(graphdef, params).config

  def cast(path, x):
    # Scales of norms act in float32, here as in the passes over sequences.
    is_scale = path[-1].key.endswith("norm")
    return x if is_scale else x.astype(config.compute_dtype)

  whole = jax.tree_util.tree_map_with_path(cast, params)

  def layer(i):
    return {
      name: sharding.constrain(x[i], *decoder.AXES[name])
      for name, x in whole["layers"].items()
    }

  return {**whole, "layers": tuple(map(layer, range(config.num_layers)))}


def shardings(mesh: jax.sharding.Mesh, weights: Weights) -> Any:
  """`NamedSharding` of each array, same tree."""

  def place(name: str) -> jax.sharding.NamedSharding:
    return sharding.sharding(mesh, *decoder.AXES[name])

  return {
    name: tuple({k: place(k) for k in layer} for layer in value)
    if name == "layers"
    else place(name)
    for name, value in weights.items()
  }


def prefill(
  graphdef: nnx.GraphDef,
  weights: Weights,
  ids: jax.Array,
  mask: jax.Array,
  *,
  num_parts: int,
  dtype: Any,
) -> Prompts:
  """Reads prompts and keeps their keys and values.

  Args:
    graphdef: from `qwen3.make`.
    weights: from `by_layer`.
    ids: shape `[P, S]`.
    mask: 1 where the token counts; a row may have none. Shape `[P, S]`.
    num_parts: D, which divides P.
    dtype: of the keys and values that are kept.
  """
  model, graph = _merge_weights(graphdef, weights)
  ids = decoder.pack(ids, mask)
  angles = model.angles(jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))

  def attend(query, key, value):
    attended = attention.causal(
      query, key, value, implementation=model.config.attention
    )
    return attended, (key, value)

  def heads_first(x):
    return _placed(jnp.swapaxes(x, 1, 2).astype(dtype))

  x = model.embed(ids)
  keys, values = [], []
  for state in weights["layers"]:
    x, (key, value) = nnx.merge(graph, nnx.State(state))(x, angles, attend)
    x = sharding.constrain(x, "batch", None, None)
    keys.append(heads_first(key))
    values.append(heads_first(value))
  return Prompts(
    cache=KeysValues(keys=tuple(keys), values=tuple(values)),
    lengths=jnp.sum(mask, axis=1, dtype=jnp.int32).reshape(num_parts, -1),
  )


def empty_rings(prompts: Prompts, width: int, length: int) -> Rings:
  """Room for samples in flight.

  Args:
    prompts: whose completions they are.
    width: W, samples in flight in each part.
    length: T, tokens of one of them that can be looked back at.
  """
  num_parts = prompts.lengths.shape[0]
  _, num_kv_heads, _, head_size = prompts.cache.keys[0].shape
  shape = (num_parts * width, num_kv_heads, length, head_size)
  return Rings(
    cache=jax.tree.map(
      lambda x: _placed(jnp.zeros(shape, x.dtype)), prompts.cache
    ),
    column=jnp.zeros((), jnp.int32),
  )


def resize_rings(rings: Rings, samples: jax.Array, length: int) -> Rings:
  """Keeps some samples, with more or less to look back at.

  Args:
    rings: of W samples with T columns.
    samples: which to keep. Shape `[D, W']`.
    length: columns from now on; no sample in flight may need more.
  """
  old = rings.cache.keys[0].shape[2]
  # The oldest column first, so that what is new follows what is newest.
  order = (rings.column + jnp.arange(old)) % old
  kept = order[max(old - length, 0) :]

  def resize(buffer):
    taken = jnp.take(_take(buffer, samples), kept, axis=2)
    room = [(0, 0)] * 2 + [(0, length - len(kept)), (0, 0)]
    return _placed(jnp.pad(taken, room))

  return Rings(
    cache=jax.tree.map(resize, rings.cache),
    column=jnp.asarray(len(kept) % length, jnp.int32),
  )


def keep_prompts(prompts: Prompts, which: jax.Array) -> Prompts:
  """Those that are still read. `which` has shape `[D, R']`."""
  return Prompts(
    cache=jax.tree.map(lambda x: _placed(_take(x, which)), prompts.cache),
    lengths=jnp.take_along_axis(prompts.lengths, which, axis=1),
  )


def members(
  homes: jax.Array, is_alive: jax.Array, *, num_prompts: int, num_lanes: int
) -> Members:
  """Gives each sample in flight a lane of its prompt.

  Args:
    homes: the prompt that each sample reads. Shape `[D, W]`.
    is_alive: others take no lane. Shape `[D, W]`.
    num_prompts: R.
    num_lanes: M; no prompt has more samples in flight.
  """
  width = homes.shape[1]
  same = homes[:, :, None] == homes[:, None, :]
  earlier = jnp.tri(width, k=-1, dtype=bool)
  counts = same & earlier[None] & is_alive[:, None, :]
  lanes = jnp.sum(counts, axis=2, dtype=jnp.int32)
  nowhere = num_prompts * num_lanes
  places = jnp.where(is_alive, homes * num_lanes + lanes, nowhere)

  taken = places[:, None, :] == jnp.arange(nowhere)[None, :, None]
  samples = jnp.argmax(taken, axis=2).astype(jnp.int32)
  return Members(places=places, samples=samples)


def decode(
  graphdef: nnx.GraphDef,
  weights: Weights,
  ids: jax.Array,
  ages: jax.Array,
  homes: jax.Array,
  in_flight: Members,
  prompts: Prompts,
  rings: Rings,
) -> tuple[jax.Array, Rings]:
  """One token further for every sample in flight.

  Args:
    graphdef: from `qwen3.make`.
    weights: from `by_layer`.
    ids: the newest token of each sample. Shape `[D, W]`.
    ages: how many of its tokens stand in its ring; below T. Shape `[D, W]`.
    homes: which prompt it reads. Shape `[D, W]`.
    in_flight: from `members`.
    prompts: R in each part.
    rings: the tokens before.

  Returns:
    hidden states `[D, W, D']` from which the next token is chosen, and the
    rings with this token in them.
  """
  model, graph = _merge_weights(graphdef, weights)
  length = rings.cache.keys[0].shape[2]
  before = jnp.take_along_axis(prompts.lengths, homes, axis=1)
  angles = model.angles(before + ages)
  # How long ago a column was written; what is older is another sample's.
  ago = (rings.column - jnp.arange(length)) % length
  own_allowed = ago[None] <= ages.reshape(-1, 1)
  prompt_length = prompts.cache.keys[0].shape[2]
  prompt_allowed = jnp.arange(prompt_length)[None] < prompts.lengths.reshape(
    -1, 1
  )

  def attend(query, key, value, layer):
    def write(buffer, new):
      new = new.reshape(*buffer.shape[:2], 1, -1).astype(buffer.dtype)
      return jax.lax.dynamic_update_slice_in_dim(
        buffer, new, rings.column, axis=2
      )

    keys = write(rings.cache.keys[layer], key)
    values = write(rings.cache.values[layer], value)
    grouped = _by_kv_head(query, keys.shape[1])
    own = _attend(grouped, keys, values, own_allowed)
    shared = _attend_prompts(
      grouped,
      prompts.cache.keys[layer],
      prompts.cache.values[layer],
      prompt_allowed,
      in_flight,
    )
    read, log_sums = zip(own, shared, strict=True)
    attended = attention.merge_parts(read, [x[..., 0] for x in log_sums])
    return attended.astype(query.dtype).reshape(query.shape), (keys, values)

  x = model.embed(ids)
  kept = []
  for layer, state in enumerate(weights["layers"]):
    block = nnx.merge(graph, nnx.State(state))
    x, own = block(x, angles, attend, layer)
    x = sharding.constrain(x, "batch", None, None)
    kept.append(own)
  keys, values = zip(*kept, strict=True)
  rings = Rings(
    cache=KeysValues(keys=keys, values=values),
    column=(rings.column + 1) % length,
  )
  return model.finish(x), rings


def _merge_weights(graphdef: nnx.GraphDef, weights: Weights):
  """The network, with its first layer for all, and the graph of a layer."""
  model = decoder.merge(graphdef, {**weights, "layers": weights["layers"][0]})
  return model, nnx.split(model.layers)[0]


def _by_kv_head(query: jax.Array, num_kv_heads: int) -> jax.Array:
  """Scaled queries of `[D, W, N, H]`, as `[D * W, K, N / K, H]`."""
  num_heads, head_size = query.shape[2:]
  query = query * jnp.asarray(head_size**-0.5, query.dtype)
  return query.reshape(-1, num_kv_heads, num_heads // num_kv_heads, head_size)


def _take(buffer: jax.Array, which: jax.Array) -> jax.Array:
  """Rows of each part.

  Args:
    buffer: shape `[D * R, ...]`.
    which: shape `[D, R']`.

  Returns:
    shape `[D * R', ...]`.
  """
  parts = buffer.reshape(which.shape[0], -1, *buffer.shape[1:])
  rows = which.reshape(*which.shape, *[1] * (buffer.ndim - 1))
  taken = jnp.take_along_axis(parts, rows, axis=1)
  return taken.reshape(-1, *buffer.shape[1:])


def _attend(query, keys, values, allowed):
  """Attention over some columns, and the log of its softmax's denominator.

  Args:
    query: scaled. Shape `[n, K, Q, H]`.
    keys, values: shape `[n, K, T, H]`.
    allowed: which columns may be read; perhaps none. Shape `[n, T]`.

  Returns:
    what is read `[n, K, Q, H]`, 0 where nothing may be, and the log-sum-exp of
    the scores `[n, K, Q, 1]`, -inf there. Both float32.
  """
  scores = jnp.einsum(
    "nkqh,nkth->nkqt",
    query.astype(keys.dtype),
    keys,
    preferred_element_type=jnp.float32,
  )
  scores = jnp.where(allowed[:, None, None], scores, -jnp.inf)
  largest = jnp.max(scores, axis=-1, keepdims=True)
  largest = jnp.maximum(largest, jnp.finfo(jnp.float32).min)
  exponentials = jnp.exp(scores - largest)
  total = jnp.sum(exponentials, axis=-1, keepdims=True)
  read = jnp.einsum(
    "nkqt,nkth->nkqh",
    exponentials.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  read = read / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
  return read, largest + jnp.log(total)


def _attend_prompts(query, keys, values, allowed, in_flight: Members):
  """The same over the prompts, each read once for all its samples.

  Args:
    query: scaled. Shape `[D * W, K, Q, H]`.
    keys, values: shape `[D * R, K, S, H]`.
    allowed: shape `[D * R, S]`.
    in_flight: who reads which.
  """
  num_prompts, num_kv_heads = keys.shape[:2]
  num_queries = query.shape[2]
  num_places = in_flight.samples.shape[1]

  def by_prompt(x):
    x = x.reshape(num_prompts, -1, *x.shape[1:])
    x = jnp.swapaxes(x, 1, 2)
    return x.reshape(num_prompts, num_kv_heads, -1, x.shape[-1])

  def by_sample(x):
    x = x.reshape(num_prompts, num_kv_heads, -1, num_queries, x.shape[-1])
    x = jnp.swapaxes(x, 1, 2)
    x = x.reshape(-1, num_kv_heads, num_queries, x.shape[-1])
    # Who is in no lane may read anything: it is no longer alive.
    return _take(x, jnp.minimum(in_flight.places, num_places - 1))

  table = by_prompt(_take(query, in_flight.samples))
  return jax.tree.map(by_sample, _attend(table, keys, values, allowed))


def _placed(buffer: jax.Array) -> jax.Array:
  return sharding.constrain(buffer, "batch", "kv_heads", None, None)
