"""Base models whose competence is set, not hoped for.

A base model is trained on soft targets: at each place it learns the very
distribution that its family prescribes, with feedback in the prompt and
without. Its success rate, its preference between routes and its trust in
feedback are then what the comparison says they are.
"""

import functools
from typing import cast

import jax
import jax.numpy as jnp
import optax

from distil_jax.comparison import families
from distil_jax.models import architecture, qwen3

# Share of the demonstrations that have feedback in their prompt: copying out
# of it is harder to learn than the rest.
_TOLD = 0.7
# How much of a prefix is spoilt: the teacher must be right after the student's
# errors too.
_SPOILT = (0.2, 0.8)


def network(
  *, width: int, num_layers: int, num_heads: int, max_positions: int = 512
) -> architecture.Qwen3Config:
  """A Qwen3 of the comparison's vocabulary."""
  return architecture.Qwen3Config(
    vocab_size=families.VOCAB_SIZE,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_heads // 2,
    head_size=width // num_heads,
    mlp_size=8 * width // 3,
    tie_embeddings=False,
    rope_theta=10_000.0,
    max_positions=max_positions,
    remat="none",
  )


@functools.partial(
  jax.jit,
  static_argnames=(
    "family",
    "config",
    "num_steps",
    "batch_size",
    "learning_rate",
  ),
)
def train(
  key: jax.Array,
  *,
  family: families.Family,
  config: architecture.Qwen3Config,
  num_steps: int,
  batch_size: int,
  learning_rate: float,
) -> tuple[qwen3.Params, jax.Array]:
  """Trains a base model from nothing.

  Returns:
    its parameters, and the excess of its cross-entropy over the targets' own
    entropy in each step, nats per token; shape `[num_steps]`.
  """
  graphdef, _ = qwen3.make(config)
  init_key, data_key = jax.random.split(key)
  params = qwen3.init(config, init_key)
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, num_steps // 20 + 1, num_steps
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

  def step(carry, key):
    params, opt_state = carry
    excess, gradients = jax.value_and_grad(_loss)(
      params, key, graphdef, family, batch_size
    )
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    params = cast(qwen3.Params, optax.apply_updates(params, updates))
    return (params, opt_state), excess

  carry = (params, optimizer.init(params))
  carry, excess = jax.lax.scan(
    step, carry, jax.random.split(data_key, num_steps)
  )
  return carry[0], excess


def _loss(params, key, graphdef, family, batch_size):
  """KL from the targets to the model, nats per token."""
  prompts, prompt_mask, ids, mask, targets = _demonstrations(
    family, key, batch_size
  )
  sequences = jnp.concatenate([prompts, ids], axis=1)
  sequence_mask = jnp.concatenate([prompt_mask, mask], axis=1)
  hidden = qwen3.hidden_states(graphdef, params, sequences, sequence_mask)
  hidden = hidden[:, prompts.shape[1] - 1 : -1]
  # Twenty tokens: the whole of the logits is small here.
  logits = hidden @ qwen3.unembedding(params)
  costs = optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets)
  return jnp.sum(costs * mask) / jnp.sum(mask)


def _demonstrations(family, key, batch_size):
  """Prompts with and without feedback, spoilt completions, targets."""
  keys = jax.random.split(key, 9)
  problems = families.make_problems(family, keys[0], batch_size)
  preferences = jnp.asarray([r.preference for r in family.routes])
  route = jax.random.categorical(
    keys[1],
    jnp.log(0.5 * preferences + 0.5 / len(family.routes)),
    shape=(batch_size,),
  )
  sibling_route = jax.random.randint(
    keys[2], (batch_size,), 0, len(family.routes)
  )
  sibling, _ = families.reference_completion(
    family, problems, sibling_route, keys[3]
  )
  hint_ids, hint_mask = families.hints(family, problems, sibling)
  is_told = jax.random.bernoulli(keys[4], _TOLD, (batch_size,))
  told, told_mask = families.teacher_prompts(problems, hint_ids, hint_mask)
  # Without feedback the same row holds the bare problem, padded on the left.
  is_problem = jnp.arange(told.shape[1]) > hint_ids.shape[1]
  told_mask = told_mask * (is_told[:, None] | is_problem[None])
  ids, mask = families.reference_completion(family, problems, route, keys[5])
  share = jnp.asarray(_SPOILT)[
    jax.random.randint(keys[6], (batch_size, 1), 0, len(_SPOILT))
  ]
  spoils = jax.random.bernoulli(keys[7], share, ids.shape) & (ids < 10)
  ids = jnp.where(spoils, jax.random.randint(keys[8], ids.shape, 0, 10), ids)
  targets = families.base_targets(
    family, problems, route, ids, is_told, sibling_route
  )
  return told, told_mask, ids, mask, targets
