"""Brings requests of HTTP to a service, one thread for each connection."""

import contextlib
import http.server
import json
import selectors
import socket
import threading
import urllib.parse
from collections.abc import Generator
from typing import Any

from distil_jax.generation.serving.routes import (
  Answer,
  Service,
  Stream,
  error_json,
)

# Prompts of a batch fit well; a larger body is a mistake or an attack.
_MAX_BODY_BYTES = 64 * 2**20
# A client that sends nothing for so long has gone.
_IDLE_SECONDS = 300.0


class Server(http.server.ThreadingHTTPServer):
  """Serves until `stop`; a context manager, which closes the socket."""

  # A connection may stay open without a request, so that waiting for its
  # thread could take for ever. Requests are waited for by their number.
  daemon_threads = True
  block_on_close = False
  request_queue_size = 128

  def __init__(self, host: str, port: int, service: Service):
    """Binds the address; port 0 takes a free one.

    Raises:
      OSError: the address cannot be bound.
    """
    try:
      super().__init__((host, port), _Handler)
    except OSError as error:
      raise OSError(
        f"cannot listen on {host}:{port}: {error}; choose another --port or "
        "--host, or stop what listens there"
      ) from error
    self.service = service
    self._num_requests = 0
    self._changed = threading.Condition()
    self._is_stopping = False

  @property
  def url(self) -> str:
    """Returns the address for clients."""
    host = str(self.server_address[0])
    return f"http://{host}:{self.server_port}/v1"

  def finish_requests(self, timeout: float | None = None) -> None:
    """Refuses new requests, and waits until those under way are answered."""
    with self._changed:
      self._is_stopping = True
      self._changed.wait_for(lambda: self._num_requests == 0, timeout)

  def answer(self, *request: Any) -> Answer:
    """Returns what the service answers, or that the server is stopping."""
    if self._is_stopping:
      return 503, error_json("the server is stopping", kind="server_error")
    return self.service.answer(*request)

  def count_request(self, change: int) -> None:
    """Adds to the number of requests that are under way."""
    with self._changed:
      self._num_requests += change
      self._changed.notify_all()

  def handle_error(self, request, client_address) -> None:
    """Ignores a client that has gone: nobody is left to be told."""


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Server  # pyright: ignore[reportIncompatibleVariableOverride]
  protocol_version = "HTTP/1.1"
  timeout = _IDLE_SECONDS
  # Headers and body leave together: a client that acknowledges late would
  # otherwise wait for tens of milliseconds.
  wbufsize = -1
  disable_nagle_algorithm = True

  def do_GET(self) -> None:
    self._serve()

  def do_POST(self) -> None:
    self._serve()

  def handle_expect_100(self) -> bool:
    """Tells a client that waits with its body, as curl does, to send it."""
    is_right = super().handle_expect_100()
    self.wfile.flush()
    return is_right

  def send_error(
    self, code: int, message: str | None = None, explain: str | None = None
  ) -> None:
    """Answers what is no HTTP or another method, as other errors."""
    self.close_connection = True
    # Where the version was not understood, the answer still needs its status.
    self.request_version = self.protocol_version
    self._send(code, error_json(message or self.responses[code][0]))

  def log_message(self, format: str, *arguments: Any) -> None:
    """Writes nothing: a request is no event."""

  def _serve(self) -> None:
    body = self._body()
    # From here on the client waits for the server and no longer the reverse:
    # one that stalls in its body does not keep a server from stopping.
    self.server.count_request(1)
    try:
      self._send(*self._answer(body))
    finally:
      self.server.count_request(-1)

  def _body(self) -> bytes | Answer:
    """Returns the body, or the answer to one that is refused unread."""
    length = self.headers.get("Content-Length", "0")
    if not length.isdecimal() or "Transfer-Encoding" in self.headers:
      self.close_connection = True
      return 411, error_json("the body needs a Content-Length")
    # Python refuses to read a number of thousands of digits.
    if len(length) > 20 or int(length) > _MAX_BODY_BYTES:
      self.close_connection = True  # the body is not read
      return 413, error_json(
        f"the body has {length[:20]} bytes, more than {_MAX_BODY_BYTES}; send "
        "fewer prompts at once"
      )
    body = self.rfile.read(int(length))
    if len(body) < int(length):
      self.close_connection = True
      return 400, error_json(
        f"the body ended after {len(body)} of {length} bytes"
      )
    return body

  def _answer(self, body: bytes | Answer) -> Answer:
    if not isinstance(body, bytes):
      return body
    return self.server.answer(
      self.command,
      _path(self.path),
      body,
      self.headers.get("Authorization"),
      self._is_gone,
    )

  def _is_gone(self) -> bool:
    """Returns True if the client has closed the connection, or its side."""
    with selectors.DefaultSelector() as selector:
      selector.register(self.connection, selectors.EVENT_READ)
      if not selector.select(0):
        return False
    try:
      # A client may send its next request already, which stays to be read.
      return not self.connection.recv(1, socket.MSG_PEEK)
    except OSError:
      return True

  def _send(self, status: int, content: dict[str, Any] | Stream) -> None:
    if isinstance(content, Generator):
      self._send_events(content)
      return
    data = json.dumps(content).encode()
    self.send_response(status)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(data)))
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)
    self.wfile.flush()

  def _send_events(self, stream: Stream) -> None:
    """Sends server-sent events, each as soon as it is there."""
    # An old client knows the end by that of the connection.
    is_chunked = self.request_version >= "HTTP/1.1"
    self.close_connection |= not is_chunked
    self.send_response(200)
    self.send_header("Content-Type", "text/event-stream; charset=utf-8")
    self.send_header("Cache-Control", "no-cache")
    if is_chunked:
      self.send_header("Transfer-Encoding", "chunked")
    if self.close_connection:
      self.send_header("Connection", "close")
    self.end_headers()

    def write(data: bytes) -> None:
      if is_chunked:
        data = b"%x\r\n%b\r\n" % (len(data), data)
      self.wfile.write(data)
      self.wfile.flush()

    has_failed = False
    # Closed when the client has hung up, which ends the sampling.
    with contextlib.closing(stream):
      for item in stream:
        has_failed = "error" in item
        write(b"data: %b\n\n" % json.dumps(item).encode())
    # Who does not see this knows that something is missing.
    if not has_failed:
      write(b"data: [DONE]\n\n")
    if is_chunked:
      self.wfile.write(b"0\r\n\r\n")
    self.wfile.flush()


def _path(target: str) -> str:
  """Returns the path of a request, which may also name a host and a query."""
  try:
    return urllib.parse.urlsplit(target).path
  except ValueError:
    return target  # no route is called so
