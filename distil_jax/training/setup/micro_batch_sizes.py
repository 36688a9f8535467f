"""Builds the sizes of micro-batches by length."""

import jax

from distil_jax.config.schema import Config
from distil_jax.models import sharding
from distil_jax.training.micro_batches import Sizes


def build_sizes(config: Config, mesh: jax.sharding.Mesh) -> Sizes:
  """Returns how large micro-batches may be on a mesh."""
  num_tokens = config.optimizer.tokens_per_micro_batch
  assert num_tokens is not None, "micro-batches are sized by sequences"
  num_processes = jax.process_count()
  return Sizes(
    num_tokens,
    num_shards=max(sharding.batch_size_multiple(mesh) // num_processes, 1),
    num_processes=num_processes,
    multiple=mesh.shape[sharding.RULES["sequence"]],
  )
