"""Writes answers piece by piece, as OpenAI's API streams them."""

from collections.abc import Generator, Iterator, Sequence

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.generation.serving.answers import (
  Json,
  completion_text,
  finish_reason,
  usage,
)
from distil_jax.generation.serving.jobs import Sampled, SampleJob
from distil_jax.generation.serving.requests import Request
from distil_jax.types import StopReason

# Stands for bytes that are no character yet.
_INCOMPLETE = "\ufffd"


class TextStream:
  """Turns the tokens of a completion into text that is never taken back.

  The end of the text is held back as long as it may be a part of a character
  or of a stop string.
  """

  def __init__(self, job: SampleJob, tokenizer: Tokenizer):
    self._job, self._tokenizer = job, tokenizer
    self._ids: list[int] = []
    # Tokens before the first place are told, and those before the second are
    # their context: a tokenizer may treat the beginning of a text differently.
    self._context, self._read = 0, 0
    self._held, self._told = "", ""

  def push(self, ids: Sequence[int]) -> str:
    """Returns the text that is certain with these further tokens."""
    self._ids += ids
    before = self._tokenizer.decode(self._ids[self._context : self._read])
    text = self._tokenizer.decode(self._ids[self._context :])
    if len(text) > len(before) and not text.endswith(_INCOMPLETE):
      self._held += text[len(before) :]
      self._context, self._read = self._read, len(self._ids)
    return self._tell(len(self._held) - self._num_uncertain())

  def end(self, completion: Sampled) -> str:
    """Returns what is left of the whole text."""
    whole = completion_text(completion, self._job, self._tokenizer)
    return whole[len(self._told) :]

  def _tell(self, count: int) -> str:
    text, self._held = self._held[:count], self._held[count:]
    self._told += text
    return text

  def _num_uncertain(self) -> int:
    """Returns the characters from where a stop string is or may begin."""
    held = self._held
    for place in range(len(held)):
      rest = held[place:]
      for stop in self._job.stop:
        if rest.startswith(stop) or stop.startswith(rest):
          return len(rest)
    return 0


class Chunks:
  """Makes the chunks of one answer."""

  def __init__(self, request: Request, head: Json):
    """Takes what all chunks have in common.

    Args:
      request: what was asked.
      head: name, time and model of the answer.
    """
    kind = "chat.completion.chunk" if request.is_chat else "text_completion"
    self._request = request
    self._head = {**head, "object": kind}
    if request.includes_usage:
      self._head["usage"] = None

  def first(self, tokenizer: Tokenizer) -> Iterator[Json]:
    """Yields what stands before the first token of each completion."""
    request, index = self._request, 0
    for job in request.jobs:
      for _ in range(job.count):
        more: Json = {}
        if request.returns_ids:
          more["prompt_token_ids"] = list(job.prompt)
        text = ""
        if request.echoes:
          text = tokenizer.decode(job.prompt, skip_special=False)
        if request.is_chat or text or more:
          yield self._chunk(index, text, more, is_first=True)
        index += 1

  def delta(self, index: int, text: str, ids: Sequence[int]) -> Iterator[Json]:
    """Yields the chunk of new tokens; none if there is nothing to say."""
    more = {"token_ids": list(ids)} if self._request.returns_ids else {}
    if text or more:
      yield self._chunk(index, text, more)

  def end(self, index: int, text: str, reason: StopReason) -> Json:
    """Returns the last chunk of a completion."""
    return self._chunk(index, text, {}, finish=finish_reason(reason))

  def of_answer(self, answer: Json) -> Generator[Json]:
    """Yields an answer that is whole already, each completion as one chunk."""
    parts = ("prompt_token_ids", "prompt_logprobs")
    for choice in answer["choices"]:
      more = {
        name: choice[name]
        for name in (*parts, "token_ids", "logprobs")
        if name in choice
      } | {name: answer[name] for name in parts if name in answer}
      text = choice["message"]["content"] if "message" in choice else None
      yield self._chunk(
        choice["index"],
        choice["text"] if text is None else text,
        more,
        is_first=True,
        finish=choice["finish_reason"],
      )
    yield from self.usage(answer["usage"]["completion_tokens"])

  def usage(self, num_completion_tokens: int) -> Iterator[Json]:
    """Yields the chunk with the numbers of tokens, if they are asked for."""
    if self._request.includes_usage:
      found = usage(self._request, num_completion_tokens)
      yield {**self._head, "choices": [], "usage": found}

  def _chunk(
    self,
    index: int,
    text: str,
    more: Json,
    *,
    is_first: bool = False,
    finish: str | None = None,
  ) -> Json:
    choice: Json = {"index": index}
    if self._request.is_chat:
      delta: Json = {"role": "assistant"} if is_first else {}
      if text or is_first:
        delta["content"] = text
      choice["delta"] = delta
    else:
      choice["text"] = text
    # Ids and log-probabilities, if there are any, win over nothing.
    choice |= {"logprobs": None, "finish_reason": finish, **more}
    return {**self._head, "choices": [choice]}
