"""Shows what the loss does to each token of one completion."""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from distil_jax.analysis.teacher_check import (
  evidence,
  given,
  one_sample,
  page,
  report,
  samples,
)
from distil_jax.analysis.teacher_check.records import Gathered
from distil_jax.config.base import ConfigError
from distil_jax.config.objectives import DistilConfig, ObjectiveConfig
from distil_jax.config.schema import Config
from distil_jax.config.teacher import TeacherConfig
from distil_jax.data import tokenizer_match
from distil_jax.generation.policy import Policy
from distil_jax.objectives.base import Objective
from distil_jax.objectives.teachers import OtherNetwork
from distil_jax.training import build_step
from distil_jax.types import Message, Problem, Status, Verdict

# As published, but for what compares the samples of a group.
_OBJECTIVE = DistilConfig(
  cost="cross_entropy",
  local_cost=None,
  future_weight=1.0,
  baseline=None,
  reward_weight=0.0,
  failure_weighted=False,
)
# What compares the samples of a group, and its value for a single sample.
_ALONE = {"baseline": None, "reward_weight": 0.0, "failure_weighted": False}
# Lengths are rounded up to this, so that few programs are compiled.
_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, repr=False)
class TokenView:
  """Holds the numbers of a completion's tokens, and shows them.

  In a notebook it is coloured HTML, printed on a terminal coloured text. The
  redder a token, the higher its cost.

  Attributes:
    sample: the texts, and a record for each token.
    token_ids: of the completion. Length T.
  """

  sample: samples.Sample
  token_ids: tuple[int, ...]

  def to_dict(self) -> dict[str, list[Any]]:
    """Returns the table of tokens as lists of length T by their names.

    Log-probabilities, `cross_entropy`, `cost` and `future_cost` are in nats.
    `score_weight` is the weight of the token's log-probability in the loss.
    Both are None if the objective has no future credit. `student_top` and
    `teacher_top` are lists of the most probable tokens and their probabilities.
    """
    tokens = self.sample.tokens
    return {
      "token": [token.text for token in tokens],
      "token_id": list(self.token_ids),
      "log_prob": [math.log(max(token.student, 1e-300)) for token in tokens],
      "teacher_log_prob": [
        math.log(max(token.teacher, 1e-300)) for token in tokens
      ],
      "cross_entropy": [token.cross_entropy for token in tokens],
      "cost": [token.cost for token in tokens],
      "future_cost": [token.future for token in tokens],
      "score_weight": [token.credit for token in tokens],
      "student_top": [_pairs(token.student_choices) for token in tokens],
      "teacher_top": [_pairs(token.teacher_choices) for token in tokens],
    }

  def to_pandas(self) -> Any:
    """Returns the table of tokens as a DataFrame, one row for each.

    Raises:
      ImportError: pandas is not installed; `to_dict` needs nothing.
    """
    try:
      import pandas  # pyright: ignore[reportMissingImports]
    except ImportError as error:
      raise ImportError(
        "to_pandas needs pandas: pip install pandas, or use to_dict()"
      ) from error
    return pandas.DataFrame(self.to_dict())

  def to_text(self, *, colours: bool = False) -> str:
    """Returns the texts and the table of tokens, for a terminal."""
    return report.sample_text(self.sample, colours=colours)

  def __str__(self) -> str:
    return self.to_text(colours=report.has_colours(sys.stdout, os.environ))

  __repr__ = __str__

  def _repr_html_(self) -> str:
    return page.fragment(self.sample)


def inspect(
  policy: Policy,
  problem: Problem | str | Sequence[Message],
  completion: str | Sequence[int],
  *,
  feedback: str = "",
  solution: str | None = None,
  objective: ObjectiveConfig | None = None,
  teacher: Policy | None = None,
) -> TokenView:
  """Compares student and teacher on each token of a completion.

  The teacher reads the feedback or the solution besides the problem, as in
  training. Costs and credit are those of the objective's own code.

  Args:
    policy: the student, from `load_policy`.
    problem: from an environment; or a user's message, or a conversation.
    completion: its text, to which an end token is added; or its token ids.
    feedback: for the teacher alone.
    solution: likewise.
    objective: a section of a config, such as `config.objective`. Settings that
      compare a group's samples are left out. None means DistIL as published.
    teacher: another model with the same tokenizer; None means the policy.

  Raises:
    ValueError: the completion is empty, the teacher would read neither
      feedback nor solution, or the tokenizers differ.
    ConfigError: the objective has no teacher, or needs more than one sample.
  """
  if not feedback and not solution:
    raise ValueError(
      "the teacher would read what the student reads; give feedback= or "
      "solution="
    )
  if isinstance(problem, str):
    problem = [{"role": "user", "content": problem}]
  if not isinstance(problem, Problem):
    problem = Problem(index=0, messages=tuple(problem), answer="")
  problem = dataclasses.replace(problem, solution=solution)
  tokenizer = policy.tokenizer
  ids = (
    one_sample.completion_ids(tokenizer, completion)
    if isinstance(completion, str)
    else [int(token) for token in completion]
  )
  if not ids:
    raise ValueError("the completion has no token")
  _check_teacher(policy, teacher)
  config = _config(policy, problem, len(ids), feedback, objective or _OBJECTIVE)
  gathered = given.gather(
    config,
    policy,
    problem,
    ids,
    Verdict(0.0, feedback, Status.WRONG),
    teacher and teacher.tokenizer,
  )
  sample = _sample(policy, teacher or policy, config, gathered)
  return TokenView(sample, tuple(ids))


