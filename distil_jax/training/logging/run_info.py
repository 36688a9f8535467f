"""Collects versions, devices and source revision of a run."""

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

_PACKAGES = (
  "distil_jax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "chex",
  "transformers",
  "numpy",
  "math-verify",
  "reasoning-gym",
)
_GIT_SECONDS = 10  # a repository on a slow disk must not delay a run


def environment(*, device_kind: str, num_devices: int) -> dict[str, Any]:
  """Returns everything about the machine that can change the numbers.

  Args:
    device_kind: JAX's name of the device.
    num_devices: number of devices of all processes.

  Returns:
    Python, platform, devices, package versions (None if a package is not
    installed) and the source revision (None outside a git checkout).
  """
  return {
    "python": sys.version,
    "platform": platform.platform(),
    "devices": {"kind": device_kind, "count": num_devices},
    "packages": package_versions(),
    "git": source_revision(pathlib.Path(__file__).resolve().parents[2]),
  }


def package_versions() -> dict[str, str | None]:
  """Returns versions of the packages that can change the numbers.

  The version of a package that is not installed is None.
  """
  return {name: _version(name) for name in _PACKAGES}


def source_revision(package: pathlib.Path) -> dict[str, Any] | None:
  """Returns the commit of the repository that tracks a package.

  Args:
    package: the package's directory.

  Returns:
    `{"commit": ..., "dirty": ...}`; dirty means that files of the package
    differ from the commit or are not in it. None if git does not track the
    package, for example in a virtual environment inside another repository.
  """

  def git(*arguments: str) -> str:
    # `git status` would otherwise take a lock, on which another git may fail.
    command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
    ).stdout.strip()

  try:
    # A package in a virtual environment may lie inside a repository that is not
    # its own.
    git("ls-files", "--error-unmatch", "__init__.py")
    commit = git("rev-parse", "HEAD")
    dirty = bool(git("status", "--porcelain", "--", "."))
  except (OSError, subprocess.SubprocessError):
    return None
  return {"commit": commit, "dirty": dirty}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
