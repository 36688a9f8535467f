"""Config sections of environments, judging and the sandbox."""

from typing import Annotated, Any, ClassVar, Literal

import pydantic

from distil_jax.config.base import Above, Positive, Section, Seed

# The split for evaluation has 50 words in all.
_NumWords = Annotated[int, pydantic.Field(ge=1, le=20)]


class EnvironmentSection(Section):
  """The base of the sections of environments."""

  generates_problems: ClassVar[bool] = False
  """True if it may make the problems of `data.*=generated`."""

  @property
  def max_turns(self) -> int:
    """Most turns of the student in one episode.

    An environment of the user's own says so itself, once it exists.
    """
    return 1


class MultipleChoiceConfig(EnvironmentSection):
  """Compares the letter in the last `<answer>…</answer>` with the row's."""

  kind: Literal["multiple_choice"] = "multiple_choice"
  feedback: bool = True
  """Say in the verdict what was wrong."""
  reveal_answer: bool = False
  """Name the correct option in the feedback."""


class MathConfig(EnvironmentSection):
  """Compares the last `\\boxed{…}` with the row's answer."""

  kind: Literal["math"] = "math"
  feedback: bool = True
  """Say in the verdict what was wrong."""
  reveal_answer: bool = False
  """Name the expected answer in the feedback."""
  instruction: str = "Put the final answer in \\boxed{}."
  """Appended to each question; an empty text adds nothing."""
  symbolic: bool = True
  """Compare by algebra if the texts differ; needs the extra `math`. If false,
  only equal numbers and equal texts match."""
  seconds: Above = 5.0
  """Time limit of one comparison in seconds."""


class CodeConfig(EnvironmentSection):
  """Runs the program in the last ``` block against the row's tests."""

  kind: Literal["code"] = "code"
  feedback: bool = True
  """Say in the verdict what was wrong."""
  reveal_hidden_tests: bool = False
  """Let the feedback show the content of tests that the row calls hidden."""
  instruction: str | None = None
  """Appended to each question; null chooses one that suits the row, an empty
  text adds nothing."""
  seconds: Above = 6.0
  """CPU time of one test in seconds."""
  total_seconds: Above = 40.0
  """Wall-clock time of all tests in seconds; no test starts after that."""
  memory_gib: Above = 1.0
  """Memory of a program in GiB."""
  max_attempts: Positive = 1
  """Programs that the student may write: after one that fails it is shown the
  execution trace, in which hidden tests stay hidden, and writes another."""

  @property
  def max_turns(self) -> int:
    return self.max_attempts


class ToolCallsConfig(EnvironmentSection):
  """Compares tool calls with the row's.

  They are written as `Action:` and `Action Input:`, or as objects with `name`
  and `arguments`, as the row has them.
  """

  kind: Literal["tool_calls"] = "tool_calls"
  ordered: bool = True
  """Calls must come in the row's order."""
  accept_defaults: bool = False
  """An argument may be written or left out if its value is the default that
  the row's `tools` give it."""
  accept_no_call: bool = False
  """A row may have an empty list of calls: then an answer in words is right,
  and any call wrong."""
  feedback: bool = True
  """Say in the verdict what was wrong."""
  reveal_answer: bool = False
  """Append the expected calls to the feedback."""


class ReasoningGymConfig(EnvironmentSection):
  """Lets a task of reasoning_gym make problems and score answers."""

  generates_problems = True

  kind: Literal["reasoning_gym"] = "reasoning_gym"
  task: Annotated[str, pydantic.Field(min_length=1)]
  """Name of the task in reasoning_gym, such as `chain_sum`; `composite` mixes
  several."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Settings of the task, without its `seed` and `size`."""
  seed: Seed = 0
  """Seed of all problems."""
  feedback: bool = True
  """Say in the verdict what was wrong."""
  reveal_answer: bool = False
  """Name the expected answer in the feedback."""
  instruction: str = (
    "Put the final answer, and nothing else, between <answer> and </answer>."
  )
  """Appended to each question; an empty text adds nothing."""
  seconds: Above = 5.0
  """Time limit for scoring one answer in seconds."""


class CalculatorConfig(EnvironmentSection):
  """Makes running arithmetic whose feedback is an execution trace."""

  generates_problems = True

  kind: Literal["calculator"] = "calculator"
  num_steps: tuple[Positive, Positive] = (3, 4)
  """Fewest and most operations in a problem."""
  seed: Seed = 0
  """Seed of all problems and demonstrations."""
  slip_rate: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.25
  """Probability that a step of a demonstration without feedback is wrong."""
  max_attempts: Positive = 1
  """Answers that the student may give: after a wrong one it is shown the
  feedback, and answers again."""

  @property
  def max_turns(self) -> int:
    return self.max_attempts

  @pydantic.model_validator(mode="after")
  def _range(self):
    fewest, most = self.num_steps
    if fewest > most:
      raise ValueError(
        f"num_steps=[{fewest}, {most}] must be [fewest, most]; swap them"
      )
    return self


