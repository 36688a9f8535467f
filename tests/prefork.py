"""A process that has imported everything, and copies of it that run programs.

To import takes a program longer than what most tests ask of it.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DEAF_SECONDS = 0.02  # between two looks for children that have ended


@dataclasses.dataclass
class Program:
  """One that runs in a copy; used as `subprocess.Popen`."""

  pid: int
  args: Sequence[str]
  _status: int  # a pipe that brings it
  _said: tempfile.TemporaryDirectory[str]
  returncode: int | None = None

  def poll(self) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
      self.wait(0)
    return self.returncode

  def wait(self, timeout: float | None = None) -> int:
    if self.returncode is None:
      if not select.select([self._status], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired(self.args, timeout or 0)
      text = os.read(self._status, 16)
      os.close(self._status)
      assert text, "the process that starts programs is gone"
      self.returncode = int(text)
    return self.returncode

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    self.wait(timeout)
    folder = pathlib.Path(self._said.name)
    return (folder / "out").read_text(), (folder / "err").read_text()

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)

  def __enter__(self) -> "Program":
    return self

  def __exit__(self, *_: object) -> None:
    self.wait()
    self._said.cleanup()


def start(
  program: Sequence[str],
  environment: Mapping[str, str],
  directory: pathlib.Path,
) -> Program:
  """Starts what `python PROGRAM` would.

  Args:
    program: `-m` or `-c`, a module or a text, and arguments.
    environment: its variables.
    directory: where it runs.
  """
  said = tempfile.TemporaryDirectory(prefix="said-")
  folder = pathlib.Path(said.name)
  reader, writer = os.pipe()
  request = {
    "program": list(program),
    "environment": dict(environment),
    "directory": str(directory),
  }
  server = _server()
  with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
    descriptors = [out.fileno(), err.fileno(), writer]
    socket.send_fds(server, [json.dumps(request).encode()], descriptors)
  os.close(writer)
  pid = int(server.recv(16))
  return Program(pid, list(program), reader, said)


@functools.cache
def _server() -> socket.socket:
  ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
  ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
  # It ends with the socket. What it prints is of no command.
  subprocess.Popen(
    [sys.executable, __file__, str(theirs.fileno())],
    pass_fds=[theirs.fileno()],
    env=os.environ | {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  theirs.close()
  return ours


def _serve(requests: socket.socket) -> dict[str, Any] | None:
  """Starts and awaits programs; returns in each copy what it is to run."""
  running: dict[int, int] = {}
  while True:
    for pid in list(running):
      ended, status = os.waitpid(pid, os.WNOHANG)
      if ended:
        os.write(running[pid], b"%d" % os.waitstatus_to_exitcode(status))
        os.close(running.pop(pid))
    timeout = _DEAF_SECONDS if running else None
    if not select.select([requests], [], [], timeout)[0]:
      continue
    text, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
    if not text:
      for pid in running:
        os.kill(pid, signal.SIGKILL)
      return None
    *outputs, status = descriptors
    pid = os.fork()
    if pid == 0:
      requests.close()
      for target, descriptor in enumerate(outputs, 1):
        os.dup2(descriptor, target)
      for descriptor in (*descriptors, *running.values()):
        os.close(descriptor)
      return json.loads(text)
    for descriptor in outputs:
      os.close(descriptor)
    running[pid] = status
    requests.send(b"%d" % pid)


def _import_everything() -> None:
  import importlib
  import pkgutil

  import distil_jax

  for found in pkgutil.walk_packages(distil_jax.__path__, "distil_jax."):
    # What an extra brings may not be installed.
    if not found.name.endswith("__main__"):
      with contextlib.suppress(ImportError):
        importlib.import_module(found.name)


def _become(request: dict[str, Any]) -> None:
  """Runs a program as if this process had begun with it."""
  import runpy
  import warnings

  import jax

  from tests import xla_settings

  xla_settings.share_lowering_contexts()
  warnings.resetwarnings()
  warnings.filters[:] = _filters
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.environ.clear()
  os.environ.update(request["environment"])
  os.chdir(request["directory"])
  variable = "JAX_COMPILATION_CACHE_DIR"
  jax.config.update(variable.lower(), os.environ.get(variable))
  kind, text, *arguments = request["program"]
  sys.argv = [kind, *arguments]
  sys.path[0] = request["directory"]
  if kind == "-m":
    runpy.run_module(text, run_name="__main__", alter_sys=True)
  else:
    exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
  import warnings

  from tests import garbage

  _filters = warnings.filters[:]
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  _import_everything()
  garbage.collect_rarely()  # copies inherit it
  warnings.simplefilter("ignore")  # of a copy of many threads: it has but one
  request = _serve(socket.socket(fileno=int(sys.argv[1])))
  if request is not None:
    _become(request)
