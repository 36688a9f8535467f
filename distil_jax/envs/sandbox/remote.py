"""A sandbox on another machine, asked over HTTP; see `serving`."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Self

from distil_jax.envs.sandbox import serialization
from distil_jax.envs.sandbox.jobs import Job, Outcome, SandboxError, crashed

# For the way there and back, and for waiting until another job is done.
_SPARE_SECONDS = 60.0
_CHECK_SECONDS = 10.0
_MAX_ANSWER = 64 << 20
# It is a machine nearby, to which no proxy leads.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RemoteSandbox:
  """Sends jobs to a machine that runs `distil-jax sandbox`."""

  def __init__(self, url: str):
    """Asks once whether it is there.

    Args:
      url: such as `http://10.0.0.2:8765`.

    Raises:
      SandboxError: it does not answer, or is something else.
      ValueError: this is no such address.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
      raise ValueError(f"sandbox url {url!r} must be http://host:port")
    self._url = url.rstrip("/")
    try:
      said = self._ask("/", None, _CHECK_SECONDS)
    except (OSError, ValueError, http.client.HTTPException) as error:
      raise SandboxError(
        f"no sandbox answers at {url}: {error}; start one there with "
        "`distil-jax sandbox`"
      ) from None
    if said.get("service") != serialization.SERVICE:
      raise SandboxError(f"what answers at {url} is no sandbox: {said}")

  def run(self, job: Job) -> Outcome:
    """Asks, and waits; what does not answer has crashed."""
    asked = serialization.job_to_json(job)
    try:
      said = self._ask("/run", asked, job.limits.deadline + _SPARE_SECONDS)
      return serialization.outcome_from_json(said)
    except (OSError, ValueError, http.client.HTTPException) as error:
      return crashed(f"{self._url}: {error}")

  def close(self) -> None:
    """Nothing is held."""

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
      with _OPENER.open(request, timeout=seconds) as answer:
        said = json.loads(answer.read(_MAX_ANSWER))
    except urllib.error.HTTPError as error:
      with error:
        text = error.read(1000).decode(errors="replace")
      raise ValueError(f"HTTP {error.code}: {text}") from None
    except RecursionError:
      raise ValueError("an answer nested too deep") from None
    if not isinstance(said, dict):
      raise ValueError("an answer that is no object")
    return said
