"""Trains with bfloat16 parameters: with a copy, rounded at random, and plain.

  python -m benchmarks.bfloat16_training   # five minutes on an idle core

A student learns the distributions of a teacher of the same shape, from whose
weights it begins with some noise, as fine-tuning moves weights by little. The
table has the KL divergence that is left after a thousand steps, in nats per
token, and the mean of the first ten. Everything but the parameters is float32.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distil_jax.models import decoder, decoder_config, layers
from distil_jax.training import low_precision, optimizers

NUM_STEPS, BATCH_SIZE, LENGTH = 1000, 16, 16
SEEDS = (0, 1, 2)
RATES = (1e-3, 1e-4, 1e-5)
CASES = ("float32", "bfloat16, copy", "bfloat16, at random", "bfloat16")
CONFIG = decoder_config.DecoderConfig(
  vocab_size=64,
  width=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=8,
  mlp_size=64,
  tie_embeddings=False,
  rope_theta=10_000.0,
  remat="none",
)
GRAPHDEF, _ = decoder.make(CONFIG)


def _log_probs(params, ids):
  hidden = decoder.hidden_states(GRAPHDEF, params, ids, jnp.ones_like(ids))
  return jax.nn.log_softmax(hidden @ layers.unembedding(params))


def _divergence(params, teacher, ids):
  full = jax.tree.map(lambda p: p.astype(jnp.float32), params)
  own, goal = _log_probs(full, ids), _log_probs(teacher, ids)
  return jnp.mean(jnp.sum(jnp.exp(goal) * (goal - own), axis=-1))


@functools.partial(jax.jit, static_argnames="case")
def run(seed, rate, *, case: str):
  """Returns the divergence before each step."""
  teacher_key, noise_key, data_key = jax.random.split(jax.random.key(seed), 3)
  # Sharper than at initialisation, so that there is something to learn.
  teacher = jax.tree.map(lambda p: 3 * p, decoder.init(CONFIG, teacher_key))
  leaves, tree = jax.tree.flatten(teacher)
  keys = jax.random.split(noise_key, len(leaves))
  noisy = [
    p * (1 + 0.2 * jax.random.normal(k, p.shape))
    for p, k in zip(leaves, keys, strict=True)
  ]
  # All cases begin at weights that bfloat16 can hold.
  short = jax.tree.map(
    lambda p: p.astype(jnp.bfloat16), jax.tree.unflatten(tree, noisy)
  )
  optimizer = optimizers.make_optimizer(
    optax.constant_schedule(rate), weight_decay=0.0
  )
  params = short
  if case == "float32":
    params = jax.tree.map(lambda p: p.astype(jnp.float32), short)
  elif case == "bfloat16, copy":
    optimizer = low_precision.with_master_params(optimizer)
  elif case == "bfloat16, at random":
    optimizer = low_precision.with_stochastic_rounding(optimizer, 0)
  full = jax.tree.map(lambda p: p.astype(jnp.float32), params)

  def step(carry, key):
    params, state = carry
    ids = jax.random.randint(key, (BATCH_SIZE, LENGTH), 0, CONFIG.vocab_size)
    value, gradient = jax.value_and_grad(_divergence)(params, teacher, ids)
    gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
    updates, state = optimizer.update(gradient, state, params)
    return (low_precision.next_params(params, updates, state), state), value

  carry = (params, optimizer.init(full))
  return jax.lax.scan(step, carry, jax.random.split(data_key, NUM_STEPS))[1]


def main() -> None:
  print("| learning rate | " + " | ".join(["first steps", *CASES]) + " |")
  print("| --- " * (len(CASES) + 2) + "|")
  for rate in RATES:
    first, rows = [], []
    for case in CASES:
      values = [np.asarray(run(seed, rate, case=case)) for seed in SEEDS]
      first.append(np.mean([v[:10].mean() for v in values]))
      last = [v[-50:].mean() for v in values]
      rows.append(f"{np.mean(last):.4f} ± {np.std(last, ddof=1):.4f}")
    print(f"| {rate:g} | {first[0]:.4f} | {' | '.join(rows)} |", flush=True)


if __name__ == "__main__":
  main()
