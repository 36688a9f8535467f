"""Small random networks and batches, and how far two trees are apart."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from distil_jax.data import padding
from distil_jax.data import tokenizer as tokenizers
from distil_jax.generation.policy import Policy
from distil_jax.models import decoder
from distil_jax.models import decoder_config as models_config
from distil_jax.models import layers as models_layers
from distil_jax.types import TrainBatch

VOCAB_SIZE = 24
PAD = 0
# DistIL as published, which is not the config's default.
PUBLISHED = {
  "local_cost": None,
  "cost": "cross_entropy",
  "future_weight": 1.0,
  "baseline": None,
  "terminal_neutral": False,
  "reward_weight": 0.0,
  "failure_weighted": False,
}


@dataclasses.dataclass(frozen=True)
class Network:
  config: models_config.DecoderConfig
  graphdef: nnx.GraphDef
  params: decoder.Params


def config_of(**changed) -> models_config.DecoderConfig:
  """Grouped heads, head size times heads other than the width."""
  sizes = {
    "vocab_size": VOCAB_SIZE,
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_size": 6,
    "mlp_size": 24,
    "tie_embeddings": False,
    "rope_theta": 100.0,
  }
  return models_config.DecoderConfig(**{**sizes, **changed})


def network(seed: int = 0, **changed) -> Network:
  """A random network whose distributions are far from uniform."""
  config = config_of(**changed)
  graphdef, template = decoder.make(config)
  return Network(config, graphdef, random_params(template, seed))


def policy(mesh: jax.sharding.Mesh | None = None) -> Policy:
  """A random policy of one layer, with a tokenizer that knows a few words.

  Args:
    mesh: where its parameters lie; None: wherever they come to lie.
  """
  tokenizer = tokenizers.train(["What is it?"], vocab_size=300)
  config = models_config.DecoderConfig(
    vocab_size=tokenizer.vocab_size,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_size=8,
    mlp_size=16,
    rope_theta=1e4,
    tie_embeddings=True,
    max_positions=64,
  )
  graphdef, _ = decoder.make(config)
  params = decoder.init(config, jax.random.key(0))
  if mesh is not None:
    params = jax.device_put(params, decoder.shardings(mesh, params))
  return Policy(config, graphdef, params, tokenizer)


def with_own_keys(grouped: Network) -> Network:
  """The same network with a key-value head for each head, in equal pairs."""
  num_heads = grouped.config.num_heads
  repeats = num_heads // grouped.config.num_kv_heads
  spread = network(num_kv_heads=num_heads)
  layers = dict(grouped.params["layers"])
  for name in ("key", "value"):
    layers[name] = jnp.repeat(layers[name], repeats, axis=2)
  return Network(
    spread.config, spread.graphdef, {**grouped.params, "layers": layers}
  )


def random_params(template: decoder.Params, seed: int) -> decoder.Params:
  """Weights large enough that a wrong sign, scale or position shows."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name.endswith("norm"):
      values = 1 + 0.2 * rng.normal(size=leaf.shape)
    else:
      values = 0.4 * rng.normal(size=leaf.shape)
    # JAX would compile the conversion for each shape.
    return jax.device_put(values.astype(leaf.dtype))

  return jax.tree_util.tree_map_with_path(draw, template)


@functools.partial(jax.jit, static_argnames="graphdef")
def full_log_probs(params, ids, mask, *, graphdef):
  """Log-softmax after each column of whole sequences. `[B, S, V]`."""
  hidden = decoder.hidden_states(graphdef, params, ids, mask)
  return jax.nn.log_softmax(hidden @ models_layers.unembedding(params), axis=-1)


def random_prompts(rng, lengths, length, vocab_size=VOCAB_SIZE):
  """Left-padded prompts of the given lengths. Ids and mask, `[P, S]`."""
  rows = [rng.integers(1, vocab_size, size).tolist() for size in lengths]
  return padding.pad_left(rows, length, PAD)


def random_batch(seed: int = 0, vocab_size: int = VOCAB_SIZE) -> TrainBatch:
  """Eight sequences, ragged everywhere; two of them without a signal."""
  rng = np.random.default_rng(seed)
  prompt_ids, prompt_mask = random_prompts(
    rng, [1, 2, 3, 4, 4, 3, 2, 1], 4, vocab_size
  )
  teacher_ids, teacher_mask = random_prompts(
    rng, [6, 2, 7, 4, 3, 7, 5, 1], 7, vocab_size
  )
  lengths = [5, 1, 3, 2, 4, 5, 2, 3]
  completions = [rng.integers(1, vocab_size, n).tolist() for n in lengths]
  completion_ids, completion_mask = padding.pad_right(completions, 5, PAD)
  rewards = np.asarray([1, 0, 0, 1, 0, 0, 0.5, 0], np.float32)
  old_log_probs = -rng.uniform(0.5, 6.0, completion_mask.shape)
  return jax.device_put(
    TrainBatch(
      prompt_ids=prompt_ids,
      prompt_mask=prompt_mask,
      teacher_prompt_ids=teacher_ids,
      teacher_prompt_mask=teacher_mask,
      completion_ids=completion_ids,
      completion_mask=completion_mask,
      sample_mask=np.asarray([1, 1, 0, 1, 1, 1, 0, 1], np.int32),
      rewards=rewards,
      old_log_probs=(completion_mask * old_log_probs).astype(np.float32),
    ),
  )


def assert_close(tree, expected, atol=1e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a), np.asarray(b), rtol=1e-5, atol=atol
    ),
    tree,
    expected,
  )


def distance(tree, other) -> float:
  """The largest difference of two entries."""
  gaps = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), tree, other
  )
  return float(max(jax.tree.leaves(gaps)))


def with_garbage(
  batch: TrainBatch, seed: int, vocab_size: int = VOCAB_SIZE
) -> TrainBatch:
  """The same batch with garbage wherever a mask is 0."""
  rng = np.random.default_rng(seed)

  def fill(ids, mask):
    garbage = rng.integers(0, vocab_size, ids.shape)
    return jnp.where(mask == 1, ids, jnp.asarray(garbage, ids.dtype))

  return batch.replace(
    prompt_ids=fill(batch.prompt_ids, batch.prompt_mask),
    teacher_prompt_ids=fill(
      batch.teacher_prompt_ids, batch.teacher_prompt_mask
    ),
    completion_ids=fill(batch.completion_ids, batch.completion_mask),
    old_log_probs=jnp.where(
      batch.completion_mask == 1, batch.old_log_probs, jnp.nan
    ),
  )
