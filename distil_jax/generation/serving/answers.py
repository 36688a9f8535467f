"""Writes what the worker found in the form of OpenAI's API."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.serving.jobs import Sampled, SampleJob, Scored
from distil_jax.generation.serving.requests import Request
from distil_jax.types import StopReason

Json = dict[str, Any]


def answer(
  request: Request,
  sampled: Sequence[Sequence[Sampled]],
  scored: Sequence[Sequence[Scored | None]],
  tokenizer: Tokenizer,
) -> Json:
  """Returns the answer, but for its name and time.

  Args:
    request: what was asked.
    sampled: completions of each prompt.
    scored: scores of each prompt with its completion, None if nobody asked.
    tokenizer: of the policy.
  """
  choices, num_completion_tokens = [], 0
  for job, completions, scores in zip(
    request.jobs, sampled, scored, strict=True
  ):
    for completion, score in zip(completions, scores, strict=True):
      num_completion_tokens += len(completion.ids)
      choice = _choice(request, job, completion, score, tokenizer)
      choices.append({"index": len(choices), **choice})
  found: Json = {
    "object": "chat.completion" if request.is_chat else "text_completion",
    "choices": choices,
    "usage": usage(request, num_completion_tokens),
  }
  if request.is_chat:
    # vLLM has these in the answer, because a conversation is one prompt.
    for name in ("prompt_token_ids", "prompt_logprobs"):
      values = [choice.pop(name) for choice in choices if name in choice]
      if values:
        found[name] = values[0]
  return found


def usage(request: Request, num_completion_tokens: int) -> Json:
  """Returns the numbers of tokens of an answer."""
  num_prompt_tokens = sum(len(job.prompt) for job in request.jobs)
  return {
    "prompt_tokens": num_prompt_tokens,
    "completion_tokens": num_completion_tokens,
    "total_tokens": num_prompt_tokens + num_completion_tokens,
  }


def finish_reason(reason: StopReason) -> str:
  """Returns why a completion ended, in the word of OpenAI's API."""
  return "length" if reason == StopReason.LENGTH else "stop"


def _choice(
  request: Request,
  job: SampleJob,
  completion: Sampled,
  score: Scored | None,
  tokenizer: Tokenizer,
) -> Json:
  text = completion_text(completion, job, tokenizer)
  found: Json = {"finish_reason": finish_reason(completion.reason)}
  if request.is_chat:
    found["message"] = {"role": "assistant", "content": text}
  elif request.echoes:
    found["text"] = tokenizer.decode(job.prompt, skip_special=False) + text
  else:
    found["text"] = text
  found["logprobs"] = None
  names = _Names(tokenizer, request.names_ids)
  if score is not None and request.top is not None:
    begin = 0 if request.echoes else len(job.prompt)
    ids = [*job.prompt, *completion.ids]
    write = _chat_logprobs if request.is_chat else _logprobs
    found["logprobs"] = write(ids, begin, score, request.top, names)
  if score is not None and request.prompt_top is not None:
    found["prompt_logprobs"] = _prompt_logprobs(
      job.prompt, score, request.prompt_top, names
    )
  if request.returns_ids:
    found["prompt_token_ids"] = list(job.prompt)
    found["token_ids"] = list(completion.ids)
  return found


def completion_text(
  completion: Sampled, job: SampleJob, tokenizer: Tokenizer
) -> str:
  """Returns a completion's text, up to the stop string that ended it."""
  text = tokenizer.decode(completion.ids)
  if completion.reason != StopReason.STOP_STRING:
    return text
  places = [text.find(string) for string in job.stop]
  return text[: min((x for x in places if x >= 0), default=len(text))]


class _Names:
  """Gives tokens the texts under which they stand in an answer."""

  def __init__(self, tokenizer: Tokenizer, names_ids: bool):
    self._tokenizer, self._names_ids = tokenizer, names_ids
    self._texts: dict[int, str] = {}

  def text(self, token: int) -> str:
    """Returns the token's own text, special ones included."""
    if token not in self._texts:
      text = self._tokenizer.decode([token], skip_special=False)
      self._texts[token] = text
    return self._texts[token]

  def __call__(self, token: int) -> str:
    return f"token_id:{token}" if self._names_ids else self.text(token)


def _top(score: Scored, row: int, size: int) -> list[tuple[int, float]]:
  ids, log_probs = score.top_ids[row, :size], score.top_log_probs[row, :size]
  return list(zip(ids.tolist(), map(_finite, log_probs.tolist()), strict=True))


def _logprobs(
  ids: Sequence[int], begin: int, score: Scored, size: int, names: _Names
) -> Json:
  """Returns the form of `/v1/completions`, from a place of the sequence on."""
  own, top = [], []
  for place in range(begin, len(ids)):
    if place == 0:  # nothing stands before it
      own.append(None)
      top.append(None)
      continue
    value = _finite(float(score.log_probs[place - 1]))
    own.append(value)
    # Texts of two tokens may be the same; the more probable one keeps it.
    named = {names(i): x for i, x in reversed(_top(score, place - 1, size))}
    top.append({**dict(reversed(named.items())), names(ids[place]): value})
  tokens = [names(token) for token in ids[begin:]]
  lengths = [len(names.text(token)) for token in ids[begin:]]
  offsets = np.cumsum([0, *lengths])[:-1].tolist()
  return {
    "tokens": tokens,
    "token_logprobs": own,
    "top_logprobs": top if size else None,
    "text_offset": offsets,
  }


def _chat_logprobs(
  ids: Sequence[int], begin: int, score: Scored, size: int, names: _Names
) -> Json:
  def entry(token: int, value: float) -> Json:
    text = names.text(token)
    # A part of a character has no text of its own.
    known = list(text.encode()) if "\ufffd" not in text else None
    return {"token": names(token), "logprob": value, "bytes": known}

  return {
    "content": [
      {
        **entry(ids[place], _finite(float(score.log_probs[place - 1]))),
        "top_logprobs": [entry(*x) for x in _top(score, place - 1, size)],
      }
      for place in range(begin, len(ids))
    ]
  }


def _prompt_logprobs(
  prompt: Sequence[int], score: Scored, size: int, names: _Names
) -> list[Json | None]:
  """Returns vLLM's form: for each token a mapping of ids, None at the first."""
  found: list[Json | None] = [None]
  for row, token in enumerate(prompt[1:]):
    ranked = {
      i: (value, rank)
      for rank, (i, value) in enumerate(_top(score, row, size), start=1)
    }
    own = (_finite(float(score.log_probs[row])), int(score.ranks[row]))
    entries = {token: own, **ranked}
    found.append(
      {
        str(i): {
          "logprob": value,
          "rank": rank,
          "decoded_token": names.text(i),
        }
        for i, (value, rank) in entries.items()
      }
    )
  return found


def _finite(value: float) -> float:
  # JSON has no infinity.
  return max(value, -1e9)
