"""Serves a sandbox to other machines over HTTP.

Whoever can reach it can run programs in this machine's sandbox, so it should
listen only on a network where all may do so. A job that is too large is refused
before it is read.
"""

import contextlib
import http.server
import json
import threading
from typing import Any

from distil_jax.envs.sandbox import serialization
from distil_jax.envs.sandbox.jobs import Limits, Sandbox

_MAX_JOB = 64 << 20
_MAX_DIGITS = 12  # Digits of its length.
# Upper bounds of the limits that a job may ask for.
LARGEST = Limits(
  seconds=300,
  wall_seconds=600,
  memory_bytes=8 << 30,
  output_bytes=16 << 20,
  file_bytes=1 << 30,
  num_processes=64,
)
_SOCKET_SECONDS = 30


class Server(http.server.ThreadingHTTPServer):
  """Answers `GET /` and `POST /run`."""

  # A job that still runs does not keep the server from ending.
  daemon_threads = True
  request_queue_size = 1024  # All threads of a run connect at once.

  def __init__(self, address: tuple[str, int], sandbox: Sandbox):
    """Listens, and answers once `serve_forever` is called.

    Args:
      address: Host and port; port 0 takes any free one.
      sandbox: Runs the jobs; is not closed by the server.
    """
    super().__init__(address, _Handler)
    self.sandbox = sandbox

  @property
  def url(self) -> str:
    host, port = self.server_address[:2]
    return f"http://{host}:{port}"

  def start(self) -> threading.Thread:
    """Starts to answer in a thread of its own, until `shutdown`."""
    thread = threading.Thread(target=self.serve_forever, daemon=True)
    thread.start()
    return thread


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Server
  timeout = _SOCKET_SECONDS
  protocol_version = "HTTP/1.1"

  def do_GET(self) -> None:
    self._answer(200, {"service": serialization.SERVICE})

  def do_POST(self) -> None:
    length = self.headers.get("Content-Length", "")
    is_length = length.isdecimal() and len(length) <= _MAX_DIGITS
    if self.path != "/run" or not is_length:
      # The body is not read, and would be taken for the next request.
      self.close_connection = True
      self._answer(
        404, {"error": "the only request is POST /run with a Content-Length"}
      )
      return
    if int(length) > _MAX_JOB:
      self.close_connection = True
      self._answer(413, {"error": f"the job has more than {_MAX_JOB} bytes"})
      return
    try:
      job = serialization.job_from_json(
        json.loads(self.rfile.read(int(length)))
      )
      _check(job.limits)
    except (ValueError, RecursionError) as error:
      self._answer(400, {"error": str(error)})
      return
    try:
      self._answer(
        200, serialization.outcome_to_json(self.server.sandbox.run(job))
      )
    except (ValueError, RuntimeError) as error:
      self._answer(400, {"error": str(error)})

  def log_message(self, format: str, *args: Any) -> None:
    """Logs nothing, because a run asks a hundred times a second."""

  def _answer(self, code: int, content: dict[str, Any]) -> None:
    data = json.dumps(content).encode()
    self.send_response(code)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    with contextlib.suppress(ConnectionError):  # The client has disconnected.
      self.end_headers()
      self.wfile.write(data)


def _check(limits: Limits) -> None:
  for name in ("seconds", "memory_bytes", "output_bytes", "file_bytes"):
    _at_most(name, getattr(limits, name), getattr(LARGEST, name))
  _at_most("num_processes", limits.num_processes, LARGEST.num_processes)
  assert LARGEST.wall_seconds is not None
  # Not the setting, which may be None, but the deadline that follows from it.
  _at_most("wall_seconds", limits.deadline, LARGEST.deadline)


def _at_most(name: str, value: Any, largest: float) -> None:
  # True would pass as the number 1.
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{name}={value!r} must be a number")
  if not value <= largest:
    raise ValueError(f"{name}={value} is more than {largest}; lower it")
