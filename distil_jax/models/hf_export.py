"""Writes parameters as a Hugging Face folder."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax.experimental import multihost_utils

from distil_jax.models import decoder
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import FAMILIES
from distil_jax.models.hf_directory import CONFIG, INDEX, SINGLE, check_tree
from distil_jax.models.hf_layout import Layout, Path


def save(
  directory: str | os.PathLike[str],
  params: Mapping[str, Any],
  config: DecoderConfig,
  *,
  config_json: Mapping[str, Any],
  max_shard_bytes: int = 5 * 10**9,
  dtype: str | None = None,
) -> None:
  """Writes parameters as a Hugging Face directory that transformers can load.

  Everything is written under a temporary name first. Earlier weights are
  replaced; other files stay. `config.json` is removed first and written last,
  so a directory that has one is complete. With several processes all must call
  this: process 0 writes, and the others return once they have sent their part.

  Args:
    directory: Created if it does not exist.
    params: The tree that `hf_weights.load` returns, in any sharding.
    config: Of the network.
    config_json: Contents of `config.json`; its `dtype` is set to that of the
      parameters, because transformers casts to it.
    max_shard_bytes: A larger model is split into shards with an index. A single
      tensor is never split.
    dtype: Type of the tensors in the files; None means that of the parameters.

  Raises:
    WeightsError: The tree is not that of the network.
  """
  flat = traverse_util.flatten_dict(dict(params))
  expected = set(traverse_util.flatten_dict(decoder.make(config)[1]))
  check_tree(set(flat), expected, config)
  layouts = FAMILIES[config.family].tensors
  if jax.process_index() != 0:
    # Takes part in gathering sharded parameters.
    for _ in unstacked(flat, layouts, dtype):
      pass
    return
  saved_dtype = dtype or jnp.result_type(*flat.values())
  settings = dict(config_json, dtype=str(saved_dtype))
  settings.pop("torch_dtype", None)  # what transformers 4 called it
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as folder:
    _write_shards(
      pathlib.Path(folder), unstacked(flat, layouts, dtype), max_shard_bytes
    )
    write_json(pathlib.Path(folder, CONFIG), settings)
    for file in pathlib.Path(folder).iterdir():
      # safetensors makes files that only their owner can read.
      shutil.copymode(pathlib.Path(folder, CONFIG), file)
    _replace(directory, pathlib.Path(folder))


def write_json(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
  """Writes a JSON object as transformers does."""
  path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def unstacked(
  flat: Mapping[Path, Any], layouts: Mapping[Path, Layout], dtype: str | None
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the tensors of the file, one parameter at a time on the host.

  Args:
    flat: Parameters by their paths, in any sharding; with several processes all
      must call this.
    layouts: Name and layout of each parameter; those that are not in `flat` are
      left out.
    dtype: Type of the tensors; None means that of the parameters.
  """
  for path, layout in layouts.items():
    if path not in flat:
      continue
    stack = _to_host(flat[path])
    if dtype is not None:
      stack = stack.astype(jnp.dtype(dtype))
    layers = stack.reshape(-1, *stack.shape[layout.num_stacked :])
    for layer, name in zip(layers, layout.names(stack.shape), strict=True):
      yield name, layout.write(layer)


def _to_host(array: Any) -> np.ndarray:
  if isinstance(array, jax.Array) and not array.is_fully_addressable:
    array = multihost_utils.process_allgather(array, tiled=True)
  return np.asarray(array)


def _write_shards(
  folder: pathlib.Path,
  tensors: Iterator[tuple[str, np.ndarray]],
  max_shard_bytes: int,
) -> None:
  """Writes one file, or several shards and their index."""
  shards: list[list[str]] = []
  pending: dict[str, np.ndarray] = {}
  total = size = 0

  def flush() -> None:
    # transformers refuses a file without this metadata.
    safetensors.numpy.save_file(
      pending, folder / str(len(shards)), metadata={"format": "pt"}
    )
    shards.append(list(pending))
    pending.clear()

  for name, tensor in tensors:
    if pending and size + tensor.nbytes > max_shard_bytes:
      flush()
      size = 0
    pending[name] = tensor
    size += tensor.nbytes
    total += tensor.nbytes
  flush()

  if len(shards) == 1:
    (folder / "0").rename(folder / SINGLE)
    return
  weight_map = {}
  for number, names in enumerate(shards):
    file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
    (folder / str(number)).rename(folder / file)
    weight_map.update(dict.fromkeys(names, file))
  write_json(
    folder / INDEX,
    {"metadata": {"total_size": total}, "weight_map": weight_map},
  )


def _replace(directory: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves the new files into the directory and removes earlier weights."""
  (directory / CONFIG).unlink(missing_ok=True)
  shards = directory.glob("model-*-of-*.safetensors")
  for stale in [directory / SINGLE, directory / INDEX, *shards]:
    stale.unlink(missing_ok=True)
  written = sorted(folder.iterdir(), key=lambda path: path.name == CONFIG)
  for path in written:
    path.rename(directory / path.name)
