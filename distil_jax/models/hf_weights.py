"""Qwen3 weights in and out of Hugging Face directories.

A directory holds `config.json` and either `model.safetensors` or shards with
`model.safetensors.index.json`. There a projection is `[outputs, inputs]` and
each layer has tensors of its own; here a projection is `[inputs, outputs]` with
heads apart, and layers are stacked on a leading axis.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.experimental import multihost_utils

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

Path = tuple[str, ...]  # where a parameter stands in the nested dictionary


class WeightsError(ValueError):
  """A model directory that cannot be used; the message names what and why."""


@dataclasses.dataclass(frozen=True)
class _Layout:
  """How one parameter is called and laid out in a Hugging Face file.

  Attributes:
    name: its name there; `{}` stands for the layer where there is one each.
    num_inputs: leading axes (without L) that the projection sums over; None
      for what is no projection and stands there as it stands here.
  """

  name: str
  num_inputs: int | None = None

  @property
  def is_stacked(self) -> bool:
    return "{}" in self.name

  def names(self, shape: tuple[int, ...]) -> list[str]:
    """The tensors of a parameter of this shape, in the order of layers."""
    if not self.is_stacked:
      return [self.name]
    return [self.name.format(layer) for layer in range(shape[0])]

  def theirs(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of each tensor of a parameter of this shape."""
    shape = tuple(shape[1:] if self.is_stacked else shape)
    if self.num_inputs is None:
      return shape
    inputs, outputs = shape[: self.num_inputs], shape[self.num_inputs :]
    return math.prod(outputs), math.prod(inputs)

  def read(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the file as one layer of ours, whose shape is given."""
    return tensor if self.num_inputs is None else tensor.T.reshape(shape)

  def write(self, layer: np.ndarray) -> np.ndarray:
    """One layer of ours as a tensor of the file, contiguous."""
    if self.num_inputs is not None:
      layer = layer.reshape(math.prod(layer.shape[: self.num_inputs]), -1).T
    # safetensors writes a transposed view's memory in the wrong order.
    return np.ascontiguousarray(layer)


_EMBEDDING = ("embedding",)
_UNEMBEDDING = ("unembedding",)
_LAYER = "model.layers.{}."
_LAYOUTS: dict[Path, _Layout] = {
  _EMBEDDING: _Layout("model.embed_tokens.weight"),
  ("layers", "attention_norm"): _Layout(_LAYER + "input_layernorm.weight"),
  ("layers", "query"): _Layout(_LAYER + "self_attn.q_proj.weight", 1),
  ("layers", "key"): _Layout(_LAYER + "self_attn.k_proj.weight", 1),
  ("layers", "value"): _Layout(_LAYER + "self_attn.v_proj.weight", 1),
  ("layers", "query_norm"): _Layout(_LAYER + "self_attn.q_norm.weight"),
  ("layers", "key_norm"): _Layout(_LAYER + "self_attn.k_norm.weight"),
  ("layers", "output"): _Layout(_LAYER + "self_attn.o_proj.weight", 2),
  ("layers", "mlp_norm"): _Layout(_LAYER + "post_attention_layernorm.weight"),
  ("layers", "gate"): _Layout(_LAYER + "mlp.gate_proj.weight", 1),
  ("layers", "up"): _Layout(_LAYER + "mlp.up_proj.weight", 1),
  ("layers", "down"): _Layout(_LAYER + "mlp.down_proj.weight", 1),
  ("norm",): _Layout("model.norm.weight"),
  _UNEMBEDDING: _Layout("lm_head.weight", 1),
}
_HEAD = _LAYOUTS[_UNEMBEDDING].name
_FLOATS = ("BF16", "F16", "F32")


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a model directory's `config.json`.

  Raises:
    WeightsError: the directory or the file is missing, or is no JSON object.
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
    directory: where the safetensors files are; bfloat16, float16 or float32.
    template: `jax.ShapeDtypeStruct`s in the tree of the parameters. Values are
      cast to its dtypes and placed by its shardings, where it has them.
    tie_embeddings: whether the unembedding is the embedding. A tied checkpoint
      may repeat it as `lm_head.weight` if the two are equal.

  Returns:
    the parameters, in the nested dictionary of the template.

  Raises:
    WeightsError: a file is missing or damaged, or tensors are missing, unknown
      or mis-shaped; all of them are listed.
  """
  directory = _existing(directory)
  leaves = traverse_util.flatten_dict(dict(template))
  _check_tree(set(leaves), tie_embeddings)
  with contextlib.ExitStack() as files:
    tensors = _open(directory, files)
    _check_tensors(directory, tensors, leaves, tie_embeddings)
    params = {
      path: _place(_read(tensors, _LAYOUTS[path], leaf), leaf)
      for path, leaf in leaves.items()
    }
  return traverse_util.unflatten_dict(params)


def save(
  directory: str | os.PathLike[str],
  params: Mapping[str, Any],
  *,
  config_json: Mapping[str, Any],
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes parameters as a Hugging Face directory that transformers can load.

  Everything is written under a temporary name first. Weights that were there
  before are replaced, other files stay. `config.json` goes first and comes
  last: a directory that has one is complete. With several processes all must
  call this; process 0 writes, the others return when they gave their share.

  Args:
    directory: made if it does not exist.
    params: the tree that `load` returns, in any sharding.
    config_json: contents of `config.json`; its `dtype` is set to that of the
      parameters, because transformers casts to it.
    max_shard_bytes: a larger model is cut into shards with an index. A single
      tensor is never cut.

  Raises:
    WeightsError: the tree is no Qwen3's, or contradicts
      `config_json["tie_word_embeddings"]`.
  """
  flat = traverse_util.flatten_dict(dict(params))
  # Where the key is absent, transformers takes false.
  _check_tree(set(flat), bool(config_json.get("tie_word_embeddings", False)))
  if jax.process_index() != 0:
    for _ in _unstacked(flat):  # takes part in gathering what is sharded
      pass
    return
  config = dict(config_json, dtype=str(jnp.result_type(*flat.values())))
  config.pop("torch_dtype", None)  # what transformers 4 called it
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix=".writing-") as folder:
    _write_shards(pathlib.Path(folder), _unstacked(flat), max_shard_bytes)
    _write_json(pathlib.Path(folder, CONFIG), config)
    for file in pathlib.Path(folder).iterdir():
      # safetensors makes files that only their owner can read.
      shutil.copymode(pathlib.Path(folder, CONFIG), file)
    _replace(directory, pathlib.Path(folder))


def _existing(directory: str | os.PathLike[str]) -> pathlib.Path:
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise WeightsError(f"no model directory at {directory}")
  return directory


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A file that holds one object.

  Raises:
    WeightsError: it is no JSON, or something else.
  """
  try:
    tree = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:  # not JSON, or not UTF-8
    raise WeightsError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(tree, dict):
    raise WeightsError(f"{path} must hold a JSON object, not {tree!r:.40}")
  return tree


def _write_json(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def _check_tree(paths: set[Path], tie_embeddings: bool) -> None:
  """Refuses a tree of parameters that is not that of the model."""
  expected = set(_LAYOUTS) - ({_UNEMBEDDING} if tie_embeddings else set())
  if paths != expected:
    missing = sorted(".".join(path) for path in expected - paths)
    unknown = sorted(".".join(path) for path in paths - expected)
    raise WeightsError(
      f"not the parameters of a Qwen3 with tie_embeddings={tie_embeddings}: "
      f"missing {missing}, unknown {unknown}"
    )


def _shards(directory: pathlib.Path) -> list[pathlib.Path]:
  """The files that hold the checkpoint."""
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
    name: list(_LAYOUTS[path].theirs(leaf.shape))
    for path, leaf in leaves.items()
    for name in _LAYOUTS[path].names(leaf.shape)
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
    if name == _HEAD and tie_embeddings:
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
  embedding = _LAYOUTS[_EMBEDDING].name
  if embedding not in tensors:
    return False
  handles = [tensors[key].get_slice(key) for key in (name, embedding)]
  if any(handle.get_dtype() not in _FLOATS for handle in handles):
    return False
  first, second = (
    tensors[key].get_tensor(key).astype(np.float32) for key in (name, embedding)
  )
  return np.array_equal(first, second)


def _read(tensors: Mapping[str, Any], layout: _Layout, leaf: Any) -> np.ndarray:
  """One parameter, stacked over layers, in the type of the template."""
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


def _unstacked(flat: Mapping[Path, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors of the file, one parameter at a time on the host."""
  for path, layout in _LAYOUTS.items():
    if path not in flat:
      continue
    stack = _to_host(flat[path])
    layers = stack if layout.is_stacked else stack[None]
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
  """Writes one file, or as many as the limit asks for and their index."""
  shards: list[list[str]] = []
  pending: dict[str, np.ndarray] = {}
  total = size = 0

  def flush() -> None:
    # transformers refuses a file that does not say for whom it was written.
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
  _write_json(
    folder / INDEX,
    {"metadata": {"total_size": total}, "weight_map": weight_map},
  )


def _replace(directory: pathlib.Path, folder: pathlib.Path) -> None:
  """Moves what was written into place and removes the weights before it."""
  (directory / CONFIG).unlink(missing_ok=True)
  shards = directory.glob("model-*-of-*.safetensors")
  for stale in [directory / SINGLE, directory / INDEX, *shards]:
    stale.unlink(missing_ok=True)
  written = sorted(folder.iterdir(), key=lambda path: path.name == CONFIG)
  for path in written:
    path.rename(directory / path.name)
