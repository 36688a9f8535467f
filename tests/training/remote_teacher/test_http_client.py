"""The client against a server that fails in every way it can."""

import contextlib
import http.server
import json
import socket
import struct
import threading

import pytest

from distil_jax.training.remote_teacher.http_client import (
  HttpClient,
  Patience,
  RefusedError,
  ServerError,
)

OK = {"ok": 1}


class Scripted(http.server.ThreadingHTTPServer):
  """Plays one act for each request; the last one again and again."""

  daemon_threads = True
  block_on_close = False

  def __init__(self, acts):
    super().__init__(("127.0.0.1", 0), Handler)
    self.acts, self.seen = list(acts), []
    self.finished = threading.Event()
    self.lock = threading.Lock()

  def next_act(self):
    with self.lock:
      return self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]

  def handle_error(self, request, client_address):
    """Stays quiet: the test breaks connections."""


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *arguments):
    del arguments

  def do_GET(self):
    self.play()

  def do_POST(self):
    self.rfile.read(int(self.headers["Content-Length"]))
    self.play()

  def play(self):
    self.server.seen.append(dict(self.headers))
    act = self.server.next_act()
    if act == "slow":
      self.server.finished.wait()
      self.close_connection = True
      return
    if act == "reset":
      # Without lingering, closing sends a reset.
      self.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
      )
      self.connection.close()
      self.close_connection = True
      return
    status, headers, body = act
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    length = len(body) * 2 if headers.get("X-Half") else len(body)
    self.send_header("Content-Length", str(length))
    self.end_headers()
    self.wfile.write(body)
    self.close_connection = bool(headers.get("X-Half"))


def act(status, body=b"", **headers):
  return status, {k.replace("_", "-"): v for k, v in headers.items()}, body


GOOD = act(200, json.dumps(OK).encode())
HALF = act(200, b'{"ok"', X_Half="1")


@contextlib.contextmanager
def client_of(*acts, noise=1.0, **patience):
  """Yields a client, its server, and the pauses that it makes."""
  server = Scripted(acts)
  threading.Thread(
    target=server.serve_forever, args=[0.01], daemon=True
  ).start()
  pauses = []
  made = {"timeout": 30.0, "max_retries": 3, "max_failures": 2, **patience}
  client = HttpClient(
    f"http://127.0.0.1:{server.server_port}/v1",
    Patience(**made),
    api_key="secret",
    sleep=pauses.append,
    clock=lambda: 1_000_000_000.0,
    noise=lambda: noise,
  )
  try:
    yield client, server, pauses
  finally:
    client.close()
    server.finished.set()
    server.shutdown()
    server.server_close()


def test_json_travels_with_the_key():
  with client_of(GOOD) as (client, server, pauses):
    assert client.post("/completions", {"prompt": [1]}) == OK
    assert client.get("/models") == OK
    assert {x["Authorization"] for x in server.seen} == {"Bearer secret"}
    assert pauses == []
    assert (client.num_requests, client.num_retries) == (2, 0)


@pytest.mark.parametrize(
  "failure",
  [
    "reset",
    HALF,
    act(200, b"<html>"),
    act(500, b"oops"),
    act(503),
    act(429, b'{"error": {"message": "slow down"}}'),
  ],
  ids=["reset", "half", "garbage", "500", "503", "429"],
)
def test_what_passes_is_tried_again(failure):
  with client_of(failure, failure, GOOD) as (client, _, pauses):
    assert client.post("/completions", {}) == OK
    # Twice as long each time, up to all of it by chance.
    assert pauses == [0.5, 1.0]
    assert client.num_retries == 2
    assert not client.is_open


def test_a_slow_server_is_given_up():
  patience = {"timeout": 0.2, "max_retries": 1}
  with client_of("slow", **patience) as (client, server, pauses):
    with pytest.raises(ServerError, match="did not answer in 2 attempts"):
      client.post("/completions", {})
    assert pauses == [0.5]
    server.finished.set()


def test_chance_shortens_a_pause_by_half_at_most():
  with client_of(act(500), GOOD, noise=0.0) as (client, _, pauses):
    client.post("/completions", {})
    assert pauses == [0.25]


@pytest.mark.parametrize(
  ("asked", "pause"),
  [
    ("7", 7.0),
    ("0", 0.0),
    ("99999", 60.0),
    ("Sun, 09 Sep 2001 01:46:45 GMT", 5.0),  # 5 s after the clock
    ("Sun, 09 Sep 2001 01:46:00 GMT", 0.0),
    ("later", 0.5),
  ],
)
def test_a_server_says_when_to_come_back(asked, pause):
  busy = act(429, Retry_After=asked)
  with client_of(busy, GOOD) as (client, _, pauses):
    assert client.post("/completions", {}) == OK
    assert pauses == [pause]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_tried_again(status):
  body = json.dumps({"error": {"message": "because"}}).encode()
  with client_of(act(status, body)) as (client, server, pauses):
    with pytest.raises(
      RefusedError, match=f"status {status}: because"
    ) as found:
      client.post("/completions", {})
    assert found.value.status == status
    assert found.value.is_access == (status in (401, 403, 404))
    assert (len(server.seen), pauses) == (1, [])
    assert not client.is_open


def test_the_breaker_spares_a_server_that_is_down():
  acts = [act(500)] * 9 + [GOOD]
  with client_of(*acts, max_retries=1) as (client, server, _):
    for _ in range(2):
      with pytest.raises(ServerError, match="did not answer in 2 attempts"):
        client.post("/completions", {})
    assert client.is_open
    with pytest.raises(ServerError, match="was not asked, because 2 requests"):
      client.post("/completions", {})
    assert len(server.seen) == 4
    client.try_again()
    with pytest.raises(ServerError, match="did not answer"):
      client.post("/completions", {})
    assert client.is_open
    assert len(server.seen) == 6
    client.try_again()
    server.acts = [GOOD]
    assert client.post("/completions", {}) == OK
    assert not client.is_open
    # From here on it takes two failures again.
    server.acts = [act(500)]
    with pytest.raises(ServerError):
      client.post("/completions", {})
    assert not client.is_open


def test_nobody_listens_and_nobody_asks():
  with client_of(GOOD, max_retries=0) as (client, server, _):
    server.shutdown()
    server.server_close()
    with pytest.raises(ServerError, match="ConnectError"):
      client.get("/models")
    client.close()
    with pytest.raises(ServerError, match="the client is closed"):
      client.get("/models")
