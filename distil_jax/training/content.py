"""Tells whether two paths in settings lead to the same data or model."""

import functools
import hashlib
import pathlib

from distil_jax.config.data import HubDatasetConfig
from distil_jax.config.schema import Config
from distil_jax.data import data_files
from distil_jax.models import hf_directory
from distil_jax.training.setup.model_directory import (
  model_directory,
  teacher_directories,
)

# Files of a model beside its config and its weights.
_SMALL = (
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
  "generation_config.json",
)


def digests(config: Config) -> dict[str, str]:
  """Returns a hash of what each path in the settings leads to, by its key.

  With several processes all must call this. What a path leads to is read once
  in a process.

  Args:
    config: the run's settings; all that they name must be there.
  """
  found = {"model.directory": _of_model(model_directory(config))}
  for key, folder in teacher_directories(config).items():
    found[f"{key}.directory"] = _of_model(folder)
  for name, section in config.data_sets.items():
    for split in ("train", "evaluation"):
      source = getattr(section.data, split)
      # The rows of a data set of the Hub are fixed by its settings.
      if source != "generated" and not isinstance(source, HubDatasetConfig):
        files = tuple(data_files.find(source))
        where = f"mixture.{name}." if name else ""
        found[f"{where}data.{split}"] = _of_files(files)
  return found


@functools.cache
def _of_model(folder: pathlib.Path) -> str:
  small = [folder / name for name in _SMALL if (folder / name).is_file()]
  return hf_directory.digest(folder) + _of_files(tuple(small))


@functools.cache
def _of_files(paths: tuple[pathlib.Path, ...]) -> str:
  digest = hashlib.blake2b(digest_size=16)
  for path in paths:
    with path.open("rb") as file:
      while part := file.read(2**20):
        digest.update(part)
    # Rows that move from one file into the next are other data.
    digest.update(path.stat().st_size.to_bytes(8, "little"))
  return digest.hexdigest()
