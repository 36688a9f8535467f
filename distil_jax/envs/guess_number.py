"""Plays a game: the student guesses a number and is told: too low, too high.

  user       I have chosen a whole number from 37 to 52. You have 4 guesses. ...
  assistant  44
  user       Too low.
  assistant  48

How often a player wins who guesses at random is set by the settings: about
`max_guesses` / `largest`. The teacher of a turn is told which numbers were
still possible and which guess would have halved them, not which number is the
right one: a player that was told could not be followed.
"""

import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from distil_jax.config.environments import GuessNumberConfig
from distil_jax.types import (
  Demonstration,
  Message,
  Problem,
  Reply,
  Status,
  Verdict,
)

_FIELDS = ("smallest", "largest", "number")
# Ranges begin within this; every fifth of them is held out.
_LARGEST_START = 80
_HELD_OUT = 5
# Longer runs of digits are no number of a game, and slow to read.
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")


@dataclasses.dataclass(frozen=True)
class GuessNumber:
  """Chooses numbers and answers guesses.

  Attributes:
    config: Size of the range, number of guesses, and seed.
  """

  config: GuessNumberConfig = dataclasses.field(
    default_factory=GuessNumberConfig
  )

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a game.

    Args:
      row: Whole numbers `smallest`, `largest` and, between them, `number`.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A number is missing, or they are not in that order.
    """
    smallest, largest, number = (_whole(row, name) for name in _FIELDS)
    if not 0 <= smallest <= number <= largest:
      raise ValueError(
        f"number={number} must be from smallest={smallest} to "
        f"largest={largest}, and none of them below 0"
      )
    question = (
      f"I have chosen a whole number from {smallest} to {largest}. You have "
      f"{self.max_turns} guesses. Write one number."
    )
    return Problem(
      index=index,
      messages=({"role": "user", "content": question},),
      answer=str(number),
      details={"smallest": smallest, "largest": largest},
    )

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a game; no range is in both splits.

    Raises:
      ValueError: There is no such split.
    """
    if split not in ("train", "evaluation"):
      raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    rng = random.Random(f"guess_number/{self.config.seed}/{split}/{index}")
    starts = [
      start
      for start in range(1, _LARGEST_START + 1)
      if (start % _HELD_OUT == 0) == (split == "evaluation")
    ]
    smallest = rng.choice(starts)
    largest = smallest + self.config.largest - 1
    row = {
      "smallest": smallest,
      "largest": largest,
      "number": rng.randint(smallest, largest),
    }
    return self.problem(row, index)

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """Returns a good first guess."""
    problem = self.generate(index, "train")
    return Demonstration(
      index=index,
      messages=tuple(teacher_prompt(problem)),
      solution=str(_middle(*_possible(problem, []))),
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Judges a first guess, which is the last number of the completion."""
    return self._judge_last(problem, [completion])

  @property
  def max_turns(self) -> int:
    """Guesses in a game."""
    return self.config.max_guesses

  def reply(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Reply:
    """Says if the newest guess is too low or too high.

    The reward is 1 if it is right, else 0. The feedback on any other guess
    names the numbers that were possible, and the one that halves them.
    """
    del replies
    verdict = self._judge_last(problem, turns)
    if verdict.status == Status.CORRECT:
      return Reply(verdict=verdict)
    guess = verdict.details["guess"]
    if guess is None:
      return Reply("That is no number. Write one number.", verdict)
    side = "low" if guess < int(problem.answer) else "high"
    return Reply(f"Too {side}.", verdict)

  def _judge_last(self, problem: Problem, turns: Sequence[str]) -> Verdict:
    guess = _guess(turns[-1])
    details = {"guess": guess, "num_guesses": len(turns)}
    if guess == int(problem.answer):
      return Verdict(1.0, "", Status.CORRECT, details)
    low, high = _possible(problem, turns[:-1])
    feedback = (
      f"The number was one from {low} to {high}: guess {_middle(low, high)}."
    )
    status = Status.UNPARSABLE if guess is None else Status.WRONG
    return Verdict(0.0, feedback, status, details)


def _whole(row: Mapping[str, Any], name: str) -> int:
  value = row.get(name)
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError(f"{name} must be a whole number, got {value!r}")
  return value


def _guess(text: str) -> int | None:
  numbers = _NUMBER.findall(text)
  return int(numbers[-1]) if numbers else None


def _possible(problem: Problem, turns: Sequence[str]) -> tuple[int, int]:
  """Returns the smallest and the largest number left after some guesses."""
  low, high = problem.details["smallest"], problem.details["largest"]
  number = int(problem.answer)
  for guess in map(_guess, turns):
    if guess is not None and guess < number:
      low = max(low, guess + 1)
    elif guess is not None and guess > number:
      high = min(high, guess - 1)
  return low, high


def _middle(low: int, high: int) -> int:
  return (low + high) // 2
