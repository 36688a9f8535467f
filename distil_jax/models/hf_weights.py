"""Loads weights from Hugging Face directories.

A directory holds `config.json` and either `model.safetensors` or shards with
`model.safetensors.index.json`. There a projection is `[outputs, inputs]` and
each layer has tensors of its own; here a projection is `[inputs, outputs]` with
heads apart, and layers are stacked on a leading axis.
"""

import collections
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import safetensors
from flax import traverse_util

from distil_jax.models import decoder, hf_files, hf_shards
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.families import FAMILIES
from distil_jax.models.families.base import EMBEDDING, ENDS, UNEMBEDDING
from distil_jax.models.hf_directory import (
  CONFIG,
  INDEX,
  SINGLE,
  WeightsError,
  check_tree,
  existing,
  read_json,
)
from distil_jax.models.hf_layout import Path

_HEAD = ENDS[UNEMBEDDING].name


def load(
  directory: str | os.PathLike[str],
  template: Mapping[str, Any],
  config: DecoderConfig,
  *,
  report: hf_files.Report | None = None,
  copy: hf_files.Copy = hf_files.copy,
) -> dict[str, Any]:
  """Reads a Hugging Face checkpoint into the tree of the model's parameters.

  Every process reads the headers of all files, and of the tensors the parts
  that its own devices hold, once each. Host memory holds one device's part of
  one parameter at a time.

  Args:
    directory: Has the safetensors files, in bfloat16, float16 or float32.
    template: `jax.ShapeDtypeStruct`s in the tree of the parameters. Values are
      cast to its dtypes and placed by its shardings, if it has any.
    config: Of the network. With tied embeddings the checkpoint may repeat the
      embedding as `lm_head.weight` if the two are equal.
    report: Told how many bytes this process has read, and how many it will
      read in all.
    copy: Copies a piece of a tensor; every piece that is loaded passes through
      it once.

  Returns:
    The parameters, in the nested dictionary of the template.

  Raises:
    WeightsError: A file is missing or damaged, or tensors are missing, unknown
      or mis-shaped; all of them are listed, or a prefix that explains most.
  """
  directory = existing(directory)
  leaves = traverse_util.flatten_dict(dict(template))
  expected = set(traverse_util.flatten_dict(decoder.make(config)[1]))
  check_tree(set(leaves), expected, config)
  layouts = FAMILIES[config.family].tensors
  tensors = _open(directory)
  _check_tensors(directory, tensors, leaves, config)
  params = hf_shards.read_all(
    tensors,
    {path: (layouts[path], leaf) for path, leaf in leaves.items()},
    report=report or (lambda num_bytes_done, num_bytes_total: None),
    copy=copy,
  )
  return traverse_util.unflatten_dict(params)


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


def _open(directory: pathlib.Path) -> dict[str, hf_files.StoredTensor]:
  """Maps every shard into memory. Returns all tensors by name."""
  tensors = {}
  for path in _shards(directory):
    try:
      found = hf_files.open_file(path)
    except safetensors.SafetensorError as error:
      raise WeightsError(
        f"{path} is no complete safetensors file ({path.stat().st_size} "
        f"bytes): {error}"
      ) from error
    for name, tensor in found.items():
      if name in tensors:
        raise WeightsError(f"{path} repeats {name}, which an earlier shard has")
      tensors[name] = tensor
  return tensors


def _check_tensors(
  directory: pathlib.Path,
  tensors: Mapping[str, hf_files.StoredTensor],
  leaves: Mapping[Path, Any],
  config: DecoderConfig,
) -> None:
  """Compares every tensor of the files with what the model needs."""
  layouts = FAMILIES[config.family].tensors
  expected = {
    name: list(layouts[path].theirs(leaf.shape))
    for path, leaf in leaves.items()
    for name in layouts[path].names(leaf.shape)
  }
  found = {
    name: list(tensor.shape)
    for name, tensor in tensors.items()
    if not name.endswith("rotary_emb.inv_freq")  # follows from the config
  }
  missing = [name for name in expected if name not in found]
  # A model that is part of another one differs in all of its names.
  if guess := _guess(
    missing, [x for x in found if x not in expected and x != _HEAD]
  ):
    raise WeightsError(f"{directory} does not fit its {CONFIG}: {guess}")
  problems = [f"missing {x}: expected {expected[x]}" for x in missing]
  for name, shape in found.items():
    dtype = tensors[name].dtype
    if name == _HEAD and config.tie_embeddings:
      if not _is_embedding(tensors, leaves[EMBEDDING]):
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
    elif dtype not in hf_files.FLOATS:
      problems.append(
        f"unreadable {name}: found type {dtype}, expected one of "
        f"{', '.join(hf_files.FLOATS)}"
      )
  if problems:
    raise WeightsError(
      "\n  ".join([f"{directory} does not fit its {CONFIG}:", *problems])
    )


def _guess(missing: Sequence[str], extra: Sequence[str]) -> str:
  """Returns what prefix tells the names apart; empty if none does.

  Args:
    missing: the names that the model needs and the files lack.
    extra: the names in the files that it does not need.
  """
  ends = collections.defaultdict(list)
  for name in missing:
    for prefix, end in _cuts(name):
      ends[end].append(prefix)
  pairs = collections.Counter(
    (theirs, ours)
    for name in extra
    for theirs, end in _cuts(name)
    for ours in ends[end]
  )
  if not pairs:
    return ""
  # The shortest of those that explain as many.
  (theirs, ours), count = max(
    pairs.items(), key=lambda pair: (pair[1], -len(pair[0][0]))
  )
  if count < 2 or 2 * count < len(missing):
    return ""
  return (
    f"names in the files begin with {theirs!r} where {ours!r} is expected\n"
    f"  expected: {_some(missing)}\n"
    f"  found: {_some(extra)}\n"
    "  The model is probably part of another one: load that one in the library "
    "that wrote it, save the language model alone, and use that folder"
  )


def _cuts(name: str) -> Iterator[tuple[str, str]]:
  """Yields beginnings of up to two parts of a name, each with the rest."""
  parts = name.split(".")
  for cut in range(min(3, len(parts))):
    yield "".join(f"{x}." for x in parts[:cut]), ".".join(parts[cut:])


def _some(names: Sequence[str]) -> str:
  more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
  return ", ".join(names[:3]) + more


def _is_embedding(
  tensors: Mapping[str, hf_files.StoredTensor], leaf: Any
) -> bool:
  """Returns True if the head of a tied checkpoint repeats its embedding.

  Each process compares the parts of the embedding that it holds.
  """
  embedding, head = tensors.get(ENDS[EMBEDDING].name), tensors[_HEAD]
  if embedding is None or embedding.shape != head.shape:
    return False
  if not {embedding.dtype, head.dtype} <= hf_files.FLOATS.keys():
    return False
  parts = [tuple(slice(0, size) for size in embedding.shape)]
  if embedding.shape == leaf.shape:
    parts = [box for box, _ in hf_shards.held_boxes(leaf)]
  return all(hf_files.equal(embedding, head, box) for box in parts)
