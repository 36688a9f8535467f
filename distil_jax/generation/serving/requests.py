"""Reads the bodies of requests, and says what is wrong with them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.data.tokenizer import Tokenizer, TokenizerError
from distil_jax.generation.serving.fields import (
  Fields,
  Limits,
  RequestError,
  encodable,
)
from distil_jax.generation.serving.jobs import SampleJob

_MAX_SEED = 2**32
_SHARED = {
  *("model", "n", "max_tokens", "temperature", "top_p", "top_k", "min_p"),
  *("seed", "stop", "logprobs", "prompt_logprobs", "return_token_ids"),
  *("return_tokens_as_token_ids", "add_special_tokens"),
  *("stream", "stream_options"),
}
_COMPLETION = {*_SHARED, "prompt", "echo"}
_CHAT = {
  *_SHARED,
  *("messages", "max_completion_tokens", "top_logprobs"),
  "chat_template_kwargs",
}
# Settings of the tokenizer, and no variables of its chat template. A template
# of the client's own could also compute for ever.
_NO_VARIABLES = {
  *("self", "messages", "conversation", "chat_template", "tokenize"),
  *("padding", "truncation", "max_length", "return_tensors", "return_dict"),
  *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclasses.dataclass(frozen=True)
class Request:
  """Holds a request in the form in which it is answered.

  Attributes:
    jobs: for each prompt; `max_tokens` may be 0, for scores alone.
    top: most probable tokens that are named at each token of the completion;
      None leaves log-probabilities out.
    prompt_top: the same for the prompt, in vLLM's form.
    is_chat: answers as `/v1/chat/completions`.
    echoes: the prompt is repeated in front of the completion.
    returns_ids: token ids are added to the answer.
    names_ids: tokens are named by their ids, not by their texts.
    streams: the answer comes piece by piece.
    includes_usage: its last piece has the numbers of tokens.
  """

  jobs: Sequence[SampleJob]
  top: int | None = None
  prompt_top: int | None = None
  is_chat: bool = False
  echoes: bool = False
  returns_ids: bool = False
  names_ids: bool = False
  streams: bool = False
  includes_usage: bool = False

  @property
  def score_sizes(self) -> list[int]:
    """Returns how many tokens are named at each place; empty without scores."""
    return [x for x in (self.top, self.prompt_top) if x is not None]


def read_completion(body: Any, tokenizer: Tokenizer, limits: Limits) -> Request:
  """Reads a request of `/v1/completions`.

  Raises:
    RequestError: a field is missing, unknown or has a wrong value.
  """
  fields = Fields(body, _COMPLETION, limits)
  prompts = _prompts(fields, tokenizer)
  echoes = fields.flag("echo")
  top = fields.whole("logprobs", 0, limits.max_logprobs)
  request = Request(
    jobs=(),
    top=top,
    prompt_top=fields.whole("prompt_logprobs", 0, limits.max_logprobs),
    echoes=echoes,
    returns_ids=fields.flag("return_token_ids"),
    names_ids=fields.flag("return_tokens_as_token_ids"),
  )
  max_tokens = fields.whole("max_tokens", 0, limits.max_length)
  max_tokens = 16 if max_tokens is None else max_tokens
  if max_tokens == 0 and not (echoes or request.prompt_top is not None):
    raise RequestError(
      "max_tokens=0 asks for nothing without echo=true or prompt_logprobs",
      "max_tokens",
    )
  return _with_jobs(request, prompts, max_tokens, fields)


def read_chat(body: Any, tokenizer: Tokenizer, limits: Limits) -> Request:
  """Reads a request of `/v1/chat/completions`.

  Raises:
    RequestError: as for `read_completion`.
  """
  fields = Fields(body, _CHAT, limits)
  messages = _messages(fields.value("messages"))
  settings = _template_settings(fields.value("chat_template_kwargs"))
  try:
    prompt = tokenizer.encode_messages(messages, **settings)
  except TokenizerError as error:
    raise RequestError(str(error), "messages") from error
  # A template may do anything with the variables that it is given.
  except Exception as error:
    raise RequestError(
      f"the chat template cannot render these messages: {error}", "messages"
    ) from error
  top = fields.whole("top_logprobs", 0, limits.max_logprobs)
  if fields.flag("logprobs"):
    top = top or 0
  elif top is not None:
    raise RequestError("top_logprobs needs logprobs=true", "top_logprobs")
  request = Request(
    jobs=(),
    top=top,
    prompt_top=fields.whole("prompt_logprobs", 0, limits.max_logprobs),
    is_chat=True,
    returns_ids=fields.flag("return_token_ids"),
    names_ids=fields.flag("return_tokens_as_token_ids"),
  )
  names = ("max_completion_tokens", "max_tokens")
  found = [fields.whole(name, 1, limits.max_length) for name in names]
  rest = max(limits.max_length - len(prompt), 1)
  max_tokens = next((x for x in found if x is not None), rest)
  return _with_jobs(request, [tuple(prompt)], max_tokens, fields)


def _with_jobs(
  request: Request,
  prompts: Sequence[tuple[int, ...]],
  max_tokens: int,
  fields: Fields,
) -> Request:
  limits = fields.limits
  for prompt in prompts:
    if not prompt:
      raise RequestError("a prompt has no token", "prompt")
    if len(prompt) + max_tokens > limits.max_length:
      raise RequestError(
        f"a prompt of {len(prompt)} tokens and max_tokens={max_tokens} are "
        f"longer than the {limits.max_length} positions of {limits.model}; "
        "shorten the one or lower the other",
        "messages" if request.is_chat else "prompt",
        code="context_length_exceeded",
      )
  count = fields.whole("n", 1, limits.max_completions) or 1
  if count * len(prompts) > limits.max_completions:
    raise RequestError(
      f"n={count} for {len(prompts)} prompts is more than the "
      f"{limits.max_completions} completions of a request; send several",
      "n",
    )
  seed = fields.whole("seed", -(2**63), 2**63 - 1)
  temperature = fields.number("temperature", 0, 1e6)
  job = SampleJob(
    prompt=(),
    count=count,
    max_tokens=max_tokens,
    temperature=1.0 if temperature is None else temperature,
    top_p=fields.number("top_p", 0, 1),
    # vLLM and SGLang write -1, and llama.cpp 0, for all tokens.
    top_k=_at_least_one(fields.whole("top_k", -1, 2**31 - 1)),
    min_p=fields.number("min_p", 0, 1),
    stop=_stop(fields.value("stop")),
    seed=None if seed is None else seed % _MAX_SEED,
  )
  if 0 < job.temperature < 1e-6:
    raise RequestError("temperature must be 0 or at least 1e-6", "temperature")
  if job.top_p == 0:
    raise RequestError("top_p must be above 0", "top_p")
  return dataclasses.replace(
    request,
    jobs=[dataclasses.replace(job, prompt=prompt) for prompt in prompts],
    streams=fields.flag("stream"),
    includes_usage=_includes_usage(fields),
  )


def _includes_usage(fields: Fields) -> bool:
  name = "stream_options"
  given = fields.value(name)
  if given is None:
    return False
  if not fields.flag("stream"):
    raise RequestError(f"{name} needs stream=true", name)
  if not isinstance(given, Mapping):
    raise RequestError(f"{name} must be an object", name)
  # The other one asks for padding against those who listen to encrypted
  # traffic, which this server has none of.
  if unknown := set(given) - {"include_usage", "include_obfuscation"}:
    raise RequestError(
      f"{name} has include_usage, not {min(unknown)!r:.80}; leave it out", name
    )
  value = given.get("include_usage")
  if not isinstance(value, bool | None):
    raise RequestError(
      f"{name}.include_usage={value!r:.80} must be true or false", name
    )
  return bool(value)


def _prompts(fields: Fields, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
  given = fields.value("prompt")
  if isinstance(given, str) or _is_ids(given):
    given = [given]
  if not isinstance(given, Sequence) or not given:
    raise RequestError(
      "prompt must be a text, a list of token ids, or a list of these",
      "prompt",
    )
  most = fields.limits.max_completions
  if len(given) > most:
    raise RequestError(
      f"{len(given)} prompts are more than the {most} completions of a "
      "request; send several",
      "prompt",
    )
  adds_special = fields.flag("add_special_tokens", default=True)
  found = []
  for prompt in given:
    if isinstance(prompt, str):
      # As other servers do: the text of a special token is that token.
      ids = tokenizer.backend.encode(
        encodable(prompt, "prompt"), add_special_tokens=adds_special
      )
    elif _is_ids(prompt):
      ids = prompt
    else:
      raise RequestError(
        f"a prompt must be a text or a list of token ids, got {prompt!r:.80}",
        "prompt",
      )
    found.append(_checked_ids(ids, fields.limits))
  return found


def _is_ids(value: Any) -> bool:
  """Returns True for a list of whole numbers, of which there is one."""
  return (
    isinstance(value, Sequence)
    and not isinstance(value, str)
    and len(value) > 0
    and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
  )


def _checked_ids(ids: Sequence[int], limits: Limits) -> tuple[int, ...]:
  for token in ids:
    if not 0 <= token < limits.vocab_size:
      raise RequestError(
        f"prompt has a token {token}, but the ids of {limits.model} are 0 to "
        f"{limits.vocab_size - 1}",
        "prompt",
      )
  return tuple(ids)


def _messages(given: Any) -> list[dict[str, str]]:
  if not isinstance(given, Sequence) or isinstance(given, str) or not given:
    raise RequestError("messages must be a list of messages", "messages")
  found = []
  for message in given:
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(role, str):
      raise RequestError(
        "each of messages must be an object with role and content", "messages"
      )
    found.append({"role": role, "content": _content(message.get("content"))})
  return found


def _template_settings(given: Any) -> Mapping[str, Any]:
  name = "chat_template_kwargs"
  if given is None:
    return {}
  if not isinstance(given, Mapping):
    raise RequestError(f"{name} must be an object", name)
  if wrong := sorted(_NO_VARIABLES.intersection(given)):
    raise RequestError(
      f"{name} holds variables of the chat template, which {wrong[0]} is not; "
      "leave it out",
      name,
    )
  return given


def _content(given: Any) -> str:
  if isinstance(given, str):
    return encodable(given, "messages")
  parts = given if isinstance(given, Sequence) else [None]
  texts = [
    part.get("text") if isinstance(part, Mapping) else None for part in parts
  ]
  if not all(isinstance(text, str) for text in texts):
    raise RequestError(
      "content must be a text, or a list of parts with a text", "messages"
    )
  return encodable("".join(str(text) for text in texts), "messages")


def _stop(given: Any) -> tuple[str, ...]:
  if given is None:
    return ()
  texts = [given] if isinstance(given, str) else given
  if not isinstance(texts, Sequence) or not all(
    isinstance(text, str) and text for text in texts
  ):
    raise RequestError(
      "stop must be a text that is not empty, or a list of these", "stop"
    )
  return tuple(encodable(text, "stop") for text in texts)


def _at_least_one(top_k: int | None) -> int | None:
  return None if top_k is None or top_k < 1 else top_k
