"""Builds what a trial's programs are compiled for from a comparison."""

from distil_jax.analysis.comparison import (
  base_models,
  builtin_families,
  problem_families,
  program_setting,
)
from distil_jax.analysis.comparison.settings import Arm, FamilyRun
from distil_jax.models import decoder_config


def build_setting(
  name: str, run: FamilyRun, arm: Arm
) -> program_setting.Setting:
  """Builds the setting of an arm in a family that comes with the package."""
  family = builtin_families.FAMILIES[name]
  num_sequences = run.num_problems * run.group_size
  return program_setting.Setting(
    family=family,
    network=build_network(run, family),
    objective=arm.objective,
    teacher=arm.teacher,
    num_problems=run.num_problems,
    group_size=run.group_size,
    mini_batch_size=(
      num_sequences // arm.mini_batches if arm.mini_batches > 1 else None
    ),
    decay_steps=(
      run.num_steps * arm.num_steps_factor if run.schedule == "cosine" else None
    ),
  )


def build_network(
  run: FamilyRun, family: problem_families.Family
) -> decoder_config.DecoderConfig:
  """Returns sizes of student and teacher that fit the family's sequences."""
  return base_models.network(
    **run.network.model_dump(),
    max_positions=1
    + family.hint_length
    + family.prompt_length
    + family.completion_length,
  )
