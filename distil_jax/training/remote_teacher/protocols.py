"""Writes requests for a teacher's lists, and reads them from the answers."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from distil_jax.data.tokenizer import Tokenizer

Protocol = Literal["prompt_logprobs", "echo", "next_token"]
_PREFIX = "token_id:"
# A server rounds; anything above is no log-probability.
_LARGEST = 1e-2
# Servers have defaults of their own, some of the model's generation config.
# Temperature 1 and no truncation is the teacher's own distribution.
_PLAIN = {
  "temperature": 1.0,
  "top_p": 1.0,
  "top_k": -1,
  "min_p": 0.0,
  "repetition_penalty": 1.0,
}


class AnswerError(ValueError):
  """The error of an answer that is not what was asked for."""


class List(NamedTuple):
  """Holds what a server says of one state.

  Attributes:
    ids: the tokens of the list, the most probable first.
    log_probs: theirs.
    token_log_prob: that of the token that follows in the sequence; None if
      only the list was asked for.
  """

  ids: list[int]
  log_probs: list[float]
  token_log_prob: float | None = None


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """Maps what a server calls a token to its id.

  Attributes:
    tokenizer: of the student.
    size: ids are below it.
  """

  tokenizer: Tokenizer
  size: int

  def text(self, token: int) -> str:
    """Returns the text of one token, special ones included."""
    return self.tokenizer.decode([token], skip_special=False)

  @functools.cached_property
  def _ids(self) -> dict[str, int | None]:
    """Ids by text; None for a text of several tokens."""
    found: dict[str, int | None] = {}
    for token in range(self.size):
      text = self.text(token)
      found[text] = None if text in found else token
    return found

  def checked(self, token: Any) -> int:
    """Returns an id that the server gave.

    Raises:
      AnswerError: the student has no such token.
    """
    try:
      number = int(token)
    except (TypeError, ValueError):
      raise AnswerError(f"{token!r} is no token id") from None
    if not 0 <= number < self.size:
      raise AnswerError(
        f"there is a token {number}, but the student's ids are 0 to "
        f"{self.size - 1}: the server has another vocabulary"
      )
    return number

  def named(self, name: str) -> int | None:
    """Returns the id of `token_id:N`, or of a text; None if it is not clear."""
    if name.startswith(_PREFIX):
      return self.checked(name.removeprefix(_PREFIX))
    return self._ids.get(name)


@dataclasses.dataclass(frozen=True)
class Asking:
  """Says what is asked, and how.

  Attributes:
    protocol: see `config.TeacherServerConfig`.
    kind: the most probable tokens, or samples.
    size: C, their number.
    model: the server's name for the teacher.
    vocabulary: of the student.
    sends_text: prompts travel as text.
    scored_tokens: tokens to sample where none is wanted; some servers refuse 0.
    extra: fields to add; None takes one out.
  """

  protocol: Protocol
  kind: Literal["samples", "top_k"]
  size: int
  model: str
  vocabulary: Vocabulary
  sends_text: bool = False
  scored_tokens: int = 1
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def of_sequence(self, ids: Sequence[int]) -> dict[str, Any]:
    """Returns the request for the lists at all tokens of a sequence.

    Raises:
      AnswerError: the ids cannot be sent as text.
    """
    fields: dict[str, Any] = {"max_tokens": self.scored_tokens}
    if self.protocol == "echo":
      fields |= {
        "echo": True,
        "logprobs": self.size,
        "return_tokens_as_token_ids": True,
      }
    else:
      fields["prompt_logprobs"] = self.size
    return self._request(ids, fields)

  def of_state(self, ids: Sequence[int], seed: int) -> dict[str, Any]:
    """Returns the request for the list of what follows the ids."""
    fields: dict[str, Any] = {"max_tokens": 1, "seed": seed}
    if self.kind == "samples":
      fields |= {"n": self.size, "return_token_ids": True}
      fields |= {"logprobs": 1, "return_tokens_as_token_ids": True}
    else:
      fields |= {"logprobs": self.size, "return_tokens_as_token_ids": True}
    return self._request(ids, fields)

  def _request(
    self, ids: Sequence[int], fields: Mapping[str, Any]
  ) -> dict[str, Any]:
    prompt: Any = list(ids)
    if self.sends_text:
      prompt = self._text(ids)
    found = {"model": self.model, "prompt": prompt, **_PLAIN, **fields}
    found |= self.extra
    return {name: value for name, value in found.items() if value is not None}

  def _text(self, ids: Sequence[int]) -> str:
    tokenizer = self.vocabulary.tokenizer
    text = tokenizer.decode(ids, skip_special=False)
    back = tokenizer.backend.encode(text, add_special_tokens=False)
    if list(back) != list(ids):
      raise AnswerError(
        "the text of a sample is not read back as its tokens; send ids"
      )
    return text

  def read_sequence(self, answer: Any, ids: Sequence[int]) -> list[List]:
    """Returns the list at each of the tokens but the first.

    Raises:
      AnswerError: the answer is of another form, sequence or vocabulary.
    """
    (choice,) = _choices(answer, 1)
    if self.protocol == "echo":
      return self._read_echo(choice, ids)
    entries = choice.get("prompt_logprobs", answer.get("prompt_logprobs"))
    if not isinstance(entries, list):
      raise AnswerError(
        "there are no prompt_logprobs in the answer; set "
        "teacher.server.protocol to echo or next_token"
      )
    if len(entries) != len(ids):
      raise AnswerError(
        f"{len(ids)} tokens were sent, but {len(entries)} have prompt_logprobs"
      )
    return [
      self._read_entries(entry, token)
      for entry, token in zip(entries[1:], ids[1:], strict=True)
    ]

  def read_state(self, answer: Any) -> List:
    """Returns the list of what follows a state.

    Raises:
      AnswerError: as `read_sequence`.
    """
    if self.kind == "samples":
      choices = _choices(answer, self.size)
      ids = [self._sampled(choice) for choice in choices]
      return List(ids, [-math.log(self.size)] * self.size)
    (choice,) = _choices(answer, 1)
    listed = choice.get("logprobs")
    if not isinstance(listed, Mapping):
      raise AnswerError("there are no logprobs in the answer")
    content = listed.get("content")
    if isinstance(content, list) and content:
      entries = content[0].get("top_logprobs") or []
      return self._best({self._id(x): x.get("logprob") for x in entries})
    top = listed.get("top_logprobs")
    if not isinstance(top, list) or not top or not isinstance(top[0], Mapping):
      raise AnswerError("there are no top_logprobs in the answer")
    named = {self.vocabulary.named(name): x for name, x in top[0].items()}
    return self._best(named)

  def check_texts(self, answer: Any) -> None:
    """Checks that ids stand for the same texts here and there.

    Only for answers that have been read, and give both.

    Raises:
      AnswerError: names the first id with both texts.
    """
    choice = answer["choices"][0]
    pairs: list[tuple[Any, Any]] = []
    for entries in choice.get("prompt_logprobs") or ():
      for name, entry in (entries or {}).items():
        if isinstance(entry, Mapping):
          pairs.append((name, entry.get("decoded_token")))
    listed = choice.get("logprobs")
    if isinstance(listed, Mapping) and listed.get("content"):
      for entry in listed["content"][0].get("top_logprobs") or ():
        pairs.append((entry.get("id"), entry.get("token")))
    for token, theirs in pairs:
      if token is None or not theirs:
        continue  # a special token, which some servers do not show
      own = self.vocabulary.text(self.vocabulary.checked(token))
      # Parts of a character have no text, and some servers strip spaces.
      is_whole = "\ufffd" not in own + theirs
      if is_whole and own.strip() != theirs.strip():
        raise AnswerError(
          f"token {token} is {own!r} to the student and {theirs!r} to the "
          "server: it has another vocabulary; serve a model with the "
          "student's tokenizer"
        )

  def _read_entries(self, entries: Any, token: int) -> List:
    if not isinstance(entries, Mapping) or str(token) not in entries:
      raise AnswerError(
        f"prompt_logprobs do not have the token {token} that was sent: the "
        "server has another vocabulary, or changes the prompt"
      )
    found = {}
    for name, entry in entries.items():
      value = entry.get("logprob") if isinstance(entry, Mapping) else entry
      found[self.vocabulary.checked(name)] = value
    return self._best(found)._replace(token_log_prob=min(found[token], 0.0))

  def _read_echo(self, choice: Any, ids: Sequence[int]) -> list[List]:
    listed = choice.get("logprobs")
    tokens = listed.get("tokens") if isinstance(listed, Mapping) else None
    top = listed.get("top_logprobs") if isinstance(listed, Mapping) else None
    if not isinstance(tokens, list) or not isinstance(top, list):
      raise AnswerError("there are no logprobs of the prompt in the answer")
    if len(tokens) < len(ids) or len(top) != len(tokens):
      raise AnswerError(
        f"{len(ids)} tokens were sent, but {len(tokens)} came back with "
        f"{len(top)} lists"
      )
    for sent, name in zip(ids, tokens[: len(ids)], strict=True):
      if name not in (f"{_PREFIX}{sent}", self.vocabulary.text(sent)):
        raise AnswerError(
          f"the token {sent} was sent and {name!r} came back: the server has "
          "another vocabulary"
        )
    own = listed.get("token_logprobs")
    if not isinstance(own, list) or len(own) != len(tokens):
      raise AnswerError("the tokens of the prompt have no token_logprobs")
    found = []
    for entries, value in zip(
      top[1 : len(ids)], own[1 : len(ids)], strict=True
    ):
      if not isinstance(entries, Mapping):
        raise AnswerError("a token of the prompt has no top_logprobs")
      named = {self.vocabulary.named(name): x for name, x in entries.items()}
      value = _log_prob(value)
      found.append(self._best(named)._replace(token_log_prob=value))
    return found

  def _id(self, entry: Any) -> int | None:
    """Returns the id of an entry that names its token, as llama.cpp's do."""
    if not isinstance(entry, Mapping):
      raise AnswerError(f"{entry!r} is no entry of top_logprobs")
    if "id" in entry:
      return self.vocabulary.checked(entry["id"])
    return self.vocabulary.named(str(entry.get("token")))

  def _sampled(self, choice: Any) -> int:
    """Returns the token that was sampled, by its id if that is told."""
    ids = choice.get("token_ids")
    if isinstance(ids, list) and ids:
      return self.vocabulary.checked(ids[0])
    listed = choice.get("logprobs")
    listed = listed if isinstance(listed, Mapping) else {}
    token = None
    if listed.get("content"):
      token = self._id(listed["content"][0])
    elif listed.get("tokens"):
      token = self.vocabulary.named(str(listed["tokens"][0]))
    elif isinstance(text := choice.get("text"), str):
      is_end = text == "" and choice.get("finish_reason") == "stop"
      end_id = self.vocabulary.tokenizer.end_id
      token = end_id if is_end else self.vocabulary.named(text)
    if token is None:
      raise AnswerError(
        "the text of a sampled token is not that of one token, and its id is "
        "not told"
      )
    return token

  def _best(self, values: Mapping[int | None, Any]) -> List:
    """Returns the most probable of the tokens that are known by their ids."""
    checked = {i: _log_prob(value) for i, value in values.items()}
    known = [(i, x) for i, x in checked.items() if i is not None]
    known.sort(key=lambda item: -item[1])
    if not known:
      raise AnswerError("no token of a list is one of the student's")
    ids, log_probs = zip(*known[: self.size], strict=True)
    return List(list(ids), list(log_probs))


def _log_prob(value: Any) -> float:
  """Returns a log-probability as the server gave it, but at most 0."""
  is_number = isinstance(value, int | float) and not math.isnan(value)
  if not is_number or value > _LARGEST:
    raise AnswerError(f"{value!r} is no log-probability")
  return min(float(value), 0.0)


def _choices(answer: Any, count: int) -> list[Mapping[str, Any]]:
  choices = answer.get("choices") if isinstance(answer, Mapping) else None
  if not isinstance(choices, list) or len(choices) != count:
    raise AnswerError(f"the answer does not have {count} choices")
  if not all(isinstance(choice, Mapping) for choice in choices):
    raise AnswerError("a choice is no object")
  return choices
