"""Finds the folder of a model: here, in the package, or on the Hub."""

import os
import pathlib
import socket
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from distil_jax.distributed import collectives, process_group
from distil_jax.models import hf_hub

_EMBEDDED = "embedded:"

# Where each model that was asked for is, so that the Hub is asked once.
_found: dict[tuple[str, str | None, bool], pathlib.Path] = {}


def resolve_directory(
  directory: str | os.PathLike[str],
  revision: str | None = None,
  *,
  only_config: bool = False,
  section: str = "model",
) -> pathlib.Path:
  """Returns the folder of a model.

  With several processes all must call this: one on each host downloads, and
  the others wait for it.

  Args:
    directory: A folder, `embedded:NAME` for a model that ships with the
      package, or OWNER/NAME for one of the Hub. A folder of that name wins.
    revision: Branch, tag or commit of a model of the Hub; None means `main`.
    only_config: Fetch `config.json` of a model of the Hub alone.
    section: Path of the config section that names the model, for errors.

  Raises:
    ValueError: No model of this name ships with the package, or a revision is
      given for a model that is not on the Hub.
    HubError: The model cannot be downloaded.
  """
  name, path = str(directory), pathlib.Path(directory)
  if not hf_hub.is_name(name):
    if revision is not None:
      raise ValueError(
        f"{section}.revision={revision} belongs to a model of the Hub, but "
        f"{section}.directory={name} is not OWNER/NAME; remove "
        f"{section}.revision"
      )
    if name.startswith(_EMBEDDED):
      return _embedded(name, section)
    return path
  if _is_here(name, path, section):
    if revision is not None:
      raise ValueError(
        f"{section}.revision={revision} belongs to a model of the Hub, but "
        f"there is a folder {name} here, which is used instead; remove "
        f"{section}.revision, or rename the folder"
      )
    return path
  key = name, revision, only_config
  if key not in _found:
    _found[key] = _fetch(name, revision, only_config)
  return _found[key]


def _embedded(name: str, section: str) -> pathlib.Path:
  assets = pathlib.Path(__file__).parents[1] / "models/assets"
  path = assets / name.removeprefix(_EMBEDDED)
  if not path.is_dir():
    known = sorted(p.name for p in assets.iterdir() if p.is_dir())
    raise ValueError(
      f"{section}.directory={name} is not embedded; known: "
      + ", ".join(_EMBEDDED + k for k in known)
    )
  return path


def _is_here(name: str, path: pathlib.Path, section: str) -> bool:
  """Returns True if a folder exists, on all hosts.

  Raises:
    ValueError: It exists on some hosts only.
  """
  if jax.process_count() == 1:
    return path.is_dir()
  found = multihost_utils.process_allgather(np.int32(path.is_dir()))
  if found.any() and not found.all():
    raise ValueError(
      f"the folder {section}.directory={name} exists for processes "
      f"{np.flatnonzero(found).tolist()}, but not for the others; copy it to "
      "all hosts, or remove it everywhere to take the model of the Hub"
    )
  return bool(found.all())


def _fetch(name: str, revision: str | None, only_config: bool) -> pathlib.Path:
  """Downloads a model in one process of each host."""
  is_first = _is_first_on_host()
  if is_first:
    path = hf_hub.fetch(name, revision, only_config=only_config)
  # A download may take longer than devices wait for each other.
  what = f"download of {name}, {revision}, {only_config}"
  if process_group.is_joined():
    process_group.compare(what, {}, "")
  else:
    collectives.wait_for_all(what)
  if is_first:
    return path
  return hf_hub.fetch(name, revision, only_config=only_config, only_cached=True)


def _is_first_on_host() -> bool:
  """Returns True in the process of each host that has the lowest number."""
  if jax.process_count() == 1:
    return True
  host = np.uint32(zlib.crc32(socket.gethostname().encode()))
  hosts = multihost_utils.process_allgather(host)
  return int(np.argmax(hosts == host)) == jax.process_index()
