"""Environments: a completion -> a verdict, on the host."""

import difflib
import importlib
import inspect
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from distil_jax.envs.calculator import Calculator
from distil_jax.envs.math import Math
from distil_jax.envs.multiple_choice import MultipleChoice
from distil_jax.envs.reasoning_gym import ReasoningGym
from distil_jax.envs.tool_calls import ToolCalls
from distil_jax.records import Demonstration, Message, Problem, Verdict

ENVIRONMENTS = {
  "multiple_choice": MultipleChoice,
  "math": Math,
  "tool_calls": ToolCalls,
  "reasoning_gym": ReasoningGym,
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


def make_environment(kind: str, **settings: Any) -> Environment:
  """Makes an environment by its name.

  Args:
    kind: a key of `ENVIRONMENTS`, or `module:function` for one of your own; the
      module may lie in the current directory.
    **settings: of that environment.

  Raises:
    ValueError: there is no such environment, it has no such setting, a setting
      has a value that it cannot have, or what the function returns is no
      environment.
  """
  if ":" in kind:
    make = _imported(kind)
  elif kind in ENVIRONMENTS:
    make = ENVIRONMENTS[kind]
  else:
    raise ValueError(
      f"unknown environment {kind!r}{_nearest(kind, ENVIRONMENTS)}"
    )
  known = inspect.signature(make).parameters
  takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
  for name in settings:
    if name not in known and not takes_all:
      raise ValueError(
        f"environment {kind} has no setting {name!r}{_nearest(name, known)}"
      )
  for name, parameter in known.items():
    is_needed = parameter.default is parameter.empty and parameter.kind in (
      parameter.POSITIONAL_OR_KEYWORD,
      parameter.KEYWORD_ONLY,
    )
    if is_needed and name not in settings:
      raise ValueError(f"environment {kind} needs a setting {name!r}")
  made = make(**settings)
  for method in ("problem", "judge"):
    if not callable(getattr(made, method, None)):
      raise ValueError(
        f"environment {kind} made a {type(made).__name__}, which has no method "
        f"{method!r}"
      )
  return made


def _imported(kind: str) -> Callable[..., Any]:
  """`module:function`; raises ValueError where there is none."""
  name, _, attribute = kind.partition(":")
  here = str(pathlib.Path.cwd())
  # An installed command does not look where it is called.
  added = [] if here in sys.path or "" in sys.path else [here]
  sys.path[:0] = added
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    # What the module itself lacks is another matter.
    if error.name is None or not f"{name}.".startswith(f"{error.name}."):
      raise
    raise ValueError(
      f"environment {kind}: there is no module {error.name!r} here or among "
      "what is installed"
    ) from None
  finally:
    del sys.path[: len(added)]
  known = {n: v for n, v in vars(module).items() if callable(v)}
  if attribute not in known:
    raise ValueError(
      f"environment {kind}: module {name} has no function {attribute!r}"
      f"{_nearest(attribute, known)}"
    )
  return known[attribute]


def _nearest(name: str, known: Mapping[str, Any]) -> str:
  near = difflib.get_close_matches(name, known, n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; known: {list(known)}"
