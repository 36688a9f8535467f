"""Environments: a completion -> a verdict, on the host."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from distil_jax.envs.calculator import Calculator
from distil_jax.envs.multiple_choice import MultipleChoice
from distil_jax.envs.tool_calls import ToolCalls
from distil_jax.records import Demonstration, Message, Problem, Verdict

ENVIRONMENTS = {
  "multiple_choice": MultipleChoice,
  "tool_calls": ToolCalls,
  "calculator": Calculator,
}


class Environment(Protocol):
  """What every environment can do."""

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a data row; a ValueError says what is wrong with it."""
    ...

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Judges a completion; whatever it says, there is a verdict."""
    ...


@runtime_checkable
class Generator(Environment, Protocol):
  """An environment that makes its own problems and demonstrations."""

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; the splits have none in common."""
    ...

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """Makes a supervised example on a problem of the training split."""
    ...


def make_environment(kind: str, **settings: Any) -> Environment:
  """Makes an environment by its name.

  Args:
    kind: a key of `ENVIRONMENTS`.
    **settings: of that environment.

  Raises:
    ValueError: there is no such environment, it has no such setting, or a
      setting has a value that it cannot have.
  """
  if kind not in ENVIRONMENTS:
    raise ValueError(
      f"unknown environment {kind!r}{_nearest(kind, ENVIRONMENTS)}"
    )
  environment = ENVIRONMENTS[kind]
  known = inspect.signature(environment).parameters
  for name in settings:
    if name not in known:
      raise ValueError(
        f"environment {kind} has no setting {name!r}{_nearest(name, known)}"
      )
  return environment(**settings)


def _nearest(name: str, known: Mapping[str, Any]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; known: {list(known)}"
