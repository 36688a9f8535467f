"""Sampling completions: one prefill a problem, then token by token."""

import collections
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distil_jax.models import decoding, qwen3, sharding
from distil_jax.ops import chunks, sampling
from distil_jax.records import Array, Rollout, StopReason


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

  def of_problem(identity):
    problem_key = fold(fold(key, identity[0]), identity[1])
    return jax.vmap(lambda g: fold(problem_key, g))(jnp.arange(group_size))

  return jax.vmap(of_problem)(identities)


def generate(
  params: qwen3.Params,
  prompt_ids: jax.Array,
  prompt_mask: jax.Array,
  keys: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  max_completion_length: int,
  eos_ids: tuple[int, ...],
  pad_id: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> Rollout:
  """Samples G completions of each prompt.

  Pure; compile it once for each set of keyword arguments.

  Args:
    params: the student's parameters.
    prompt_ids: left-padded, at least one token each. Shape `[P, S]`.
    prompt_mask: shape `[P, S]`.
    keys: from `sample_keys`. Shape `[P, G]`.
    graphdef: from `qwen3.make`.
    max_completion_length: T.
    eos_ids: any of them ends a completion, and is its last token.
    pad_id: what stands after the end.
    temperature: 0 takes the most probable token.
    top_k: sample among the k most probable; None among all.
    top_p: sample among the most probable that reach this mass; None: all.

  Returns:
    the rollout; members of a group stand in a row. Its log-probabilities are
    those of the policy itself, before temperature and truncation.
  """
  num_problems, group_size = keys.shape
  hidden, prompt_cache = qwen3.prefill(
    graphdef, params, prompt_ids, prompt_mask
  )
  packed_mask = qwen3.pack(prompt_mask, prompt_mask)
  unembedding = qwen3.unembedding(params).astype(hidden.dtype)
  ends = jnp.asarray(eos_ids, jnp.int32)

  def choose(hidden, t):
    logits = chunks.logits(hidden, unembedding)
    if temperature == 0:
      ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    else:
      kept = sampling.truncate(logits / temperature, top_k=top_k, top_p=top_p)
      draw = jax.vmap(jax.vmap(lambda k: _uniform(k, t)))
      ids = sampling.sample(kept, draw(keys))
    log_softmax = jax.nn.log_softmax(logits, axis=-1)
    log_probs = jnp.take_along_axis(log_softmax, ids[..., None], axis=-1)
    return ids, log_probs[..., 0]

  def record(buffers, t, ids, log_probs, is_alive):
    all_ids, all_log_probs, mask = buffers
    return (
      all_ids.at[..., t].set(jnp.where(is_alive, ids, pad_id)),
      all_log_probs.at[..., t].set(jnp.where(is_alive, log_probs, 0.0)),
      mask.at[..., t].set(is_alive.astype(jnp.int32)),
    )

  def step(carry):
    t, ids, is_alive, cache, buffers = carry
    hidden, cache = decoding.decode(
      graphdef, params, ids, t - 1, prompt_cache, packed_mask, cache
    )
    ids, log_probs = choose(hidden, t)
    buffers = record(buffers, t, ids, log_probs, is_alive)
    is_alive &= ~jnp.isin(ids, ends)
    return t + 1, ids, is_alive, cache, buffers

  def is_running(carry):
    t, _, is_alive, _, _ = carry
    return (t < max_completion_length) & jnp.any(is_alive)

  shape = (num_problems, group_size, max_completion_length)
  buffers = (
    jnp.full(shape, pad_id, jnp.int32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros(shape, jnp.int32),
  )
  everyone = jnp.ones((num_problems, group_size), bool)
  hidden = jnp.broadcast_to(
    hidden[:, None], (num_problems, group_size, hidden.shape[-1])
  )
  ids, log_probs = choose(sharding.constrain(hidden, "batch", None, None), 0)
  buffers = record(buffers, 0, ids, log_probs, everyone)
  cache = decoding.empty_cache(prompt_cache, group_size, max_completion_length)
  carry = (jnp.int32(1), ids, ~jnp.isin(ids, ends), cache, buffers)
  *_, is_alive, _, buffers = jax.lax.while_loop(is_running, step, carry)

  def flat(x):
    return x.reshape(num_problems * group_size, *x.shape[2:])

  all_ids, all_log_probs, mask = map(flat, buffers)
  return Rollout(
    prompt_ids=prompt_ids,
    prompt_mask=prompt_mask,
    completion_ids=all_ids,
    completion_mask=mask,
    log_probs=all_log_probs,
    stop_reasons=jnp.where(flat(is_alive), StopReason.LENGTH, StopReason.EOS),
  )


def _uniform(key, t):
  return jax.random.uniform(jax.random.fold_in(key, t))
