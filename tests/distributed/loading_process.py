"""One of two processes that load a checkpoint; see test_loading."""

import pathlib
import sys

import jax
import numpy as np
from flax import traverse_util

from distil_jax.models import decoder, hf_weights, sharding
from distil_jax.models.decoder_config import DecoderConfig
from tests.models.bytes_read import BytesRead

NETWORK = DecoderConfig(
  vocab_size=32,
  width=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
  mlp_size=24,
  tie_embeddings=False,
  rope_theta=1e4,
)


def template(mesh: jax.sharding.Mesh | None = None):
  _, shapes = decoder.make(NETWORK)
  if mesh is None:
    return shapes
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    decoder.shardings(mesh, shapes),
  )


def main() -> None:
  """Loads, and writes what was loaded and how often each byte was read."""
  address, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
  jax.distributed.initialize(address, num_processes=2, process_id=index)
  seen = BytesRead()
  params = hf_weights.load(
    folder,
    template(sharding.make_mesh(1, 2, 2)),
    NETWORK,
    copy=seen.copy,
  )
  found = {}
  for path, array in traverse_util.flatten_dict(params).items():
    # What this process does not hold stays NaN.
    whole = np.full(array.shape, np.nan, array.dtype)
    for shard in array.addressable_shards:
      whole[shard.index] = shard.data
    found[".".join(path)] = whole
  for file in pathlib.Path(folder).glob("*.safetensors"):
    found[file.name] = seen.counts(file)
  np.savez(f"{folder}/found.npz", **found)


if __name__ == "__main__":
  main()
