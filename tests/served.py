"""Serves a policy over HTTP in this process, and spoils answers on request."""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from distil_jax.generation.serving.fields import Limits
from distil_jax.generation.serving.http_server import Server
from distil_jax.generation.serving.routes import Service
from distil_jax.generation.serving.worker import Worker

MODEL = "tiny"


class SpoiledServer(Server):
  """Answers as a server does, unless it is told what to answer instead.

  Attributes:
    spoil: Takes a path and the JSON of a request, returns status and answer;
      None leaves the answer as it is.
    bodies: The JSON of each POST.
  """

  def __init__(self, service: Service):
    super().__init__("127.0.0.1", 0, service)
    self.spoil: Callable[[str, Any], tuple[int, Any] | None] | None = None
    self.bodies: list[Any] = []

  def answer(self, *request: Any) -> tuple[int, Any]:
    _, path, data, *_ = request
    body = None
    with contextlib.suppress(ValueError, RecursionError):
      body = json.loads(data)
      self.bodies.append(body)
    instead = self.spoil(path, body) if self.spoil else None
    return instead or super().answer(*request)

  def send(
    self,
    path: str,
    body: Any = None,
    headers: Any = (),
    method: str | None = None,
  ) -> tuple[int, Any]:
    """Sends a request; returns status and JSON of the answer."""
    link = http.client.HTTPConnection("127.0.0.1", self.server_port)
    with contextlib.closing(link):
      data = body if isinstance(body, str | None) else json.dumps(body)
      method = method or ("GET" if data is None else "POST")
      link.request(method, path, data, dict(headers))
      response = link.getresponse()
      return response.status, json.loads(response.read())


@contextlib.contextmanager
def served(
  worker: Worker, *, max_length: int | None = None, api_key: str | None = None
) -> Iterator[SpoiledServer]:
  """Runs a server of a worker's policy within the block."""
  policy = worker.policy
  limits = Limits(
    MODEL,
    policy.tokenizer.vocab_size,
    max_length or policy.config.max_positions,
    max_logprobs=policy.tokenizer.vocab_size,
  )
  service = Service(
    worker, policy.tokenizer, limits, clock=lambda: 1.0, api_key=api_key
  )
  with SpoiledServer(service) as server:
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    try:
      yield server
    finally:
      server.shutdown()
      thread.join()
