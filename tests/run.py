"""Runs the tests, and leaves no process and no folder behind.

`python tests/run.py ARGUMENTS` hands its arguments to pytest. Workers,
sandboxes and commands start sessions of their own, and none that is killed ends
what it has started. So two processes stand above pytest: one that is waited for
and signalled, and a keeper in a session of its own. On Linux both adopt what
loses its parent, so either ends all that is left, also where the other is
killed. All temporary files are in one folder, which goes at the end.
"""

import contextlib
import ctypes
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

# A file in one process: what its tests share is compiled once. The order is
# that of conftest.py, not that of the number of tests. xdist waits for ever
# once it has replaced a worker: it hands on files that are done, and hears
# nothing of them.
OPTIONS = (
  *("--numprocesses", "auto", "--dist", "loadfile"),
  *("--no-loadscope-reorder", "--max-worker-restart", "0"),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_SECONDS = 0.05
_LAST_WORDS_SECONDS = 20  # after Ctrl-C, for what pytest has to report
_SET_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36


def main(arguments: Sequence[str]) -> int:
  """Returns the status with which pytest ends, or that of a signal."""
  signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  _adopt_orphans()
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as by nohup
    _control(_SET_DEATH_SIGNAL, signal.SIGTERM)
  folder = tempfile.mkdtemp(prefix="distil_jax_tests_")
  reader, writer = os.pipe()
  keeper = os.fork()
  if keeper == 0:
    os.close(writer)
    os._exit(_keep(arguments, folder, reader))
  os.close(reader)
  for number in _SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, lambda number, _: _send(keeper, number))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
  status = os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1])
  if status < 0:  # it was killed
    _clean(folder)
    return 128 - status
  return status


def _keep(arguments: Sequence[str], folder: str, first: int) -> int:
  """Runs pytest and cleans up behind it.

  Args:
    arguments: of pytest.
    folder: for temporary files.
    first: is at its end when the first process is.

  Returns:
    the exit status.
  """
  os.setsid()
  _adopt_orphans()
  received: list[int] = []
  for number in _SIGNALS:
    signal.signal(number, lambda number, _: received.append(number))
  signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
  command = [sys.executable, "-m", "pytest", *OPTIONS, *arguments]
  with subprocess.Popen(
    command, stdin=subprocess.DEVNULL, env=os.environ | {"TMPDIR": folder}
  ) as tests:
    status = _wait(tests, received, first)
    _clean(folder)
  return status


def _wait(
  tests: subprocess.Popen[bytes], received: Sequence[int], first: int
) -> int:
  """Returns the status to end with, at the end of pytest or at a signal."""
  deadline = None
  while tests.poll() is None:
    is_alone = bool(select.select([first], [], [], _POLL_SECONDS)[0])
    if is_alone or set(received) - {signal.SIGINT} or len(received) > 1:
      break
    if received and deadline is None:
      deadline = time.monotonic() + _LAST_WORDS_SECONDS
      tests.send_signal(signal.SIGINT)
    if deadline is not None and time.monotonic() > deadline:
      break
  if received:
    return 128 + received[-1]
  if tests.returncode is None:
    return 1
  return tests.returncode if tests.returncode >= 0 else 128 - tests.returncode


def _clean(folder: str) -> None:
  """Ends all processes below this one, then removes the folder."""
  while below := _below(os.getpid()):
    for process in below:
      _send(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    time.sleep(_POLL_SECONDS / 5)
  shutil.rmtree(folder, ignore_errors=True)


def _below(ancestor: int) -> list[int]:
  """Children of a process, their children, and so on."""
  children: dict[int, list[int]] = {}
  for process, parent in _parents():
    children.setdefault(parent, []).append(process)
  found = list(children.get(ancestor, ()))
  for process in found:  # grows
    found += children.get(process, ())
  return found


def _parents() -> list[tuple[int, int]]:
  """All processes, each with its parent."""
  if sys.platform != "linux":
    listing = subprocess.Popen(
      ["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, text=True
    )
    said, _ = listing.communicate()
    pairs = [tuple(map(int, line.split())) for line in said.splitlines()]
    return [(a, b) for a, b in pairs if a != listing.pid]
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(OSError):  # it has just ended
      # The name before may hold spaces and parentheses.
      fields = (folder / "stat").read_text("latin-1").rpartition(")")[2]
      found.append((int(folder.name), int(fields.split()[1])))
  return found


def _send(process: int, number: int) -> None:
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.kill(process, number)


def _adopt_orphans() -> None:
  _control(_SET_SUBREAPER, 1)


def _control(option: int, value: int) -> None:
  """Calls Linux's `prctl`; other systems have none."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
