"""Watches one confined process from start to end."""

import contextlib
import fcntl
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distil_jax.envs.sandbox.guest import confine

_LOOK_SECONDS = 0.05
_CHUNK = 1 << 16
_REPORT_BYTES = 8 << 20
_PAGE = os.sysconf("SC_PAGESIZE")

Result = dict[str, Any]
Limits = Mapping[str, Any]


def supervise(
  act: Callable[[int], None],
  *,
  stdin: bytes,
  limits: Limits,
  has_namespaces: bool,
  user: int | None,
  channel: int | None = None,
) -> Result:
  """Runs a function in a confined process until it ends or is stopped.

  Args:
    act: Runs in the confined process; is given the descriptor to report to.
    stdin: Its standard input.
    limits: `seconds`, `wall_seconds`, `memory_bytes`, `output_bytes`,
      `file_bytes`, `num_processes`, as in `jobs.Limits`.
    has_namespaces: If True, makes namespaces for it.
    user: User that the confined process becomes; None keeps the present one.
    channel: Descriptor that it keeps, as number 4; None means none.

  Returns:
    `end`, `exit_code`, `signal`, `stdout`, `stderr`, `report` and `seconds`.
  """
  # Opened before an empty /proc hides it: the watch reads there what the
  # program's processes use.
  processes = os.open("/proc", os.O_RDONLY) if os.path.isdir("/proc") else None
  if has_namespaces:
    confine.enter_namespaces(limits["file_bytes"], len(stdin))
  with _folder(has_namespaces) as folder:
    readers, writers = zip(*(os.pipe() for _ in range(3)), strict=True)
    given = (_file_of(stdin, has_namespaces), *writers)
    given += () if channel is None else (channel,)
    child = confine.fork()
    if not child:
      _become(act, given, limits, has_namespaces, user, folder)
    # A writing end left open here would keep the pipes from ever ending.
    for descriptor in given:
      os.close(descriptor)
    watch = _Watch(child, readers, limits, processes)
    watch.run()
    # What the program has left could fill the pipes for ever, so it is killed
    # before they are emptied.
    if not has_namespaces:
      watch.bury()
    watch.drain()
  return watch.result()


@contextlib.contextmanager
def _folder(has_namespaces: bool) -> Iterator[str]:
  """Yields the working directory, in which the process may write."""
  if has_namespaces:
    yield "/tmp"  # It is the namespace's own and vanishes with it.
    return
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    yield folder


def _file_of(content: bytes, has_namespaces: bool) -> int:
  """Opens a file of this content; a pipe would need a writer to fill it."""
  if not has_namespaces:
    with tempfile.TemporaryFile() as file:
      file.write(content)
      file.seek(0)
      return os.dup(file.fileno())
  # /dev/stdin is a link to this path, and the real /proc is hidden.
  place = "/proc/self/fd"
  os.makedirs(place, mode=0o755)
  with open(f"{place}/0", "wb") as file:
    file.write(content)
  os.chmod("/proc", 0o555)
  return os.open(f"{place}/0", os.O_RDONLY)


def _become(act, descriptors, limits, has_namespaces, user, folder) -> None:
  """Turns this process into the confined one; does not return."""
  # 70 means that the process could not be confined, 71 that `act` failed.
  code = 70
  try:
    # It leads a group of its own, which `bury` kills.
    os.setsid()
    # First to numbers above all targets, so that none is overwritten before it
    # is moved.
    moved = [fcntl.fcntl(x, fcntl.F_DUPFD, 64) for x in descriptors]
    for number, descriptor in enumerate(moved):
      # Programs that it starts do not inherit the report and the channel.
      os.dup2(descriptor, number, inheritable=number < 3)
    # Nothing else that the supervisor has open is handed on.
    os.closerange(len(moved), 4096)
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    confine.limit(
      seconds=limits["seconds"],
      memory_bytes=limits["memory_bytes"],
      file_bytes=limits["file_bytes"],
      num_processes=limits["num_processes"],
    )
    # In this order: without capabilities a filter needs `no_new_privs`, which
    # is set together with dropping them.
    confine.drop_privileges(user)
    confine.refuse_system_calls(
      has_namespaces=has_namespaces, num_processes=limits["num_processes"]
    )
    code = 0
    act(3)
  except BaseException as error:  # This process must end here in any case.
    code = code or 71
    with contextlib.suppress(OSError):
      os.write(2, f"{type(error).__name__}: {error}".encode()[:1000])
  finally:
    os._exit(code)


