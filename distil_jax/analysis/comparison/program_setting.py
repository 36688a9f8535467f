"""Describes what a trial's programs are compiled for."""

import dataclasses
from typing import Any

from distil_jax.analysis.comparison import problem_families
from distil_jax.config.teacher import GuardConfig, TeacherConfig
from distil_jax.models import decoder, decoder_config

# Folded into a trial's key, so that problems, samples and feedback share no
# noise.
PROBLEMS_KEY, SAMPLES_KEY, FEEDBACK_KEY = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Setting:
  """Holds what a trial's programs are compiled for; static under jit.

  Attributes:
    family: Makes the problems.
    network: Sizes of student and teacher.
    objective, teacher: Sections of a training config.
    num_problems, group_size: P and G of a training step.
    mini_batch_size: Sequences per optimizer update. None means one update per
      step.
    decay_steps: Training steps in which a cosine schedule brings the learning
      rate to 0. None means a constant rate.
  """

  family: problem_families.Family
  network: decoder_config.DecoderConfig
  objective: Any
  teacher: TeacherConfig
  num_problems: int = 16
  group_size: int = 8
  mini_batch_size: int | None = None
  decay_steps: int | None = None

  @property
  def num_sequences(self) -> int:
    return self.num_problems * self.group_size

  @property
  def graphdef(self):
    return decoder.make(self.network)[0]

  @property
  def guard(self) -> GuardConfig | None:
    """Returns the teacher's guard; None if no teacher is used."""
    is_used = self.objective.needs_teacher
    return self.teacher.guard if is_used else None
