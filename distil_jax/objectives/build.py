"""Builds an objective from the sections of a config."""

from collections.abc import Callable

from distil_jax.config.objectives import ObjectiveConfig, check_teacher
from distil_jax.config.teacher import TeacherConfig
from distil_jax.objectives import base
from distil_jax.objectives.distil import build as build_distil
from distil_jax.objectives.grpo import build as build_grpo
from distil_jax.objectives.minillm import build as build_minillm
from distil_jax.objectives.opsd import build as build_opsd
from distil_jax.objectives.sdpo import build as build_sdpo
from distil_jax.objectives.sft import build as build_sft

# The only place that tells objectives apart. A new one is a file beside these,
# a section in `config.objectives` and a line here.
OBJECTIVES: dict[str, Callable[..., base.Objective]] = {
  "distil": build_distil,
  "sdpo": build_sdpo,
  "opsd": build_opsd,
  "minillm": build_minillm,
  "grpo": build_grpo,
  "sft": build_sft,
}


def build_objective(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  *,
  forward: base.ForwardPasses,
  layout: base.BatchLayout,
) -> base.Objective:
  """Builds the functions of a training step.

  Args:
    objective, teacher: sections of a config.
    forward: from `teachers.forward_passes`.
    layout: how a step cuts its batch.

  Raises:
    ConfigError: the teacher cannot give what the objective needs.
  """
  check_teacher(objective, teacher)
  return OBJECTIVES[objective.kind](objective, forward, layout)