class ConstrainedWritingConfig(EnvironmentSection):
  """Asks for one sentence with given words, judged by rules."""

  generates_problems = True

  kind: Literal["constrained_writing"] = "constrained_writing"
  num_words: tuple[_NumWords, _NumWords] = (2, 2)
  """Fewest and most words that a problem asks for."""
  in_order: bool = False
  """The words must stand in the order of the question."""
  ends_with_word: bool = False
  """The sentence must end with the last of the words."""
  forbid_letter: bool = False
  """Each generated problem forbids one letter."""
  length: tuple[Positive, Positive] | None = None
  """Fewest and most words of the whole sentence; null: no rule."""
  partial_credit: bool = False
  """Reward one sentence by the share of the rules that it keeps; false: 1 if
  it keeps all, else 0."""
  feedback: bool = True
  """Name each broken rule in the verdict."""
  seed: Seed = 0
  """Seed of all problems."""

  @pydantic.model_validator(mode="after")
  def _ranges(self):
    for name in ("num_words", "length"):
      value = getattr(self, name)
      if value and value[0] > value[1]:
        raise ValueError(
          f"{name}=[{value[0]}, {value[1]}] must be [fewest, most]; swap them"
        )
    if self.length and self.length[1] < (needed := self.num_words[1] + 3):
      raise ValueError(
        f"length={list(self.length)} leaves no room for a sentence with "
        f"num_words={list(self.num_words)}; allow at least {needed} words"
      )
    return self


class GuessNumberConfig(EnvironmentSection):
  """Lets the student guess a number, and says after each guess: too low, or
  too high."""

  generates_problems = True

  kind: Literal["guess_number"] = "guess_number"
  largest: Annotated[int, pydantic.Field(ge=2)] = 16
  """The number is one from 1 to this."""
  max_guesses: Annotated[int, pydantic.Field(ge=2)] = 4
  """Guesses in a game; halving what is left finds the number if 2 to this power
  is more than `largest`."""
  seed: Seed = 0
  """Seed of all games."""

  @property
  def max_turns(self) -> int:
    return self.max_guesses


class OwnEnvironmentConfig(EnvironmentSection):
  """Names an environment that is not in this package.

  Written as `{kind: my_package.my_module:make, …}`, with the settings of the
  function beside it.
  """

  generates_problems = True

  kind: Literal["own"] = "own"
  function: Annotated[
    str, pydantic.Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
  ]
  """`module:function`; the function returns the environment."""
  settings: dict[str, Any] = pydantic.Field(default={})
  """Keyword arguments of the function."""


_Judge = (
  MultipleChoiceConfig
  | MathConfig
  | CodeConfig
  | ToolCallsConfig
  | ReasoningGymConfig
  | CalculatorConfig
  | ConstrainedWritingConfig
  | GuessNumberConfig
  | OwnEnvironmentConfig
)


class CritiqueConfig(Section):
  """Limits the length of a critique and of its prompt in tokens."""

  max_prompt_length: Positive = 1024
  """Tokens of the prompt. If it would be longer, the middle of the completion
  is left out; all else stays."""
  max_length: Positive = 256
  """Tokens of the critique."""


class SelfEvaluationConfig(EnvironmentSection):
  """Lets the policy criticise its own completions; that is the feedback.

  The policy is sampled once more for each completion, with the settings of
  `rollout`.
  """

  kind: Literal["self_evaluation"] = "self_evaluation"
  of: _Judge | None = pydantic.Field(default=None, discriminator="kind")
  """The environment that gives reward and status; null takes them from the
  critique, which a policy may learn to exploit."""
  rubric: str | None = None
  """The critic's prompt, with the placeholders `{problem}` and `{completion}`;
  `{feedback}` shows what the environment says and `{answer}` the reference,
  only if the rubric has them. null takes a general one."""
  only_failures: bool = True
  """Ask for no critique of a correct completion."""
  keep_feedback: bool = False
  """Keep the environment's feedback in front of the critique."""
  max_feedback_length: Positive = 4000
  """Characters of a critique that are kept."""
  critique: CritiqueConfig = CritiqueConfig()
  """Limits of a critique."""


EnvironmentConfig = Annotated[
  _Judge | SelfEvaluationConfig, pydantic.Field(discriminator="kind")
]


def name_own_environment(section: dict[str, Any]) -> dict[str, Any]:
  """Returns a section as the schema has it, also inside `of`.

  `{kind: module:function, …}` becomes `{kind: own, function: …, settings: …}`.
  """
  settings = dict(section)
  # Only a function of the user's own has a colon in its name.
  if ":" in str(settings.get("kind")):
    function = settings.pop("kind")
    return {"kind": "own", "function": function, "settings": settings}
  if isinstance(inner := settings.get("of"), dict):
    settings["of"] = name_own_environment(inner)
  return settings


class JudgingConfig(Section):
  """Sets how completions are judged while others are still sampled."""

  num_workers: Positive | None = None
  """Threads that judge at once; null takes one for each core."""
  seconds: Above = 60.0
  """Time limit of one verdict in seconds, after which it is `timeout`. It must
  exceed the environment's own limits: it is for a judge that hangs."""


class SandboxConfig(Section):
  """Sets where programs run that a model has written."""

  kind: Literal["bubblewrap", "weak", "remote"] = "bubblewrap"
  """`bubblewrap` isolates them from this machine; `remote` sends them to
  another one where `distil-jax sandbox` runs; `weak` only limits time, memory
  and output: programs can read what you can."""
  num_processes: Positive | None = None
  """Programs that run at once; null takes one for each core."""
  python: str | None = None
  """Interpreter of the programs; null takes this one, without its packages."""
  packages: str | None = None
  """Packages that programs may import: a folder made by `pip install
  --target`, or names of packages that are installed here, such as `numpy`."""
  url: str | None = None
  """Address of a remote sandbox, such as http://host:8765."""

  @pydantic.model_validator(mode="after")
  def _url(self):
    if (self.kind == "remote") != (self.url is not None):
      raise ValueError(
        f"kind={self.kind} with url={self.url}: a remote sandbox has a url, "
        "and no other has"
      )
    return self
