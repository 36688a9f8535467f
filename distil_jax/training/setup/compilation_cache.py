"""Keeps compiled programs in a folder that later starts read."""

import os
import pathlib
import time
import warnings

import jax
from jax.experimental.compilation_cache import compilation_cache

from distil_jax.config.training import CompilationConfig

_DIRECTORY = "jax_compilation_cache_dir"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
# A process that writes an entry needs less between its two files.
_UNFINISHED_SECONDS = 60


def default_directory() -> pathlib.Path:
  """Returns the folder for programs of all runs of this user."""
  caches = os.environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(caches) if caches else pathlib.Path.home() / ".cache"
  return base / "distil_jax" / "compilation"


def enable(section: CompilationConfig) -> pathlib.Path | None:
  """Lets JAX read and write the cache of compiled programs.

  Several processes may share a folder: JAX locks it. A cache that JAX itself
  has been told of, by `JAX_COMPILATION_CACHE_DIR`, is used as it is.

  Args:
    section: The folder and its bound.

  Returns:
    The folder; None if there is no cache.
  """
  chosen = section.cache_directory
  if chosen == "auto" and getattr(jax.config, _DIRECTORY):
    _keep_short_ones()
    return pathlib.Path(getattr(jax.config, _DIRECTORY))
  if chosen is None:
    _set(None, -1)
    return None
  try:
    folder = default_directory() if chosen == "auto" else pathlib.Path(chosen)
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
  except (OSError, RuntimeError) as error:  # no home, or none to write to
    warnings.warn(
      f"compiled programs are not kept: {error}; set "
      "compilation.cache_directory to a folder, or to null",
      stacklevel=2,
    )
    return None
  _keep_short_ones()
  _set(str(folder), int(section.max_cache_gigabytes * 1e9))
  return folder


def _keep_short_ones() -> None:
  """Keeps programs that compile in less than a second too.

  A run has dozens of them.
  """
  if _LEAST_SECONDS.upper() not in os.environ:
    jax.config.update(_LEAST_SECONDS, 0.0)


def _set(directory: str | None, max_size: int) -> None:
  if getattr(jax.config, _DIRECTORY) == directory:
    return
  jax.config.update("jax_compilation_cache_max_size", max_size)
  jax.config.update(_DIRECTORY, directory)
  # JAX decides at its first program, which may be compiled already.
  compilation_cache.reset_cache()


def _remove_unfinished(folder: pathlib.Path) -> None:
  """Removes what a process was killed at.

  JAX writes an entry and then the time of its use, and where that is missing it
  would write no entry any more.
  """
  for entry in folder.glob("*-cache"):
    used_at = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
    if used_at.exists() and used_at.stat().st_size:
      continue
    if time.time() - entry.stat().st_mtime > _UNFINISHED_SECONDS:
      entry.unlink(missing_ok=True)
