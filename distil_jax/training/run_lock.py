"""Keeps two runs from writing into the same folder.

A run's folder holds the file `.lock` while the run is under way. A run that was
killed leaves it behind; the next one notices that its owner is gone and takes
it over.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.distributed import collectives
from distil_jax.training import lock_owner
from distil_jax.training.lock_owner import Owner
from distil_jax.training.logging import progress

NAME = lock_owner.NAME
_PATIENCE = lock_owner.PATIENCE
# Seconds between two signs of life.
_BEAT = 10.0
_POLL = 1.0


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
  """Holds a run's folder within the block; process 0 does so for all.

  Args:
    directory: the run's folder; it is made if it does not exist.

  Raises:
    ConfigError: another run is under way in it.
  """
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.enter_context(_held_here(directory))
    # The other processes must not look for checkpoints before.
    collectives.wait_for_all("the run folder is locked")
    yield


@contextlib.contextmanager
def _held_here(directory: pathlib.Path) -> Iterator[None]:
  directory.mkdir(parents=True, exist_ok=True)
  path = directory / NAME
  owner = lock_owner.this_process(directory)
  _take(path, owner)
  is_done = threading.Event()
  thread = threading.Thread(
    target=_beat, args=(path, owner, is_done), daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    is_done.set()
    thread.join()
    if lock_owner.read(path) == owner:
      path.unlink(missing_ok=True)


def _take(path: pathlib.Path, owner: Owner) -> None:
  """Writes the lock, after removing one whose owner is gone.

  Raises:
    ConfigError: the owner is alive.
  """
  while True:
    with _one_at_a_time(path.parent):
      other = lock_owner.read(path)
      if other is None or lock_owner.is_gone(other, owner):
        path.unlink(missing_ok=True)
        if _create(path, owner):
          return
        continue  # another one was faster
    if lock_owner.is_same_place(other, owner) or not _is_silent(path, other):
      raise ConfigError(
        f"train.run_directory={path.parent}: another run is under way in this "
        f"folder ({other}); wait for it, stop it, or set another "
        f"train.run_directory. If it is not running any more, remove {path}"
      )
    with _one_at_a_time(path.parent):
      if lock_owner.read(path) == other:
        path.unlink(missing_ok=True)


def _is_silent(path: pathlib.Path, other: Owner) -> bool:
  """Returns True if an owner elsewhere gives no sign of life for long enough.

  Only changes count, because the clocks of two hosts differ.
  """
  progress.warn(
    f"{path} is of {other}; waiting up to {_PATIENCE:g} s for a sign of life"
  )
  first, deadline = lock_owner.modified(path), time.monotonic() + _PATIENCE
  while time.monotonic() < deadline:
    time.sleep(_POLL)
    if (now := lock_owner.modified(path)) is None:
      return True  # it has ended meanwhile
    if now != first:
      return False
  return True


def _beat(
  path: pathlib.Path,
  owner: Owner,
  is_done: threading.Event,
  end: Callable[[int], Any] = os._exit,
) -> None:
  """Gives signs of life until the run is done.

  A process that was suspended for long enough may find that another has the
  folder. It ends at once, because all that it writes would damage that run.
  """
  while not is_done.wait(_BEAT):
    try:
      other = lock_owner.read(path)
      if other is not None and other != owner:
        progress.warn(f"{path.parent} was taken over by {other}; this run ends")
        sys.stderr.flush()
        end(1)
        return
      os.utime(path)
    except OSError:
      continue  # the file system may be back at the next time


@contextlib.contextmanager
def _one_at_a_time(directory: pathlib.Path) -> Iterator[None]:
  """Lets no two processes of a host look at a lock at the same time."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    # Some network file systems lock no folders. There the creation of the file
    # decides, and a loser ends at its first sign of life.
    with contextlib.suppress(OSError):
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def _create(path: pathlib.Path, owner: Owner) -> bool:
  """Writes a new file; returns False if there is one already."""
  try:
    file = path.open("x", encoding="utf-8")
  except FileExistsError:
    return False
  with file:
    json.dump(dataclasses.asdict(owner), file)
    file.write("\n")
  return True
