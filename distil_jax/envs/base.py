"""Protocols of environments and tools."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from distil_jax.types import Demonstration, Message, Problem, Reply, Verdict


class Environment(Protocol):
  """Reads problems and judges completions.

  An environment may have `required_fields`, the names of texts that every row
  must have: a data file that lacks them is refused early, with the names of
  the fields that it has instead.
  """

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a data row; raises ValueError if it is malformed."""
    ...

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Judges a completion; returns a verdict whatever the completion says."""
    ...


@runtime_checkable
class Generator(Environment, Protocol):
  """An environment that makes its own problems and demonstrations."""

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; no problem is in both splits."""
    ...

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """Makes a supervised example from a problem of the training split."""
    ...


@runtime_checkable
class SelfJudged(Environment, Protocol):
  """An environment whose verdicts the policy completes by critiques."""

  @property
  def is_rewarded_by_critique(self) -> bool:
    """Returns True if there is no reward before there is a critique."""
    ...

  def critique_prompt(
    self, problem: Problem, completion: str, verdict: Verdict
  ) -> Sequence[Message] | None:
    """Returns the critic's prompt; None means that no critique is needed."""
    ...

  def with_critique(self, verdict: Verdict, critique: str) -> Verdict:
    """Returns the verdict that includes the critique, whatever that says.

    In `details`, `has_critique` may say if the critique could be read.
    """
    ...


@runtime_checkable
class Conversational(Environment, Protocol):
  """An environment that speaks after each turn of the student.

  The reward of an episode is that of its last verdict. One that is to depend on
  earlier turns too, such as a sum, is for `reply` to give, which sees them all.
  """

  @property
  def max_turns(self) -> int:
    """Most turns of the student in one episode; 1 means no conversation."""
    ...

  def reply(
    self, problem: Problem, turns: Sequence[str], replies: Sequence[Reply]
  ) -> Reply:
    """Answers the newest turn, whatever it says; called by several threads.

    It keeps nothing between two calls: all that was said is in its arguments.

    Args:
      problem: The problem of the episode; must not be changed, as others read
        it too.
      turns: The student's texts so far, the newest last; at least one.
      replies: The environment's replies between them: one less.

    Returns:
      What the student is shown next, and the verdict on the newest turn, whose
      feedback only the teacher of that turn sees. A message after the last turn
      that is allowed is not shown.
    """
    ...


def max_turns(environment: Environment) -> int:
  """Returns the most turns of one episode; 1 if nobody replies.

  Raises:
    ValueError: The environment has a number of turns and no method `reply`, the
      method and no number, or no positive whole number.
  """
  number = getattr(environment, "max_turns", None)
  is_speaking = callable(getattr(environment, "reply", None))
  if not is_speaking and number in (None, 1):
    return 1
  # Nobody would notice that a misspelt method is never called.
  name = type(environment).__name__
  if not is_speaking:
    raise ValueError(
      f"{name} has max_turns={number!r}, but no method reply, which speaks "
      "between turns; add it, or drop max_turns"
    )
  if isinstance(number, bool) or not isinstance(number, int) or number < 1:
    raise ValueError(
      f"{name} has a method reply and max_turns={number!r}; it must be the "
      "most turns of the student in one episode, such as 3"
    )
  return number


class Tool(Protocol):
  """Answers what the student has written."""

  def __call__(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> str | None:
    """Returns what the student is shown next; called by several threads.

    Args:
      problem: The problem of the episode; must not be changed, as others read
        it too.
      turns: The student's texts so far, the newest last; at least one.
      outputs: The tool's outputs between them, before they were cut: one less.

    Returns:
      None if the last turn asks nothing of the tool: the episode is over.
    """
    ...