class _Watch:
  """Watches the output and the resources of one process."""

  def __init__(self, child: int, readers, limits: Limits, processes):
    self.child, self.limits, self.processes = child, limits, processes
    self.reason: str | None = None
    self.status = 0
    self.seconds = 0.0
    self.has_ended = False
    names = ("stdout", "stderr", "report")
    self.open = dict(zip(readers, names, strict=True))
    self.text = {name: bytearray() for name in names}
    self.room = {
      "stdout": limits["output_bytes"],
      "stderr": limits["output_bytes"],
      # The program shares the process that reports, and could write for ever.
      "report": _REPORT_BYTES,
    }
    self.poll = select.poll()
    for reader in readers:
      os.set_blocking(reader, False)
      self.poll.register(reader, select.POLLIN)
    self.handle = _handle_of(child)
    if self.handle is not None:
      self.poll.register(self.handle, select.POLLIN)

  def run(self) -> None:
    """Watches until the process has ended, by itself or stopped."""
    start = time.monotonic()
    deadline = start + self.limits["wall_seconds"]
    looked = start
    while not self.has_ended:
      now = time.monotonic()
      if now >= deadline:
        self.stop("timeout")
      # Looking takes longer the more processes there are, so it is done rarely.
      if now - looked >= _LOOK_SECONDS:
        looked = now
        self.look()
      for descriptor, _ in self.poll.poll(1000 * _LOOK_SECONDS):
        if descriptor in self.open:
          self.read(descriptor)
      self.reap(wait=False)

  def drain(self) -> None:
    """Reads the rest of its output after its end."""
    while pipes := [x for x, _ in self.poll.poll(0) if x in self.open]:
      for descriptor in pipes:
        self.read(descriptor)

  def read(self, descriptor: int) -> None:
    """Reads a piece of its output and stops it if there is too much."""
    name = self.open[descriptor]
    try:
      piece = os.read(descriptor, _CHUNK)
    except BlockingIOError:
      return
    if not piece:
      self.poll.unregister(descriptor)
      del self.open[descriptor]
      os.close(descriptor)
      return
    room = self.room[name] - len(self.text[name])
    self.text[name] += piece[:room]
    if len(piece) > room and not self.has_ended:
      self.stop("output")

  def look(self) -> None:
    """Checks what its processes use together, which the kernel does not sum."""
    count, memory = _taken(self.processes, self.child)
    if memory > self.limits["memory_bytes"]:
      self.stop("memory")
    elif count > self.limits["num_processes"] + 1:
      self.stop("processes")

  def stop(self, reason: str) -> None:
    """Kills it for this reason, if there was none before."""
    self.reason = self.reason or reason
    with contextlib.suppress(ProcessLookupError):
      # In a namespace its first process takes all others with it.
      os.kill(self.child, signal.SIGKILL)
    self.reap(wait=True)

  def reap(self, *, wait: bool) -> None:
    """Collects its exit status if it has ended."""
    if self.has_ended:
      return
    pid, status, usage = os.wait4(self.child, 0 if wait else os.WNOHANG)
    if pid:
      self.has_ended, self.status = True, status
      self.seconds = usage.ru_utime + usage.ru_stime
      if self.handle is not None:
        self.poll.unregister(self.handle)

  def bury(self) -> None:
    """Kills processes that it has left; the kernel does so in a namespace."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self.child, signal.SIGKILL)

  def result(self) -> Result:
    """Returns how it ended and what it wrote, as `supervise` does."""
    killed_by = (
      os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None
    )
    end = self.reason or ("exited" if killed_by is None else "killed")
    # The kernel counts CPU time in ticks and so may kill a little early.
    is_over = self.seconds >= 0.5 * self.limits["seconds"]
    if end == "killed" and killed_by == signal.SIGKILL and is_over:
      end = "timeout"
    return {
      "end": end,
      "exit_code": None if killed_by else os.WEXITSTATUS(self.status),
      "signal": killed_by,
      "seconds": self.seconds,
      **{k: v.decode("utf-8", "replace") for k, v in self.text.items()},
    }


def _handle_of(child: int) -> int | None:
  """Opens a descriptor that is readable when a process ends, or None."""
  try:
    return os.pidfd_open(child)
  except (AttributeError, OSError):
    return None


def _taken(processes: int | None, first: int) -> tuple[int, int]:
  """Returns the number of a process's descendants, itself included, and memory.

  Memory is in bytes.
  """
  count = memory = 0
  queue = [first]
  # Processes may start while they are counted, so the walk has a limit.
  while queue and count < 10_000:
    pid = queue.pop()
    statm = _text(processes, f"{pid}/statm").split()
    if len(statm) > 1:
      count += 1
      # Resident pages: address space that is only reserved takes no memory.
      memory += int(statm[1]) * _PAGE
    queue += _children(processes, pid)
  return count, memory


def _children(processes: int | None, pid: int) -> list[int]:
  """Returns the child processes of all threads of a process."""
  if processes is None:
    return []
  try:
    directory = os.open(f"{pid}/task", os.O_RDONLY, dir_fd=processes)
  except OSError:
    return []
  try:
    threads = os.listdir(directory)
  except OSError:
    threads = []
  finally:
    os.close(directory)
  found: list[int] = []
  for thread in threads:
    # The kernel lists a child with the thread that has started it.
    text = _text(processes, f"{pid}/task/{thread}/children")
    found += [int(x) for x in text.split()]
  return found


def _text(processes: int | None, path: str) -> str:
  if processes is None:
    return ""
  try:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=processes)
  except OSError:
    return ""
  try:
    return os.read(descriptor, _CHUNK).decode("ascii", "replace")
  except OSError:
    return ""
  finally:
    os.close(descriptor)


def send(descriptor: int, role: str, result: Result, lock: int) -> None:
  """Writes a result in one piece, although others write there too."""
  payload = json.dumps(result).encode()
  message = f"{role} {len(payload)}\n".encode() + payload
  fcntl.lockf(lock, fcntl.LOCK_EX)
  try:
    while message:
      message = message[os.write(descriptor, message) :]
  finally:
    fcntl.lockf(lock, fcntl.LOCK_UN)
