"""Loads Qwen3 weights from Hugging Face directories.

A directory holds `config.json` and either `model.safetensors` or shards with
`model.safetensors.index.json`. There a projection is `[outputs, inputs]` and
each layer has tensors of its own; here a projection is `[inputs, outputs]` with
heads apart, and layers are stacked on a leading axis.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from distil_jax.models.families.qwen3 import (
  EMBEDDING,
  HEAD,
  LAYOUTS,
  UNEMBEDDING,
)
from distil_jax.models.hf_layout import Layout, Path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class WeightsError(ValueError):
  """Reports a model directory that cannot be used, and why."""


_FLOATS = ("BF16", "F16", "F32")


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a model directory's `config.json`.

  Raises:
    WeightsError: The directory or the file is missing, or is no JSON object.
  """
  directory = _existing(directory)
  if not (directory / CONFIG).is_file():
    raise WeightsError(
      f"{directory} has no {CONFIG}: it is no Hugging Face model directory"
    )
  return read_json(directory / CONFIG)


def load(
  directory: str | os.PathLike[str],
  template: Mapping[str, Any],
  *,
  tie_embeddings: bool,
) -> dict[str, Any]:
  """Reads a Hugging Face checkpoint into the tree of the model's parameters.

  One stacked parameter at a time passes through host memory. Every process
  reads the files and keeps the parts that its own devices hold.

  Args:
    directory: Has the safetensors files, in bfloat16, float16 or float32.
    template: `jax.ShapeDtypeStruct`s in the tree of the parameters. Values are
      cast to its dtypes and placed by its shardings, if it has any.
    tie_embeddings: True if the unembedding is the embedding. A tied checkpoint
      may repeat it as `lm_head.weight` if the two are equal.

  Returns:
    The parameters, in the nested dictionary of the template.

  Raises:
    WeightsError: A file is missing or damaged, or tensors are missing, unknown
      or mis-shaped; all of them are listed.
  """
  directory = _existing(directory)
  leaves = traverse_util.flatten_dict(dict(template))
  check_tree(set(leaves), tie_embeddings)
  with contextlib.ExitStack() as files:
    tensors = _open(directory, files)
    _check_tensors(directory, tensors, leaves, tie_embeddings)
    params = {
      path: _place(_read(tensors, LAYOUTS[path], leaf), leaf)
      for path, leaf in leaves.items()
    }
  return traverse_util.unflatten_dict(params)


def _existing(directory: str | os.PathLike[str]) -> pathlib.Path:
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise WeightsError(f"no model directory at {directory}")
  return directory


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that holds one object.

  Raises:
    WeightsError: It is not JSON, or holds something else.
  """
  try:
    tree = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:  # not JSON, or not UTF-8
    raise WeightsError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(tree, dict):
    raise WeightsError(f"{path} must hold a JSON object, not {tree!r:.40}")
  return tree


def check_tree(paths: set[Path], tie_embeddings: bool) -> None:
  """Refuses a tree of parameters that is not that of the model."""
  expected = set(LAYOUTS) - ({UNEMBEDDING} if tie_embeddings else set())
  if paths != expected:
    missing = sorted(".".join(path) for path in expected - paths)
    unknown = sorted(".".join(path) for path in paths - expected)
    raise WeightsError(
      f"not the parameters of a Qwen3 with tie_embeddings={tie_embeddings}: "
      f"missing {missing}, unknown {unknown}"
    )


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that hold the checkpoint."""
  if (directory / SINGLE).is_file():
    return [directory / SINGLE]
  index = directory / INDEX
  if not index.is_file():
    raise WeightsError(
      f"{directory} has neither {SINGLE} nor {INDEX}; other formats are not "
      "read, save the model again as safetensors"
    )
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(
    isinstance(name, str) for name in weight_map.values()
  ):
    raise WeightsError(f"{index} has no weight_map from tensors to file names")
  shards = [directory / name for name in sorted(set(weight_map.values()))]
  absent = [path.name for path in shards if not path.is_file()]
  if absent:
    raise WeightsError(
      f"{index} names {', '.join(absent)}, not in {directory}; is the copy or "
      "download complete?"
    )
  return shards


def _open(
  directory: pathlib.Path, files: contextlib.ExitStack
) -> dict[str, Any]:
  """Opens every shard. Returns the file that holds each tensor, by name."""
  tensors = {}
  for path in _shards(directory):
    try:
      file = files.enter_context(safetensors.safe_open(path, "numpy"))
    except safetensors.SafetensorError as error:
      raise WeightsError(
        f"{path} is no complete safetensors file ({path.stat().st_size} "
        f"bytes): {error}"
      ) from error
    for name in file.keys():  # noqa: SIM118 (a handle, not a dictionary)
      if name in tensors:
        raise WeightsError(f"{path} repeats {name}, which an earlier shard has")
      tensors[name] = file
  return tensors


def _check_tensors(
  directory: pathlib.Path,
  tensors: Mapping[str, Any],
  leaves: Mapping[Path, Any],
  tie_embeddings: bool,
) -> None:
  """Compares every tensor of the files with what the model needs."""
  expected = {
    name: list(LAYOUTS[path].theirs(leaf.shape))
    for path, leaf in leaves.items()
    for name in LAYOUTS[path].names(leaf.shape)
  }
  found = {
    name: list(file.get_slice(name).get_shape())
    for name, file in tensors.items()
    if not name.endswith("rotary_emb.inv_freq")  # follows from the config
  }
  problems = [
    f"missing {name}: expected {shape}"
    for name, shape in expected.items()
    if name not in found
  ]
  for name, shape in found.items():
    dtype = tensors[name].get_slice(name).get_dtype()
    if name == HEAD and tie_embeddings:
      if not _is_embedding(tensors, name):
        problems.append(
          f"extra {name}: found {shape}, differs from the embedding, but the "
          "config says tie_word_embeddings"
        )
    elif name not in expected:
      problems.append(f"extra {name}: found {shape}, expected none")
    elif shape != expected[name]:
      problems.append(
        f"mis-shaped {name}: found {shape}, expected {expected[name]}"
      )
    elif dtype not in _FLOATS:
      problems.append(
        f"unreadable {name}: found type {dtype}, expected one of "
        f"{', '.join(_FLOATS)}"
      )
  if problems:
    raise WeightsError(
      "\n  ".join([f"{directory} does not fit its {CONFIG}:", *problems])
    )


def _is_embedding(tensors: Mapping[str, Any], name: str) -> bool:
  embedding = LAYOUTS[EMBEDDING].name
  if embedding not in tensors:
    return False
  handles = [tensors[key].get_slice(key) for key in (name, embedding)]
  if any(handle.get_dtype() not in _FLOATS for handle in handles):
    return False
  first, second = (
    tensors[key].get_tensor(key).astype(np.float32) for key in (name, embedding)
  )
  return np.array_equal(first, second)


def _read(tensors: Mapping[str, Any], layout: Layout, leaf: Any) -> np.ndarray:
  """Reads one parameter, stacked over layers, in the type of the template."""
  stack = np.empty(leaf.shape, leaf.dtype)
  layers = stack if layout.is_stacked else stack[None]
  for layer, name in enumerate(layout.names(leaf.shape)):
    tensor = tensors[name].get_tensor(name)
    layers[layer] = layout.read(tensor, layers.shape[1:])
  return stack


def _place(host: np.ndarray, leaf: Any) -> jax.Array:
  if getattr(leaf, "sharding", None) is None:
    return jnp.asarray(host)
  return jax.make_array_from_callback(
    host.shape, leaf.sharding, lambda index: host[index]
  )
