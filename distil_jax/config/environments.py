"""Config sections of environments, judging and the sandbox."""

from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import Above, Positive, Section, Seed


class MultipleChoiceConfig(Section):
  """The letter in the last `<answer>…</answer>` against the row's answer."""

  kind: Literal["multiple_choice"] = "multiple_choice"
  feedback: bool = True
  reveal_answer: bool = False


class MathConfig(Section):
  """The last `\\boxed{…}` against the row's answer."""

  kind: Literal["math"] = "math"
  feedback: bool = True
  reveal_answer: bool = False
  instruction: str = "Put the final answer in \\boxed{}."
  """Stands after each question; empty adds nothing."""
  symbolic: bool = True
  """Compare by algebra where texts differ; needs the extra `math`."""
  seconds: Above = 5.0
  """For one comparison."""


class CodeConfig(Section):
  """The program in the last ``` block against the row's tests."""

  kind: Literal["code"] = "code"
  feedback: bool = True
  reveal_hidden_tests: bool = False
  """Whether feedback may tell what is in tests that the row calls hidden."""
  instruction: str | None = None
  """Stands after each question; null: one that suits the row; empty adds
  nothing."""
  seconds: Above = 6.0
  """Of CPU, for one test."""
  total_seconds: Above = 40.0
  """Of the clock, for all of them; then no further one is begun."""
  memory_gib: Above = 1.0
  """Of a program."""


class ToolCallsConfig(Section):
  """Calls of tools, `Action:` and `Action Input:`, against the row's."""

  kind: Literal["tool_calls"] = "tool_calls"
  feedback: bool = True
  reveal_answer: bool = False


class ReasoningGymConfig(Section):
  """A task of reasoning_gym, which makes problems and scores answers."""

  kind: Literal["reasoning_gym"] = "reasoning_gym"
  task: Annotated[str, pydantic.Field(min_length=1)]
  """Its name there, such as `chain_sum`; `composite` mixes several."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Of the task, without its `seed` and `size`."""
  seed: Seed = 0
  """Of everything that is made."""
  feedback: bool = True
  reveal_answer: bool = False
  instruction: str = (
    "Put the final answer, and nothing else, between <answer> and </answer>."
  )
  """Stands after each question; empty adds nothing."""
  seconds: Above = 5.0
  """To score one answer."""


class CalculatorConfig(Section):
  """Running arithmetic, step by step; feedback is an execution trace."""

  kind: Literal["calculator"] = "calculator"
  num_steps: tuple[Positive, Positive] = (3, 4)
  seed: Seed = 0
  slip_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.25

  @pydantic.model_validator(mode="after")
  def _range(self):
    fewest, most = self.num_steps
    if fewest > most:
      raise ValueError(
        f"num_steps=[{fewest}, {most}] must be [fewest, most]; swap them"
      )
    return self


class OwnEnvironmentConfig(Section):
  """One that is not in this package.

  Written as `{kind: my_package.my_module:make, …}`, with the settings of the
  function beside it.
  """

  kind: Literal["own"] = "own"
  function: Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
  ]
  """`module:function`; what it returns is the environment."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Its arguments."""


_Judge = (
  MultipleChoiceConfig
  | MathConfig
  | CodeConfig
  | ToolCallsConfig
  | ReasoningGymConfig
  | CalculatorConfig
  | OwnEnvironmentConfig
)


class CritiqueConfig(Section):
  """How long what the policy is asked, and what it says, may be."""

  max_prompt_length: Positive = 1024
  """Where it is longer the middle of the completion is left out; all else
  stays."""
  max_length: Positive = 256


class SelfEvaluationConfig(Section):
  """The policy criticises its own completions: that becomes the feedback.

  It is sampled from once more for each completion, as `rollout` says.
  """

  kind: Literal["self_evaluation"] = "self_evaluation"
  of: _Judge | None = pydantic.Field(default=None, discriminator="kind")
  """The environment that gives reward and status; null: the critique does,
  which a policy may learn to exploit."""
  rubric: str | None = None
  """What is asked, with places for `{problem}` and `{completion}`; what the
  environment says, `{feedback}`, and the reference `{answer}` are shown where
  they have a place. null: a general one."""
  only_failures: bool = True
  """Ask nothing about what is correct."""
  keep_feedback: bool = False
  """Leave what the environment says in front of the critique."""
  max_feedback_length: Positive = 4000
  """Characters of a critique that are kept."""
  critique: CritiqueConfig = CritiqueConfig()


EnvironmentConfig = Annotated[
  _Judge | SelfEvaluationConfig, pydantic.Field(discriminator="kind")
]


class JudgingConfig(Section):
  """How verdicts are found, while others are still sampled."""

  num_workers: Positive | None = None
  """Threads that judge at once; null: one for each core."""
  seconds: Above = 60.0
  """For one verdict, after which it is `timeout`: above the deadlines that the
  environment has itself, for a judge that hangs."""


class SandboxConfig(Section):
  """Where programs run that a model has written."""

  kind: Literal["bubblewrap", "weak", "remote"] = "bubblewrap"
  """`bubblewrap` keeps them apart from this machine; `remote` sends them to
  another, where `distil-jax sandbox` runs. `weak` only limits what they take:
  they can read what you can."""
  num_processes: Positive | None = None
  """Programs at once; null: as many as there are cores."""
  python: str | None = None
  """The interpreter they run in; null: this one, without its packages."""
  packages: str | None = None
  """A folder of packages that they may import, made by `pip install
  --target`."""
  url: str | None = None
  """Of a remote one, such as http://host:8765."""

  @pydantic.model_validator(mode="after")
  def _url(self):
    if (self.kind == "remote") != (self.url is not None):
      raise ValueError(
        f"kind={self.kind} with url={self.url}: a remote sandbox has a url, "
        "and no other has"
      )
    return self
