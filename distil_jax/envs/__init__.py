"""Environments: a completion -> a verdict, on the host."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from distil_jax.envs import registry
from distil_jax.envs.calculator import Calculator
from distil_jax.envs.code import Code
from distil_jax.envs.math import Math
from distil_jax.envs.multiple_choice import MultipleChoice
from distil_jax.envs.reasoning_gym import ReasoningGym
from distil_jax.envs.self_evaluation import SelfEvaluation
from distil_jax.envs.tool_calls import ToolCalls
from distil_jax.types import Demonstration, Message, Problem, Verdict

ENVIRONMENTS = {
  "multiple_choice": MultipleChoice,
  "math": Math,
  "code": Code,
  "tool_calls": ToolCalls,
  "reasoning_gym": ReasoningGym,
  "self_evaluation": SelfEvaluation,
  "calculator": Calculator,
}


class Environment(Protocol):
  """What every environment can do.

  One that has `required_fields`, names of texts that no row may lack, lets a
  data file be refused with the fields that it has instead.
  """

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


@runtime_checkable
class SelfJudged(Environment, Protocol):
  """An environment whose verdicts the policy completes, by critiques."""

  @property
  def is_rewarded_by_critique(self) -> bool:
    """Whether there is no reward before there is a critique."""
    ...

  def critique_prompt(
    self, problem: Problem, completion: str, verdict: Verdict
  ) -> Sequence[Message] | None:
    """What the policy is asked about a completion; None: nothing."""
    ...

  def with_critique(self, verdict: Verdict, critique: str) -> Verdict:
    """What becomes of a verdict; whatever the critique says, there is one.

    In `details`, `has_critique` may say whether it could be read.
    """
    ...


def make_environment(kind: str, **settings: Any) -> Environment:
  """Makes an environment by its name.

  Args:
    kind: a key of `ENVIRONMENTS`, or `module:function` for one of your own; the
      module may lie in the current directory.
    **settings: of that environment; another environment as a mapping of its
      kind and settings.

  Raises:
    ValueError: there is no such environment, it has no such setting, a setting
      has a value that it cannot have, or what the function returns is no
      environment.
  """
  inner = settings.get("of")
  if kind in ENVIRONMENTS and isinstance(inner, Mapping):
    settings["of"] = make_environment(**inner)
  made = registry.make("environment", kind, ENVIRONMENTS, settings)
  for method in ("problem", "judge"):
    if not callable(getattr(made, method, None)):
      raise ValueError(
        f"environment {kind} made a {type(made).__name__}, which has no method "
        f"{method!r}"
      )
  return made
