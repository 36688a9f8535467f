"""Reads data sets of the Hugging Face Hub, by the library `datasets`."""

from collections.abc import Iterable
from typing import Any

from distil_jax.config.data import HubDatasetConfig
from distil_jax.data.data_files import DataError


def read(source: HubDatasetConfig) -> Iterable[Any]:
  """Returns the rows of a split, downloaded or from the cache.

  Raises:
    DataError: the library is not installed; there is no such data set,
      configuration or split; or it is not in the cache and there is no network.
  """
  try:
    import datasets as library  # an optional dependency
    from datasets import exceptions
  except ImportError as error:
    raise DataError(
      f"dataset={source.dataset} needs the library datasets; "
      "pip install 'distil_jax[datasets]', or name files"
    ) from error
  try:
    found = library.load_dataset(
      source.dataset,
      source.config,
      split=source.split,
      revision=source.revision,
    )
  except (exceptions.DatasetsError, ValueError, OSError) as error:
    # Its errors of a missing network say so themselves, but not what to do.
    raise DataError(
      f"the data set {named(source)} cannot be read: {error}. Check its name, "
      "its configuration and its split; without a network download it "
      "elsewhere and name its files, and for a gated one log in with "
      "`hf auth login`"
    ) from error
  return found


def named(source: HubDatasetConfig) -> str:
  """Returns the data set's name with configuration and split, for messages."""
  parts = [source.dataset, source.config, source.split]
  return "/".join(part for part in parts if part)
