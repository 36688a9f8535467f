"""Defines who replies to a student, and writes replies as tokens.

The student's tokens are never tokenised again. Only the messages are, with what
the chat template puts around them.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from distil_jax.data.tokenizer import Tokenizer
from distil_jax.types import Problem, Reply

_CUT = "\n(cut)"


class BetweenTurns:
  """Turns a message into the tokens between two turns of the student."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    *,
    roles: Sequence[str],
    max_length: int,
    setting: str,
  ):
    """Reads the chat template.

    Args:
      tokenizer: Its chat template puts the message between two turns.
      roles: The message has the first that the template shows.
      max_length: Most tokens of a message; a longer one is cut and marked as
        such.
      setting: Name of that limit, for errors.

    Raises:
      TokenizerError: The chat template has no place for such a message.
      ValueError: A message may not even be as long as the mark of a cut.
    """
    self._tokenizer = tokenizer
    self._before, self._after = tokenizer.tokens_around(roles)
    self._max_length = max_length
    shortest = len(tokenizer.encode(_CUT))
    if max_length <= shortest:
      raise ValueError(
        f"{setting}={max_length} must be more than the {shortest} tokens that "
        "mark a message as cut"
      )

  def __call__(self, message: str, *, last_id: int) -> list[int]:
    """Returns the tokens between one turn of the student and its next.

    If a turn ended by a stop string, the end token is added here: it is then
    the template's and not the student's.

    Args:
      message: What is said between the two.
      last_id: Last token of the turn before.
    """
    before = self._before
    eos_ids = self._tokenizer.eos_ids
    if last_id in eos_ids and before and before[0] in eos_ids:
      before = before[1:]
    return [*before, *self._cut(message), *self._after]

  def _cut(self, message: str) -> list[int]:
    """Returns the tokens of a message, cut to the limit."""
    encode, limit = self._tokenizer.encode, self._max_length
    # Text beyond the limit is not tokenised. The cut may leave half of a
    # surrogate pair, which `replace` removes because it cannot be encoded.
    start = message[: limit * self._tokenizer.longest_token + 1]
    ids = encode(start.encode("utf-8", "replace").decode("utf-8"))
    if len(ids) <= limit and len(start) == len(message):
      return ids
    # Text and mark may be tokenised in another way together than apart, so the
    # result is measured and shortened until it fits.
    kept = limit - len(encode(_CUT))
    while True:
      # A cut inside a character leaves bytes that decode to U+FFFD.
      text = self._tokenizer.decode(ids[:kept]).rstrip("\ufffd")
      shorter = encode(text + _CUT)
      if len(shorter) <= limit:
        return shorter
      kept -= 1


class Partner(Protocol):
  """Replies to the student's turns: `ToolPool` or `ReplyPool`."""

  @property
  def max_turns(self) -> int:
    """Most turns of the student in one episode."""
    ...

  @property
  def answers_last_turn(self) -> bool:
    """Returns True if it is asked though its message cannot be shown."""
    ...

  @property
  def between_turns(self) -> BetweenTurns:
    """Writes a message as tokens."""
    ...

  def ask(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Future[Reply]:
    """Asks for the reply to the newest turn; never raises, nor its future."""
    ...
