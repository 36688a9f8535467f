"""Environments turn a completion into a verdict, on the host.

To add one:

1. Declare its settings as a section in `config/environments.py`, and add the
   section to the union there.
2. Write a class with `problem` and `judge` (see `Environment`) that takes the
   section as `config`, in a file of its own here.
3. Add the two to `ENVIRONMENTS` below.
4. Hold it to what every environment promises: `contract.check` in a test.

An environment of the user's own needs none of this: `kind: module:function`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from distil_jax.config import environments as sections
from distil_jax.config.base import Section
from distil_jax.envs import sandbox, user_functions
from distil_jax.envs.base import (
  Environment,
  Generator,
  SelfJudged,
  max_turns,
)
from distil_jax.envs.calculator import Calculator
from distil_jax.envs.code import Code
from distil_jax.envs.constrained_writing import ConstrainedWriting
from distil_jax.envs.guess_number import GuessNumber
from distil_jax.envs.math import Math
from distil_jax.envs.multiple_choice import MultipleChoice
from distil_jax.envs.reasoning_gym import ReasoningGym
from distil_jax.envs.self_evaluation import SelfEvaluation
from distil_jax.envs.tool_calls import ToolCalls

__all__ = [
  "ENVIRONMENTS",
  "Environment",
  "Generator",
  "SelfJudged",
  "build_environment",
  "make_environment",
]

# The kind that a config names, the section of its settings, and its class.
ENVIRONMENTS: dict[str, tuple[type[Section], Callable[..., Any]]] = {
  "multiple_choice": (sections.MultipleChoiceConfig, MultipleChoice),
  "math": (sections.MathConfig, Math),
  "code": (sections.CodeConfig, Code),
  "tool_calls": (sections.ToolCallsConfig, ToolCalls),
  "reasoning_gym": (sections.ReasoningGymConfig, ReasoningGym),
  "self_evaluation": (sections.SelfEvaluationConfig, SelfEvaluation),
  "calculator": (sections.CalculatorConfig, Calculator),
  "constrained_writing": (
    sections.ConstrainedWritingConfig,
    ConstrainedWriting,
  ),
  "guess_number": (sections.GuessNumberConfig, GuessNumber),
}


def make_environment(kind: str, **settings: Any) -> Environment:
  """Makes an environment by its name.

  Args:
    kind: A key of `ENVIRONMENTS`, or `module:function` for one of your own; the
      module may lie in the current directory.
    **settings: Fields of the environment's config section; another environment,
      as `of`, is a mapping of its kind and settings.

  Raises:
    ValueError: There is no such environment or setting, a value does not fit,
      or what the function returns is no environment.
  """
  return build_environment(_read_section(kind, settings))


def build_environment(
  config: Any, make_sandbox: Callable[[], sandbox.Sandbox] = sandbox.make
) -> Environment:
  """Builds an environment from its config section.

  Args:
    config: A section of `config.environments`.
    make_sandbox: Makes the sandbox, called only if programs are to be run.

  Raises:
    ValueError: The environment cannot be made, for instance because a package
      is missing.
  """
  if isinstance(config, sections.OwnEnvironmentConfig):
    return _call_own(config)
  _, environment = ENVIRONMENTS[config.kind]
  if isinstance(config, sections.CodeConfig):
    return environment(config, make_sandbox())
  if isinstance(config, sections.SelfEvaluationConfig) and config.of:
    inner = build_environment(config.of, make_sandbox)
    if max_turns(inner) > 1:
      raise ValueError(
        f"environment.of: {type(inner).__name__} speaks between turns, but a "
        "critic judges one answer; let it have one turn"
      )
    return environment(config, inner)
  return environment(config)


def _read_section(kind: str, settings: Mapping[str, Any]) -> Section:
  if ":" in kind:
    return sections.OwnEnvironmentConfig.model_construct(
      function=kind, settings=dict(settings)
    )
  known = {name: section for name, (section, _) in ENVIRONMENTS.items()}
  settings = dict(settings)
  if isinstance(inner := settings.get("of"), Mapping):
    inner = dict(inner)
    settings["of"] = _read_section(inner.pop("kind", ""), inner)
  return user_functions.read_section("environment", kind, known, settings)


def _call_own(config: sections.OwnEnvironmentConfig) -> Environment:
  kind = config.function
  made = user_functions.call_function("environment", kind, config.settings)
  for method in ("problem", "judge"):
    if not callable(getattr(made, method, None)):
      raise ValueError(
        f"environment {kind} made a {type(made).__name__}, which has no method "
        f"{method!r}"
      )
  try:
    max_turns(made)
  except ValueError as error:
    raise ValueError(f"environment {kind}: {error}") from None
  return made