def _sample(
  policy: Policy, teacher: Policy, config: Config, gathered: Gathered
) -> samples.Sample:
  """Returns the sample with all numbers of its tokens."""
  network = None if teacher is policy else OtherNetwork(teacher.graphdef)
  # They are hashable, which type checkers do not see.
  sections: Any = (config.objective, config.teacher)
  objective = _objective(*sections, policy.graphdef, network)
  read = evidence.Networks(
    (policy.graphdef, policy.params),
    [[(1.0, teacher.graphdef, teacher.params)]],
  )
  batch = jax.tree.map(jax.numpy.asarray, gathered.batch)
  signal = evidence.signal_of(read, batch, objective)
  tokens = evidence.dense_tokens(read, gathered, batch)
  found = samples.all_samples(gathered, tokens, signal)[0]
  costs = [token.cost for token in found.tokens]
  cost = sum(costs) / len(costs)
  return dataclasses.replace(
    found,
    title=f"{len(costs)} tokens",
    facts=f"{config.objective.kind}, mean cost {cost:.3f} nats",
  )


# An objective is part of a compiled program, so the same must be the same.
@functools.lru_cache(maxsize=16)
def _objective(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  graphdef: nnx.GraphDef,
  network: OtherNetwork | None,
) -> Objective:
  """Returns the objective of a training step on one completion."""
  # Taken from a step, so that what is shown is what is trained.
  step: Any = build_step.gradients(
    objective,
    teacher,
    graphdef=graphdef,
    teacher_network=network,
    group_size=1,
    num_sequences=1,
  )
  return step.keywords["objective"]


def _check_teacher(policy: Policy, teacher: Policy | None) -> None:
  if teacher is None:
    return
  fault = tokenizer_match.difference(policy.tokenizer, teacher.tokenizer)
  if fault:
    raise ValueError(f"student and teacher have different tokenizers: {fault}")


def _config(
  policy: Policy,
  problem: Problem,
  length: int,
  feedback: str,
  objective: ObjectiveConfig,
) -> Config:
  """Returns the config of a step on one completion.

  Raises:
    ConfigError: the objective does not suit it.
  """
  if not objective.needs_teacher:
    raise ConfigError(
      f"objective.kind={objective.kind} asks no teacher, so there is nothing "
      "to compare with; take distil, sdpo, opsd or minillm"
    )
  compared = {name.partition("=")[0] for name in objective.group_settings}
  update = {k: x for k, x in _ALONE.items() if k in compared}
  prompt = len(policy.tokenizer.encode_messages(problem.messages))
  told = len(policy.tokenizer.encode(feedback + (problem.solution or "")))
  # Room for the headings of the teacher's prompt, and for the problem, which
  # some forms repeat.
  teacher_length = 2 * prompt + told + 2 * _MULTIPLE
  limits: Mapping[str, int] = {
    "num_problems": 1,
    "group_size": 1,
    "max_prompt_length": _rounded(prompt),
    "max_completion_length": _rounded(length),
  }
  return Config.model_validate(
    {
      "objective": objective.model_copy(update=update),
      "rollout": limits,
      "teacher": {
        "solution": "reference" if problem.solution else "none",
        "feedback": "always",
        "max_prompt_length": _rounded(teacher_length),
      },
    }
  )


def _rounded(length: int) -> int:
  return length + -length % _MULTIPLE


def _pairs(choices: Sequence[samples.Choice]) -> list[tuple[str, float]]:
  return [(choice.text, choice.prob) for choice in choices]
