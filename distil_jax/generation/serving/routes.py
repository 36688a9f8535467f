"""Answers requests, whatever brings them: routes, errors and access."""

import hmac
import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.serving import answers, requests
from distil_jax.generation.serving.fields import Limits, RequestError
from distil_jax.generation.serving.jobs import (
  Closed,
  Job,
  Sampled,
  SampleJob,
  Scored,
  ScoreJob,
)
from distil_jax.generation.serving.requests import Request
from distil_jax.types import StopReason

Answer = tuple[int, dict[str, Any]]


class Submits(Protocol):
  """Takes jobs, as `Worker` does."""

  def submit(self, jobs: Sequence[Job]) -> list[Future]: ...


class Service:
  """Turns a method, a path and a body into a status and a JSON object."""

  def __init__(
    self,
    worker: Submits,
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
      ("GET", "/health"): lambda body: {"status": "ok"},
      ("GET", "/v1/models"): self._models,
      ("POST", "/v1/completions"): self._complete,
      ("POST", "/v1/chat/completions"): self._chat,
    }

  def answer(
    self, method: str, path: str, body: bytes, authorization: str | None = None
  ) -> Answer:
    """Returns status and content; no error of a request gets through.

    Args:
      method, path: of the request, the path without a query.
      body: JSON, empty for GET.
      authorization: the header of that name.
    """
    try:
      route = self._routes.get((method, path))
      if route is None:
        known = {p for _, p in self._routes}
        raise RequestError(
          f"{method} {path} is not served; there are "
          + ", ".join(f"{m} {p}" for m, p in self._routes),
          status=405 if path in known else 404,
        )
      if path != "/health":
        self._check_key(authorization)
      return 200, route(body)
    except RequestError as error:
      return error.status, error_json(str(error), error.param, error.code)
    except Closed as error:
      return 503, error_json(str(error), kind="server_error")
    # Of the worker, such as too little memory for this batch. It goes on.
    except Exception as error:
      return 500, error_json(repr(error), kind="server_error")

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

  def _models(self, body: bytes) -> dict[str, Any]:
    del body
    model = {
      "id": self._limits.model,
      "object": "model",
      "created": self._started,
      "owned_by": "distil_jax",
      # As vLLM: the tokens of prompt and completion.
      "max_model_len": self._limits.max_length,
    }
    return {"object": "list", "data": [model]}

  def _complete(self, body: bytes) -> dict[str, Any]:
    request = requests.read_completion(
      _parsed(body), self._tokenizer, self._limits
    )
    return self._answer(request, "cmpl")

  def _chat(self, body: bytes) -> dict[str, Any]:
    request = requests.read_chat(_parsed(body), self._tokenizer, self._limits)
    return self._answer(request, "chatcmpl")

  def _answer(self, request: Request, prefix: str) -> dict[str, Any]:
    sampled = self._sample(request.jobs)
    scored = self._score(request, sampled)
    return {
      "id": f"{prefix}-{next(self._numbers)}",
      "created": int(self._clock()),
      "model": self._limits.model,
      **answers.answer(request, sampled, scored, self._tokenizer),
    }

  def _sample(self, jobs: Sequence[SampleJob]) -> list[list[Sampled]]:
    if jobs[0].max_tokens == 0:
      nothing = Sampled((), StopReason.LENGTH)
      return [[nothing] * job.count for job in jobs]
    return [future.result() for future in self._worker.submit(jobs)]

  def _score(
    self, request: Request, sampled: Sequence[Sequence[Sampled]]
  ) -> list[list[Scored | None]]:
    sizes = [x for x in (request.top, request.prompt_top) if x is not None]
    if not sizes:
      return [[None] * len(completions) for completions in sampled]
    # The sampler's tokens are scored again in one pass: it does not keep the
    # most probable ones beside them.
    futures = iter(
      self._worker.submit(
        [
          ScoreJob((*job.prompt, *completion.ids), max(sizes))
          for job, completions in zip(request.jobs, sampled, strict=True)
          for completion in completions
        ]
      )
    )
    return [
      [next(futures).result() for _ in completions] for completions in sampled
    ]


def error_json(
  message: str,
  param: str | None = None,
  code: str | None = None,
  kind: str = "invalid_request_error",
) -> dict[str, Any]:
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
