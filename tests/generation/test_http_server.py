"""What brings requests to a service, and clients that hardly speak HTTP."""

import json
import socket
import threading
from typing import Any

import pytest

from distil_jax.generation.serving.http_server import Server
from distil_jax.generation.serving.routes import Service


class Echo(Service):
  """Answers with what it was asked."""

  def __init__(self):
    pass

  def answer(self, method, path, body, *_):
    return 200, {"path": path, "body": body.decode()}


@pytest.fixture(scope="module")
def server():
  with Server("127.0.0.1", 0, Echo()) as made:
    thread = threading.Thread(target=made.serve_forever, args=[0.01])
    thread.start()
    yield made
    made.shutdown()
    thread.join()


def sent(server: Server, text: str) -> tuple[int, Any]:
  """Returns status and JSON of the one answer, None without a body."""
  with socket.create_connection(("127.0.0.1", server.server_port)) as link:
    link.sendall(text.encode())
    link.shutdown(socket.SHUT_WR)
    with link.makefile("rb") as answer:
      head, _, body = answer.read().partition(b"\r\n\r\n")
  return int(head.split()[1]), json.loads(body) if body else None


@pytest.mark.parametrize(
  ("text", "status", "message"),
  [
    ("PUT /health HTTP/1.1\r\n", 501, "Unsupported method"),
    ("nonsense\r\n", 400, "Bad request syntax"),
    ("GET /health HTTP/3.0\r\n", 505, "Invalid HTTP version"),
    ("POST / HTTP/1.1\r\nContent-Length: x\r\n", 411, "needs a Content-Len"),
    (
      "POST / HTTP/1.1\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n",
      411,
      "needs a Content-Length",
    ),
    (
      f"POST / HTTP/1.1\r\nContent-Length: {2**40}\r\n",
      413,
      f"the body has {2**40} bytes, more than",
    ),
    (
      f"POST / HTTP/1.1\r\nContent-Length: {'9' * 5000}\r\n",
      413,
      "the body has 99999999999999999999 bytes, more than",
    ),
    ("POST / HTTP/1.1\r\nContent-Length: 9\r\n", 400, "after 0 of 9 bytes"),
  ],
)
def test_what_is_refused_unread_has_errors_like_others(
  server, text, status, message
):
  found, answer = sent(server, text + "\r\n")
  assert found == status
  assert message in answer["error"]["message"]


def test_an_answer_to_head_has_no_body(server):
  assert sent(server, "HEAD /health HTTP/1.1\r\n\r\n") == (501, None)


def test_a_path_that_is_no_address_reaches_the_service(server):
  _, answer = sent(server, "GET http://[::1/health HTTP/1.1\r\n\r\n")
  assert answer == {"path": "http://[::1/health", "body": ""}


def test_a_stalled_body_does_not_keep_the_server_from_stopping():
  with Server("127.0.0.1", 0, Echo()) as server:
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    with socket.create_connection(
      ("127.0.0.1", server.server_port), 10
    ) as link:
      link.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\n")
      link.sendall(b"Content-Length: 9\r\n\r\n")
      # Says that the headers have been read.
      assert link.recv(64).startswith(b"HTTP/1.1 100 ")
      server.finish_requests()
      link.sendall(b"too late!")
      assert b" 503 " in link.recv(4096)
    server.shutdown()
    thread.join()


def test_an_address_in_use_is_named(server):
  with pytest.raises(OSError, match=r"cannot listen on 127.0.0.1:.* --port"):
    Server("127.0.0.1", server.server_port, Echo())
