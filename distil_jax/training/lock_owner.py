"""Tells who runs in a run's folder, from the lock that a run keeps there."""

import dataclasses
import json
import os
import pathlib
import socket
import time
import uuid

NAME = ".lock"
# Seconds without a sign of life after which an owner on another host is taken
# for dead. File systems that hosts share may show a change half a minute late.
PATIENCE = 90.0


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


def find(directory: pathlib.Path) -> Owner | None:
  """Returns who runs in a folder; None if nobody does.

  An owner on another host counts as long as it gives signs of life.
  """
  path = directory / NAME
  other = read(path)
  if other is None:
    return None
  me = this_process(directory)
  if is_same_place(other, me):
    return None if is_gone(other, me) else other
  seen = (modified(path) or 0) / 1e9
  return other if time.time() - seen < PATIENCE else None


def this_process(directory: pathlib.Path) -> Owner:
  """Returns this process as the owner of a run's folder."""
  return Owner(
    run=uuid.uuid4().hex,
    host=socket.gethostname(),
    place=_place(),
    pid=os.getpid(),
    started=_start_tick(os.getpid()),
    since=time.strftime("%Y-%m-%d %H:%M:%S"),
    folder=directory.stat().st_ino,
  )


def is_gone(other: Owner, owner: Owner) -> bool:
  """Returns True if this host knows that the owner of a lock has ended."""
  if not is_same_place(other, owner):
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


def is_same_place(one: Owner, other: Owner) -> bool:
  """Returns True if process ids of the two can be compared."""
  return (one.host, one.place) == (other.host, other.place)


def modified(path: pathlib.Path) -> int | None:
  """Returns the time of the last sign of life, ns; None if the lock is gone."""
  try:
    return path.stat().st_mtime_ns
  except FileNotFoundError:
    return None


def read(path: pathlib.Path) -> Owner | None:
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
