"""Answers requests, whatever brings them: routes, errors and access."""

import contextlib
import hmac
import itertools
import json
import urllib.parse
from collections.abc import Callable, Generator
from typing import Any

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.serving import asking, requests
from distil_jax.generation.serving.answers import Json
from distil_jax.generation.serving.asking import ClientGoneError, IsGone
from distil_jax.generation.serving.fields import Limits, RequestError
from distil_jax.generation.serving.jobs import Closed
from distil_jax.generation.serving.requests import Request
from distil_jax.generation.serving.streams import Chunks

# A stream is an iterator, which must be closed: nothing more is computed then.
# An error in its midst is its last item.
Stream = Generator[Json]
Answer = tuple[int, Json | Stream]
_MODELS = "/v1/models"
# That of nginx for a client that has closed its connection.
_GONE = 499


class Service:
  """Turns a method, a path and a body into a status and a JSON object."""

  def __init__(
    self,
    worker: asking.Submits,
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    clock: Callable[[], float],
    api_key: str | None = None,
  ):
    """Takes the parts.

    Args:
      worker: does the jobs.
      tokenizer: of the policy.
      limits: what may be asked.
      clock: seconds since 1970, for the answers' time.
      api_key: what requests must show; None lets everybody in.
    """
    self._worker = worker
    self._tokenizer = tokenizer
    self._limits = limits
    self._clock = clock
    self._api_key = api_key
    self._numbers = itertools.count(1)
    self._started = int(clock())
    self._routes = {
      ("GET", "/health"): lambda body, is_gone: {"status": "ok"},
      ("GET", _MODELS): self._models,
      ("POST", "/v1/completions"): self._complete,
      ("POST", "/v1/chat/completions"): self._chat,
    }

  def answer(
    self,
    method: str,
    path: str,
    body: bytes,
    authorization: str | None = None,
    is_gone: IsGone = lambda: False,
  ) -> Answer:
    """Returns status and content; no error of a request gets through.

    Args:
      method, path: of the request, the path without a query.
      body: JSON, empty for GET.
      authorization: the header of that name.
      is_gone: asked now and then; what a client that has gone waited for is not
        computed any further.
    """
    try:
      route = self._routes.get((method, path))
      if method == "GET" and path.startswith(f"{_MODELS}/"):
        name = urllib.parse.unquote(path.removeprefix(f"{_MODELS}/"))
        route = lambda body, is_gone: self._named_model(name)  # noqa: E731
      if route is None:
        known = {p for _, p in self._routes}
        raise RequestError(
          f"{method} {path} is not served; there are "
          + ", ".join(f"{m} {p}" for m, p in self._routes)
          + f" and GET {_MODELS}/MODEL",
          status=405 if path in known else 404,
        )
      if path != "/health":
        self._check_key(authorization)
      return 200, route(body, is_gone)
    # Of the worker too, such as too little memory for this batch. It goes on.
    except Exception as error:
      return _failure(error)

  def _check_key(self, authorization: str | None) -> None:
    if self._api_key is None:
      return
    given = (authorization or "").removeprefix("Bearer ")
    # Takes equally long wherever the texts differ.
    if not hmac.compare_digest(given.encode(), self._api_key.encode()):
      raise RequestError(
        "the API key is missing or wrong; send the header Authorization: "
        "Bearer KEY",
        status=401,
        code="invalid_api_key",
      )

  def _models(self, body: bytes, is_gone: IsGone) -> Json:
    del body, is_gone
    return {"object": "list", "data": [self._named_model(self._limits.model)]}

  def _named_model(self, name: str) -> Json:
    self._limits.check_model(name)
    return {
      "id": self._limits.model,
      "object": "model",
      "created": self._started,
      "owned_by": "distil_jax",
      # As vLLM: the tokens of prompt and completion.
      "max_model_len": self._limits.max_length,
    }

  def _complete(self, body: bytes, is_gone: IsGone) -> Json | Stream:
    request = requests.read_completion(
      _parsed(body), self._tokenizer, self._limits
    )
    return self._answer(request, "cmpl", is_gone)

  def _chat(self, body: bytes, is_gone: IsGone) -> Json | Stream:
    request = requests.read_chat(_parsed(body), self._tokenizer, self._limits)
    return self._answer(request, "chatcmpl", is_gone)

  def _answer(
    self, request: Request, prefix: str, is_gone: IsGone
  ) -> Json | Stream:
    head = {
      "id": f"{prefix}-{next(self._numbers)}",
      "created": int(self._clock()),
      "model": self._limits.model,
    }
    asked = (self._worker, self._tokenizer, request)
    if not request.streams:
      return {**head, **asking.whole(*asked, is_gone)}
    chunks = Chunks(request, head)
    # Scores are computed when a completion is whole.
    if request.score_sizes or request.jobs[0].max_tokens == 0:
      return _guarded(chunks.of_answer(asking.whole(*asked, is_gone)))
    stream = asking.stream(*asked, chunks, is_gone)
    # What fails before the first token still has a status of its own.
    return _guarded(stream, next(stream))


def _guarded(stream: Generator[Json], *first: Json) -> Stream:
  """Yields chunks, and what went wrong in their midst as the last one."""
  with contextlib.closing(stream):
    yield from first
    try:
      yield from stream
    except Exception as error:
      yield _failure(error)[1]


def _failure(error: Exception) -> tuple[int, Json]:
  """Returns status and JSON of what went wrong."""
  match error:
    case RequestError():
      return error.status, error_json(str(error), error.param, error.code)
    case ClientGoneError():
      return _GONE, error_json(str(error))
    case Closed():
      return 503, error_json(str(error), kind="server_error")
  return 500, error_json(repr(error), kind="server_error")


def error_json(
  message: str,
  param: str | None = None,
  code: str | None = None,
  kind: str = "invalid_request_error",
) -> Json:
  """Returns an error in the form of OpenAI's API."""
  return {
    "error": {"message": message, "type": kind, "param": param, "code": code}
  }


def _parsed(body: bytes) -> Any:
  try:
    return json.loads(body)
  # The parser descends by a call for each bracket.
  except (ValueError, RecursionError) as error:
    raise RequestError(f"the body is no JSON: {error}") from error
