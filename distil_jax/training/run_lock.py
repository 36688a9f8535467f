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
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.distributed import collectives
from distil_jax.training.logging import progress

NAME = ".lock"
# Seconds between two signs of life, and seconds without one after which the
# owner on another host is taken for dead. File systems that hosts share may
# show a change half a minute late.
_BEAT = 10.0
_PATIENCE = 90.0
_POLL = 1.0


@dataclasses.dataclass(frozen=True)
class Owner:
  """Tells a process from all others, on this host and elsewhere.

  Attributes:
    run: a number of this use of the folder; no two are equal.
    host: the host's name.
    place: identifies the boot of a host and the container in it; process ids
      can be compared within one place alone. None if it is unknown.
    pid: the process id.
    started: the clock tick of the host at which the process began, because
      process ids are used again; None if it is unknown.
    since: when the lock was taken, in local time, for people.
    folder: the inode of the folder, which a copy of the folder does not have.
  """

  run: str
  host: str
  place: str | None
  pid: int
  started: int | None
  since: str
  folder: int | None = None

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since}"


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
  owner = _this_process(directory)
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
    if _read(path) == owner:
      path.unlink(missing_ok=True)


def _this_process(directory: pathlib.Path) -> Owner:
  return Owner(
    run=uuid.uuid4().hex,
    host=socket.gethostname(),
    place=_place(),
    pid=os.getpid(),
    started=_start_tick(os.getpid()),
    since=time.strftime("%Y-%m-%d %H:%M:%S"),
    folder=directory.stat().st_ino,
  )


def _take(path: pathlib.Path, owner: Owner) -> None:
  """Writes the lock, after removing one whose owner is gone.

  Raises:
    ConfigError: the owner is alive.
  """
  while True:
    with _one_at_a_time(path.parent):
      other = _read(path)
      if other is None or _is_gone(other, owner):
        path.unlink(missing_ok=True)
        if _create(path, owner):
          return
        continue  # another one was faster
    if _is_same_place(other, owner) or not _is_silent(path, other):
      raise ConfigError(
        f"train.run_directory={path.parent}: another run is under way in this "
        f"folder ({other}); wait for it, stop it, or set another "
        f"train.run_directory. If it is not running any more, remove {path}"
      )
    with _one_at_a_time(path.parent):
      if _read(path) == other:
        path.unlink(missing_ok=True)


def _is_gone(other: Owner, owner: Owner) -> bool:
  """Returns True if this host knows that the owner of a lock has ended."""
  if not _is_same_place(other, owner):
    return False
  if other.folder != owner.folder:
    return True  # the folder was copied while its run was under way
  if other.started is not None:
    return _start_tick(other.pid) != other.started
  try:
    os.kill(other.pid, 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass
  return False


def _is_same_place(one: Owner, other: Owner) -> bool:
  return (one.host, one.place) == (other.host, other.place)


def _is_silent(path: pathlib.Path, other: Owner) -> bool:
  """Returns True if an owner elsewhere gives no sign of life for long enough.

  Only changes count, because the clocks of two hosts differ.
  """
  progress.warn(
    f"{path} is of {other}; waiting up to {_PATIENCE:g} s for a sign of life"
  )
  first, deadline = _modified(path), time.monotonic() + _PATIENCE
  while time.monotonic() < deadline:
    time.sleep(_POLL)
    if (now := _modified(path)) is None:
      return True  # it has ended meanwhile
    if now != first:
      return False
  return True


def _modified(path: pathlib.Path) -> int | None:
  try:
    return path.stat().st_mtime_ns
  except FileNotFoundError:
    return None


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
      other = _read(path)
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


def _read(path: pathlib.Path) -> Owner | None:
  """Returns whose a lock is; None if it is nobody's, or was cut off."""
  try:
    return Owner(**json.loads(path.read_text(encoding="utf-8")))
  except (FileNotFoundError, ValueError, TypeError):
    return None


def _start_tick(pid: int) -> int | None:
  """Returns when a process began; None if it has ended or nobody knows."""
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
  except OSError:
    return None
  # The name before it is in brackets and may contain spaces and brackets.
  state, *fields = text.rpartition(")")[2].split()
  # A zombie has ended, and only waits for its parent to notice.
  return None if state in "ZX" else int(fields[18])


def _place() -> str | None:
  try:
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
    return f"{boot.strip()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None
