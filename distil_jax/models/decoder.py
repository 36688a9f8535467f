"""Passes of a decoder over whole sequences.

`make` splits the Flax module once into a graph definition (static under jit)
and parameters. Every function takes both and is pure. Layers are stacked on a
leading axis and scanned, so that compile time does not grow with depth. Where
layers with a sliding window alternate with others, one turn of the scan runs
all layers of a period.

A token's position is the number of tokens before it that count, never its
column. A row may therefore be padded on either side, or have a hole between
prompt and completion. Its tokens are packed to the front before the first
layer, so that the layers need no mask.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from distil_jax.models import attention, experts, prefix_attention, sharding
from distil_jax.models.decoder_config import DecoderConfig, Remat
from distil_jax.models.layers import (
  Angles,
  Attend,
  Decoder,
  Params,
  merge,
  pack,
)
from distil_jax.models.parameter_axes import parameter_axes
from distil_jax.models.remat import of_attention, of_layer


@struct.dataclass
class Cache:
  """Holds keys and values of every layer. Shape `[L, P, S, K, H]` each."""

  key: jax.Array
  value: jax.Array


@struct.dataclass
class Prefix:
  """Holds the keys and values of prefixes that several rows share.

  Attributes:
    cache: Column i holds a prefix's i-th token. `[L, P, S0, K, H]`.
    lengths: Number of tokens of each prefix. Shape `[P]`.
  """

  cache: Cache
  lengths: jax.Array


def make(config: DecoderConfig) -> tuple[nnx.GraphDef, Params]:
  """Returns the network's graph definition and its parameters' shapes.

  Returns:
    The graph definition (hashable, static under jit) and a nested dictionary
    of `jax.ShapeDtypeStruct`.
  """
  abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
  graphdef, params, _ = nnx.split(abstract, nnx.Param, ...)
  return graphdef, nnx.to_pure_dict(params)


def init(config: DecoderConfig, key: jax.Array) -> Params:
  """Returns random parameters."""
  model = Decoder(config, rngs=nnx.Rngs(key))
  return nnx.to_pure_dict(nnx.split(model, nnx.Param, ...)[1])


def logical_axes(params: Params) -> Any:
  """Returns the `LogicalAxes` of each parameter, in the same tree."""
  return {
    name: {
      k: ("layers", *parameter_axes(k, v.ndim - 1)) for k, v in value.items()
    }
    if name == "layers"
    else parameter_axes(name, value.ndim)
    for name, value in params.items()
  }


def shardings(mesh: jax.sharding.Mesh, params: Params) -> Any:
  """Returns the `NamedSharding` of each parameter, in the same tree.

  Raises:
    ValueError: The mesh does not cut a parameter evenly.
  """
  axes = logical_axes(params)
  sharding.check_divisible(mesh, params, axes)
  return jax.tree.map(
    lambda a: sharding.sharding(mesh, *a),
    axes,
    is_leaf=lambda a: isinstance(a, tuple),
  )


def positions_of(mask: jax.Array) -> jax.Array:
  """Returns each column's position among the tokens that count.

  A column of padding gets the position of the last token before it, or 0.
  Shape of `mask`.
  """
  return jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)


def hidden_states(
  graphdef: nnx.GraphDef,
  params: Params,
  ids: jax.Array,
  mask: jax.Array,
  *,
  columns: slice = slice(None),
  prefix: Prefix | None = None,
) -> jax.Array:
  """Returns the final hidden states of whole sequences (teacher-forced).

  Args:
    graphdef: From `make`.
    params: Parameters of the network.
    ids: Token ids. Shape `[B, S]`.
    mask: 1 where the token counts; others are never attended to. `[B, S]`.
    columns: Columns to return.
    prefix: P prefixes, each of which precedes B / P rows; None means none.

  Returns:
    Compute dtype, shape `[B, S, D]`. Values at padding are finite but
    meaningless.

  Raises:
    ValueError: A prefix is given on a mesh with context parallelism.
  """
  if prefix is not None and sharding.num_shards("sequence") > 1:
    raise ValueError("a prefix is not read where devices share a sequence")
  model = merge(graphdef, params)
  packed = pack(ids, mask)
  if prefix is None:
    hidden, _, _ = _full_pass(model, packed, model.config.remat)
  else:
    hidden = _pass_after(model, packed, prefix)
  return _in_columns(model, hidden, mask, columns)


def states_and_loads(
  graphdef: nnx.GraphDef,
  params: Params,
  ids: jax.Array,
  mask: jax.Array,
  *,
  columns: slice = slice(None),
) -> tuple[jax.Array, experts.Loads]:
  """Returns `hidden_states`, and how tokens are spread over the experts.

  Args:
    graphdef: From `make`, of a network with experts.
    params: See `hidden_states`.
    ids: See `hidden_states`.
    mask: See `hidden_states`.
    columns: See `hidden_states`; the spread is that of all tokens that count.

  Returns:
    Hidden states, and the `Loads` of each layer.
  """
  model = merge(graphdef, params)
  packed = pack(ids, mask)
  hidden, _, loads = _full_pass(
    model, packed, model.config.remat, lengths=jnp.sum(mask, axis=-1)
  )
  assert loads is not None
  return _in_columns(model, hidden, mask, columns), loads


def _in_columns(
  model: Decoder, hidden: jax.Array, mask: jax.Array, columns: slice
) -> jax.Array:
  """Moves hidden states from the packed order to the columns of the caller."""
  positions = positions_of(mask)[:, columns, None]
  taken = jnp.take_along_axis(hidden, positions, axis=1)
  if taken.shape[1] % sharding.num_shards("sequence") == 0:
    taken = sharding.constrain(taken, "batch", "sequence", None)
  return model.finish(taken)


def read_prefix(
  graphdef: nnx.GraphDef, params: Params, ids: jax.Array, mask: jax.Array
) -> Prefix:
  """Reads prefixes once for all rows that share them.

  Args:
    graphdef: From `make`.
    params: Parameters of the network.
    ids: Padded anywhere; a prefix may be empty. Shape `[P, S0]`.
    mask: 1 where the token counts. Shape `[P, S0]`.

  Returns:
    Keys, values and lengths, for `hidden_states`.
  """
  model = merge(graphdef, params)
  _, cache, _ = _full_pass(
    model, pack(ids, mask), model.config.remat, keeps_cache=True
  )
  return Prefix(cache=cache, lengths=jnp.sum(mask, axis=-1))


def _full_pass(
  model: Decoder,
  ids,
  remat: Remat,
  *,
  keeps_cache: bool = False,
  lengths: jax.Array | None = None,
):
  """Runs all layers over packed rows, without the final norm.

  Returns:
    Hidden states `[B, S, D]`; the rows' `Cache` or None; and, if `lengths` of
    the rows are given, the `Loads` of the experts, else None.
  """
  length = ids.shape[1]
  ids = jnp.pad(ids, ((0, 0), (0, attention.padding(length))))
  angles = model.angles(jnp.arange(ids.shape[1])[None])
  config = model.config

  def attend(window, query, key, value):
    attended = attention.causal(
      query,
      key,
      value,
      window=window,
      scale=config.attention_scale,
      implementation=config.attention,
    )
    return attended, Cache(key=key, value=value) if keeps_cache else None

  mask = None
  if lengths is not None:
    mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
  hidden, (kept, loads) = _scan_layers(
    model, ids, angles, attend, (), remat, mask
  )
  return hidden[:, :length], kept, loads


def _pass_after(model: Decoder, ids: jax.Array, prefix: Prefix) -> jax.Array:
  """Runs all layers over packed rows that continue a prefix."""
  starts = jnp.repeat(prefix.lengths, len(ids) // len(prefix.lengths))
  angles = model.angles(starts[:, None] + jnp.arange(ids.shape[1])[None])

  def attend(window, query, key, value, shared):
    attended = prefix_attention.after_shared(
      query,
      key,
      value,
      prefix_attention.Shared(shared.key, shared.value, prefix.lengths),
      window=window,
      scale=model.config.attention_scale,
    )
    return attended, None

  return _scan_layers(
    model, ids, angles, attend, (prefix.cache,), model.config.remat
  )[0]


def _scan_layers(
  model: Decoder,
  ids,
  angles: Angles,
  attend: Attend,
  extra,
  remat: Remat,
  mask: jax.Array | None = None,
):
  """Runs the layers in order; each attends with its own slice of `extra`.

  `attend` gets the window of its layer before the other arguments.

  Returns:
    Hidden states; what `attend` kept of each layer, and, if a mask is given,
    the `Loads` of its experts by the tokens that count, else None.
  """
  graph, stacked = nnx.split(model.layers)
  config = model.config

  def layer_fn(layer: int):
    window = config.window(layer)

    def run(x, inputs):
      state, extra = inputs
      attend_in_window = of_attention(functools.partial(attend, window), remat)
      block = nnx.merge(graph, state)
      found: list[experts.Loads] = []

      def watch(x, router):
        assert mask is not None
        chosen = config.num_experts_per_token
        found.append(experts.loads(x, router, chosen, mask))

      x, kept = block(
        x,
        angles.of(window),
        attend_in_window,
        *extra,
        watch=None if mask is None else watch,
      )
      x = sharding.constrain(x, "batch", "sequence", None)
      return x, (kept, found[0] if found else None)

    return of_layer(run, remat)

  x = model.embed(ids, "sequence")
  period = config.period
  if period == 1:
    return jax.lax.scan(layer_fn(0), x, (stacked, extra))
  layers = [layer_fn(i) for i in range(config.num_layers)]
  return _scan_periods(layers, period, x, (stacked, extra))


def _scan_periods(layer_fns, period: int, x, inputs):
  """Scans over whole periods of unequal layers, then runs those left over."""
  num_layers = len(layer_fns)
  num_periods = num_layers // period
  whole = num_periods * period

  def run(first: int, count: int, x, inputs):
    kept = []
    for i in range(count):
      mine = jax.tree.map(lambda leaf, i=i: leaf[i], inputs)
      x, own = layer_fns[first + i](x, mine)
      kept.append(own)
    return x, jax.tree.map(lambda *own: jnp.stack(own), *kept)

  periods = jax.tree.map(
    lambda leaf: leaf[:whole].reshape(num_periods, period, *leaf.shape[1:]),
    inputs,
  )
  x, kept = jax.lax.scan(functools.partial(run, 0, period), x, periods)
  kept = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), kept)
  if whole == num_layers:
    return x, kept
  rest = jax.tree.map(lambda leaf: leaf[whole:], inputs)
  x, last = run(whole, num_layers - whole, x, rest)
  return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)
