"""Names and small files of a Hugging Face directory."""

import hashlib
import json
import os
import pathlib
from collections.abc import Set
from typing import Any

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.models.hf_layout import Path

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Bytes of a file's beginning and end that stand for its content.
_END = 2**20


class WeightsError(ValueError):
  """Reports a model directory that cannot be used, and why."""


def read_config(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a model directory's `config.json`.

  Raises:
    WeightsError: The directory or the file is missing, or is no JSON object.
  """
  directory = existing(directory)
  if not (directory / CONFIG).is_file():
    raise WeightsError(
      f"{directory} has no {CONFIG}: it is no Hugging Face model directory"
    )
  return read_json(directory / CONFIG)


def existing(directory: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the path of a directory that exists.

  Raises:
    WeightsError: It does not.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise WeightsError(f"no model directory at {directory.absolute()}")
  return directory


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON file that holds one object.

  Raises:
    WeightsError: It is not JSON, or holds something else.
  """
  try:
    tree = json.loads(path.read_text(encoding="utf-8"))
  # Not JSON, not UTF-8, or nested deeper than the parser goes.
  except (ValueError, RecursionError) as error:
    raise WeightsError(f"{path} is not valid JSON: {error}") from error
  if not isinstance(tree, dict):
    raise WeightsError(f"{path} must hold a JSON object, not {tree!r:.40}")
  return tree


def check_tree(
  paths: Set[Path], expected: Set[Path], config: DecoderConfig
) -> None:
  """Refuses a tree of parameters that is not that of the network.

  Args:
    paths: Of the parameters at hand.
    expected: Of the network's parameters.
    config: Of the network, for the message.

  Raises:
    WeightsError: Names the family and the parameters that differ.
  """
  if paths != expected:
    missing = sorted(".".join(path) for path in expected - paths)
    unknown = sorted(".".join(path) for path in paths - expected)
    raise WeightsError(
      f"not the parameters of a {config.family} with "
      f"tie_embeddings={config.tie_embeddings}: missing {missing}, unknown "
      f"{unknown}"
    )


def digest(path: pathlib.Path) -> str:
  """Returns a hash of config and weights.

  Of a file of weights it covers size, beginning and end: reading all weights of
  a large model takes minutes.
  """
  found = hashlib.blake2b(digest_size=8)
  for name in (CONFIG, "*.safetensors"):
    for file in sorted(path.glob(name)):
      size = file.stat().st_size
      found.update(f"{file.name} {size}".encode())
      with file.open("rb") as content:
        found.update(content.read(_END))
        content.seek(max(size - _END, 0))
        found.update(content.read(_END))
  return found.hexdigest()
