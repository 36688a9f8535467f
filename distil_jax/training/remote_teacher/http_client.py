"""Sends requests to a server, again if they fail, and not for ever.

A request that fails for a passing reason is repeated after a pause, which
doubles each time and is drawn at random, so that many clients do not return at
once. After several requests in a row without success the circuit breaker opens:
what follows fails without being sent, until `try_again`.
"""

import dataclasses
import email.utils
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx2

# Statuses of a server that is busy, starting or failing for now.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0


class ServerError(RuntimeError):
  """The error of a request that was not answered; the next one may be."""


class RefusedError(ServerError):
  """The error of a request that would be refused again.

  Attributes:
    status: of HTTP.
  """

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status

  @property
  def is_access(self) -> bool:
    """Returns True if no other request would get through either."""
    return self.status in (401, 403, 404)


@dataclasses.dataclass(frozen=True)
class Patience:
  """Says how long a client tries.

  Attributes:
    timeout: seconds until an attempt is given up.
    max_retries: further attempts of a request.
    max_failures: requests in a row without success that open the breaker.
  """

  timeout: float = 120.0
  max_retries: int = 4
  max_failures: int = 4


class HttpClient:
  """Sends JSON and returns JSON; threads may share one."""

  def __init__(
    self,
    url: str,
    patience: Patience,
    *,
    api_key: str | None = None,
    max_concurrency: int = 8,
    sleep: Callable[[float], Any] | None = None,
    clock: Callable[[], float] = time.time,
    noise: Callable[[], float] = random.random,
  ):
    """Prepares the client; nothing is sent yet.

    Args:
      url: before the paths of requests.
      patience: how long it tries.
      api_key: sent with each request.
      max_concurrency: connections that are kept.
      sleep: waits for so many seconds; None ends the wait when it is closed.
      clock: seconds since 1970, to read dates in `Retry-After`.
      noise: in [0, 1), for the pauses.
    """
    self.url = url
    self.num_requests = self.num_retries = 0
    self._patience = patience
    self._clock, self._noise = clock, noise
    self._is_closed = threading.Event()
    self._sleep = sleep or self._is_closed.wait
    self._lock = threading.Lock()
    self._num_failures = 0
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    self._client = httpx2.Client(
      headers=headers,
      timeout=patience.timeout,
      limits=httpx2.Limits(max_connections=max_concurrency),
    )

  def close(self) -> None:
    """Ends what waits; requests fail from now on."""
    self._is_closed.set()
    self._client.close()

  @property
  def is_open(self) -> bool:
    """Returns True if the circuit breaker lets nothing through."""
    return self._num_failures >= self._patience.max_failures

  def try_again(self) -> None:
    """Lets the next request through; its failure opens the breaker again."""
    with self._lock:
      self._num_failures = min(
        self._num_failures, self._patience.max_failures - 1
      )

  def get(self, path: str) -> Any:
    """Returns the JSON at a path; see `post`."""
    return self._request("GET", path, None)

  def post(self, path: str, body: Mapping[str, Any]) -> Any:
    """Returns the JSON that the server answers.

    Raises:
      RefusedError: the server will not answer this request, or nobody's.
      ServerError: it did not answer, or not with JSON.
    """
    return self._request("POST", path, body)

  def _request(self, method: str, path: str, body: Any) -> Any:
    attempts = self._patience.max_retries + 1
    problem = "it was not asked"
    for attempt in range(attempts):
      if self._is_closed.is_set():
        raise ServerError(f"{self.url}{path}: the client is closed")
      if self.is_open:
        raise ServerError(
          f"{self.url}{path} was not asked, because "
          f"{self._patience.max_failures} requests in a row have failed"
        )
      with self._lock:
        self.num_requests += 1
        self.num_retries += attempt > 0
      pause = None
      try:
        response = self._client.request(method, self.url + path, json=body)
        if response.status_code < 300:
          found = _parsed(response)
          with self._lock:
            self._num_failures = 0
          return found
        problem = f"status {response.status_code}: {_message(response)}"
        if response.status_code not in _PASSING:
          raise RefusedError(
            f"{self.url}{path}: {problem}", response.status_code
          )
        pause = self._asked_pause(response)
      # Also a client that was closed by another thread, which is no HTTPError.
      except (httpx2.HTTPError, httpx2.StreamError, RuntimeError) as error:
        if isinstance(error, RefusedError):
          raise
        problem = f"{type(error).__name__}: {error}"
      except ValueError as error:
        problem = str(error)
      if attempt + 1 < attempts:
        self._sleep(self._pause(attempt) if pause is None else pause)
    with self._lock:
      self._num_failures += 1
    raise ServerError(
      f"{self.url}{path} did not answer in {attempts} attempts; {problem}"
    )

  def _pause(self, attempt: int) -> float:
    """Returns seconds up to twice those of the attempt before."""
    longest = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE)
    return longest * (0.5 + 0.5 * self._noise())

  def _asked_pause(self, response: Any) -> float | None:
    """Returns the seconds that `Retry-After` asks for, within a limit."""
    text = response.headers.get("Retry-After")
    if text is None:
      return None
    if text.strip().isdecimal():
      seconds = float(text)
    else:
      try:
        when = email.utils.parsedate_to_datetime(text)
      except ValueError:
        return None
      seconds = when.timestamp() - self._clock()
    return min(max(seconds, 0.0), _LONGEST_PAUSE)


def _parsed(response: Any) -> Any:
  try:
    return json.loads(response.content)
  except ValueError:
    raise ValueError(f"no JSON but {response.content[:80]!r}") from None


def _message(response: Any) -> str:
  """Returns what the server says, from any of the forms in use."""
  try:
    found = json.loads(response.content)
  except ValueError:
    return repr(response.content[:200])
  if isinstance(found, dict):
    error = found.get("error", found)
    if isinstance(error, dict):
      error = error.get("message") or error.get("detail") or error
    return str(error)[:500]
  return str(found)[:500]
