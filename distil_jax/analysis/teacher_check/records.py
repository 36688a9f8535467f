"""Defines the records of a check: what was sampled, measured and found."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.config.schema import Config
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import BatchStats, TrainBatch

# Numbers of tokens by their names; the first axes are `[B, T]` or `[T]`.
Numbers = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Run:
  """Holds the run that is checked.

  Attributes:
    trainer: a `Trainer`, whose parts are used and which does not train.
    step: number of training steps done.
    state: the training state after them.
    step_fn: the training step; it donates its state.
  """

  trainer: Any
  step: int
  state: Any
  step_fn: Any


@dataclasses.dataclass(frozen=True)
class Gathered:
  """Holds what a step would learn from, on the host.

  Attributes:
    config: of the run, with fewer problems.
    experience: the judged completions.
    batch: the arrays of the step.
    stats: how they came about.
    tokenizer: of the student.
    teacher_tokenizer: writes the teacher's prompts.
    teacher_tokenizers: of several teachers those by name that write others.
    vocab_size: entries of the student's logits.
    num_tokens: the first of these are tokens; None means that all are.
  """

  config: Config
  experience: Experience
  batch: TrainBatch
  stats: BatchStats
  tokenizer: Tokenizer
  teacher_tokenizer: Tokenizer
  vocab_size: int
  num_tokens: int | None = None
  teacher_tokenizers: Mapping[str, Tokenizer] = dataclasses.field(
    default_factory=dict
  )

  @property
  def teacher_mask(self) -> np.ndarray:
    """True at the tokens that the teacher judges. Shape `[B, T]`."""
    own = np.asarray(self.batch.student_tokens) == 1
    taught = own & (np.asarray(self.batch.sample_mask) == 1)[:, None]
    if self.batch.taught_mask is not None:
      taught &= np.asarray(self.batch.taught_mask) == 1
    numbers = self.batch.turn_numbers
    return taught if numbers is None else taught & (np.asarray(numbers) >= 0)

  @property
  def num_turns(self) -> int:
    """Number of the teacher's prompts for each sample."""
    later = self.batch.later_prompt_ids
    return 1 if later is None else 1 + later.shape[1]

  def teacher_name(self, row: int) -> str | None:
    """Returns the name of a sample's teacher; None if there is one teacher."""
    experience = self.experience
    return experience.problems[row // experience.group_size].teacher

  def writer(self, row: int) -> Tokenizer:
    """Returns the tokenizer that wrote the teacher's prompt of a sample."""
    name = self.teacher_name(row) or ""
    return self.teacher_tokenizers.get(name, self.teacher_tokenizer)

  def teacher_prompt(self, row: int, turn: int = 0) -> list[int]:
    """Returns the ids of a teacher's whole prompt."""
    if turn:
      batch, later = self.batch, turn - 1
      return _counted(
        batch.later_prompt_ids[row, later], batch.later_prompt_mask[row, later]
      )
    return _counted(
      self.stats.teacher_prompt_ids[row], self.stats.teacher_prompt_mask[row]
    )

  def student_prompt(self, row: int) -> list[int]:
    """Returns the ids of the student's prompt."""
    return _counted(self.batch.prompt_ids[row], self.batch.prompt_mask[row])

  def completion(self, row: int) -> list[int]:
    """Returns the ids of a completion, what a tool wrote included."""
    rollout = self.experience.rollout
    return _counted(rollout.completion_ids[row], rollout.completion_mask[row])


@dataclasses.dataclass(frozen=True)
class Movement:
  """Says how the teacher's parameters moved in a step.

  Attributes:
    rate: the rate at which it should follow the student; 0 if it stays.
    measured_rate: the share of the way that it went, by least squares.
    distance: the longest way of one parameter.
    deviation: the largest distance from where it should be, in units of the
      rounding of its type.
    num_params: number of parameters.
  """

  rate: float
  measured_rate: float
  distance: float
  deviation: float
  num_params: int


@dataclasses.dataclass(frozen=True)
class PaddingTrial:
  """Says what garbage at padding changed.

  Attributes:
    num_positions: positions that were filled with garbage.
    metrics: each metric of the step without and with garbage.
    distance: of parameters and moments after the step, relative.
  """

  num_positions: int
  metrics: dict[str, tuple[float, float]]
  distance: float


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Holds what the checks compare; all of it in NumPy.

  Attributes:
    tokens: from plain passes over whole sequences, see
      `token_numbers.of_tokens`. Shape `[B, T, ...]` each.
    signal: what the objective computed: `log_probs`, `teacher_log_probs`,
      `costs`, `carried`, `charged` (the same behind the gate of the teacher's
      entropy), and with credit `future_costs`, `score_weights`. Shape `[B, T]`
      each.
    metrics: of a training step on the batch.
    padding: what garbage at padding changed.
    teacher: how the teacher moved in a step; None if it has no parameters in
      the training state.
  """

  tokens: Numbers
  signal: Numbers
  metrics: dict[str, float]
  padding: PaddingTrial
  teacher: Movement | None


@dataclasses.dataclass(frozen=True)
class Check:
  """Holds what one check found.

  Attributes:
    name: of the check.
    is_ok: None if there was nothing to tell right from wrong by.
    numbers: what was measured.
    cure: what to do if it failed.
  """

  name: str
  is_ok: bool | None
  numbers: str
  cure: str = ""

  @property
  def label(self) -> str:
    """The first word of the check's line."""
    return {True: "ok", False: "FAIL", None: "--"}[self.is_ok]


@dataclasses.dataclass(frozen=True)
class Finding:
  """Holds what one part of the check found.

  Attributes:
    name: of the part.
    lines: what was found; of a failure what is wrong, and its cure.
    is_ok: False if the run would fail; None if it may go wrong.
  """

  name: str
  lines: Sequence[str]
  is_ok: bool | None = True


def _counted(ids: Any, mask: Any) -> list[int]:
  return np.asarray(ids)[np.asarray(mask) == 1].tolist()
