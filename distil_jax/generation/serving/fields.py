"""Checks the fields of a request one by one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Fields that ask for what this server does not do, and the values with which
# they ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  "suffix": ("",),
  "best_of": (1,),
  "presence_penalty": (0,),
  "frequency_penalty": (0,),
  "repetition_penalty": (1,),
  "logit_bias": ({},),
  "tools": ([],),
  # Without tools there is nothing to choose.
  "tool_choice": ("none", "auto"),
  "parallel_tool_calls": (True, False),
  "modalities": (["text"],),
  "response_format": ({"type": "text"},),
}
# Fields that change nothing in the answer.
_IGNORED = {
  "user",
  "metadata",
  "store",
  "service_tier",
  "safety_identifier",
  "prompt_cache_key",
  # Of llama.cpp's server.
  "cache_prompt",
}


class RequestError(ValueError):
  """Says what is wrong with a request.

  Attributes:
    status: of HTTP.
    param: the field at fault, if there is one.
    code: a word for programs, if there is one.
  """

  def __init__(
    self,
    message: str,
    param: str | None = None,
    *,
    status: int = 400,
    code: str | None = None,
  ):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code


@dataclasses.dataclass(frozen=True)
class Limits:
  """Holds what a server can do.

  Attributes:
    model: the name under which it answers.
    vocab_size: tokens have ids below it.
    max_length: tokens of prompt and completion together.
    max_logprobs: most probable tokens that are named at each place.
    max_completions: completions of a request, of all its prompts.
  """

  model: str
  vocab_size: int
  max_length: int
  max_logprobs: int
  max_completions: int = 1024

  def check_model(self, name: Any) -> None:
    """Refuses a model that is not this server's."""
    if name != self.model:
      raise RequestError(
        f"there is no model {name!r:.80} here; this server has {self.model!r}",
        "model",
        status=404,
        code="model_not_found",
      )


class Fields:
  """Gives the fields of a body, checked for their types."""

  def __init__(self, body: Any, known: set[str], limits: Limits):
    if not isinstance(body, Mapping):
      raise RequestError("the body must be a JSON object")
    self._body, self.limits = body, limits
    for name, value in body.items():
      if value is None or name in known or name in _IGNORED:
        continue
      if name in _NEUTRAL and value in _NEUTRAL[name]:
        continue
      raise RequestError(
        f"{name:.80} is not supported by this server; leave it out", name[:80]
      )
    if body.get("model") is not None:
      limits.check_model(body["model"])

  def value(self, name: str) -> Any:
    """Returns what the body has under a name, None without."""
    return self._body.get(name)

  def flag(self, name: str, default: bool = False) -> bool:
    """Returns a truth value."""
    value = self.value(name)
    if value is not None and not isinstance(value, bool):
      raise RequestError(f"{name}={value!r:.80} must be true or false", name)
    return default if value is None else value

  def whole(self, name: str, least: int, most: int) -> int | None:
    """Returns a whole number within limits, None without."""
    value = self.value(name)
    if value is None:
      return None
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
      raise RequestError(
        f"{name}={value!r:.80} must be a whole number from {least} to {most}",
        name,
      )
    return value

  def number(self, name: str, least: float, most: float) -> float | None:
    """Returns a number within limits, None without."""
    value = self.value(name)
    if value is None:
      return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # also without NaN
      raise RequestError(
        f"{name}={value!r:.80} must be a number from {least:g} to {most:g}",
        name,
      )
    return float(value)


def encodable(text: str, param: str) -> str:
  """Returns the text if it has a form in UTF-8, which JSON does not ensure.

  Raises:
    RequestError: it has none.
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise RequestError(
      f"{param} has half of a surrogate pair at character {error.start}, which "
      "is no text; send the whole character",
      param,
    ) from error
  return text
