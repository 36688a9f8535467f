"""Runs jobs in the sandbox of another machine over HTTP; see `serving`."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Self

from distil_jax.envs.sandbox import serialization
from distil_jax.envs.sandbox.jobs import Job, Outcome, SandboxError, crashed

# Time for the network and for waiting until another job is done.
_SPARE_SECONDS = 60.0
_CHECK_SECONDS = 10.0
_MAX_ANSWER = 64 << 20
# The sandbox is on the same network, so no proxy is used.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RemoteSandbox:
  """Sends jobs to a machine that runs `distil-jax sandbox`."""

  def __init__(self, url: str):
    """Checks that the sandbox answers.

    Args:
      url: Address such as `http://10.0.0.2:8765`.

    Raises:
      SandboxError: It does not answer, or another service does.
      ValueError: The address is malformed.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
      raise ValueError(f"sandbox url {url!r} must be http://host:port")
    self._url = url.rstrip("/")
    try:
      answer = self._ask("/", None, _CHECK_SECONDS)
    except (OSError, ValueError, http.client.HTTPException) as error:
      raise SandboxError(
        f"no sandbox answers at {url}: {error}; start one there with "
        "`distil-jax sandbox`"
      ) from None
    if answer.get("service") != serialization.SERVICE:
      raise SandboxError(
        f"what answers at {url} is no sandbox of this version: {answer}"
      )

  def run(self, job: Job) -> Outcome:
    """Sends a job and waits; the outcome is `CRASHED` if nothing answers."""
    content = serialization.job_to_json(job)
    seconds = job.limits.deadline + _SPARE_SECONDS
    try:
      answer = self._ask("/run", content, seconds)
      return serialization.outcome_from_json(answer)
    except (OSError, ValueError, http.client.HTTPException) as error:
      return crashed(f"{self._url}: {error}")

  def close(self) -> None:
    """Does nothing, because no connection is kept."""

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _ask(self, path: str, content: Any, seconds: float) -> dict[str, Any]:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
      self._url + path,
      data=data,
      headers={"Content-Type": "application/json"},
    )
    try:
      with _OPENER.open(request, timeout=seconds) as response:
        # A longer answer is cut off, and then no JSON.
        answer = json.loads(response.read(_MAX_ANSWER))
    except urllib.error.HTTPError as error:
      with error:
        text = error.read(1000).decode(errors="replace")
      raise ValueError(f"HTTP {error.code}: {text}") from None
    except RecursionError:
      raise ValueError("the answer is nested too deep") from None
    if not isinstance(answer, dict):
      raise ValueError("the answer is no JSON object")
    return answer
