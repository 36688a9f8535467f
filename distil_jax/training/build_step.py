"""Builds the training step of an objective."""

import functools
from collections.abc import Callable
from typing import Any

import optax
from flax import nnx

from distil_jax.config.objectives import ObjectiveConfig
from distil_jax.config.teacher import TeacherConfig
from distil_jax.objectives import teachers
from distil_jax.objectives.base import BatchLayout, ForwardPasses, Objective
from distil_jax.objectives.build import build_objective
from distil_jax.training import train_step as training_train_step
from distil_jax.training.train_state import TrainState
from distil_jax.training.train_step import Metrics

# The last argument is left out but by a teacher that is another model.
StepFn = Callable[..., tuple[TrainState, Metrics]]
GradientsFn = Callable[..., tuple[Any, Any, Metrics]]


def train_step(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  *,
  graphdef: nnx.GraphDef,
  teacher_network: teachers.TeacherNetwork = None,
  optimizer: optax.GradientTransformation,
  group_size: int,
  num_sequences: int,
  micro_batch_size: int | None = None,
  mini_batch_size: int | None = None,
) -> StepFn:
  """Returns a training step, to be compiled or used as the body of a scan.

  Args:
    objective, teacher: sections of a config.
    graphdef: from `decoder.make`.
    teacher_network: the teacher's, if that is another model, or several.
    optimizer: from `make_optimizer`; called once for each mini-batch.
    group_size: G.
    num_sequences: B.
    micro_batch_size: sequences whose gradient is computed at once; None means
      all of a mini-batch.
    mini_batch_size: sequences of one update; None means all.

  Returns:
    `(state, batch, teacher_params) -> (state, metrics)`, see
    `train_step.train_step`.

  Raises:
    ConfigError: the teacher cannot give what the objective needs.
    ValueError: a size does not divide another.
  """
  mini_batch_size = mini_batch_size or num_sequences
  micro_batch_size = micro_batch_size or mini_batch_size
  _check_divides("group_size", group_size, "mini_batch_size", mini_batch_size)
  _check_divides(
    "mini_batch_size", mini_batch_size, "num_sequences", num_sequences
  )
  return functools.partial(
    training_train_step.train_step,
    objective=build_objective(
      objective,
      teacher,
      forward=forward_passes(objective, teacher, graphdef, teacher_network),
      layout=_layout(
        group_size,
        micro_batch_size,
        mini_batch_size,
        # After its first update a step learns from samples of older parameters.
        is_off_policy=mini_batch_size < num_sequences,
      ),
    ),
    optimizer=optimizer,
    num_mini_batches=num_sequences // mini_batch_size,
    num_micro_batches=mini_batch_size // micro_batch_size,
    ema_rate=ema_rate(objective, teacher),
  )


def objective_by_length(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  *,
  graphdef: nnx.GraphDef,
  teacher_network: teachers.TeacherNetwork = None,
  group_size: int,
  is_off_policy: bool,
) -> Objective:
  """Returns the objective of updates whose sequences are sorted by length.

  Args:
    objective, teacher, graphdef, teacher_network, group_size: as for
      `train_step`.
    is_off_policy: whether a step has several updates.

  Raises:
    ConfigError: as for `train_step`.
  """
  return build_objective(
    objective,
    teacher,
    forward=forward_passes(objective, teacher, graphdef, teacher_network),
    layout=BatchLayout(
      group_size=group_size,
      is_cut=True,
      # A group's sequences have their places by their lengths.
      splits_groups=group_size > 1,
      is_off_policy=is_off_policy,
    ),
  )


def ema_rate(
  objective: ObjectiveConfig, teacher: TeacherConfig
) -> float | None:
  """Returns how far a teacher follows in a step; None if it follows nobody."""
  # Frozen parameters are kept as well, but follow nobody.
  is_ema = objective.keeps_teacher(teacher) and teacher.parameters == "ema"
  return teacher.ema_rate if is_ema else None


def gradients(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  *,
  graphdef: nnx.GraphDef,
  teacher_network: teachers.TeacherNetwork = None,
  group_size: int,
  num_sequences: int,
  micro_batch_size: int | None = None,
) -> GradientsFn:
  """Returns a function for the gradient that a step with one update uses.

  Args:
    objective, teacher, graphdef, teacher_network, group_size, num_sequences,
      micro_batch_size: as for `train_step`.

  Returns:
    `(params, teacher_params, batch, key) -> (gradient, value, metrics)`, see
    `train_step.gradients`.

  Raises:
    ConfigError, ValueError: as for `train_step`.
  """
  micro_batch_size = micro_batch_size or num_sequences
  _check_divides("group_size", group_size, "num_sequences", num_sequences)
  return functools.partial(
    training_train_step.gradients,
    objective=build_objective(
      objective,
      teacher,
      forward=forward_passes(objective, teacher, graphdef, teacher_network),
      layout=_layout(
        group_size, micro_batch_size, num_sequences, is_off_policy=False
      ),
    ),
    num_micro_batches=num_sequences // micro_batch_size,
  )


def forward_passes(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  graphdef: nnx.GraphDef,
  teacher_network: teachers.TeacherNetwork,
) -> ForwardPasses:
  """Returns the passes through the network that the sections ask for."""
  return teachers.forward_passes(
    build_network(objective, teacher, graphdef, teacher_network),
    access=teacher.access,
    list_size=teacher.list_size,
    teacher_names=tuple(teacher.models),
  )


def build_network(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  graphdef: nnx.GraphDef,
  teacher_network: teachers.TeacherNetwork,
) -> teachers.Network:
  """Returns the networks of student and teacher as the sections run them."""
  rate = teacher.trust_region_rate
  return teachers.Network(
    graphdef,
    teacher=teacher_network,
    chunk_size=objective.chunk_size,
    trust_region_rate=rate if teacher.parameters == "trust_region" else None,
  )


def _layout(
  group_size: int, micro_batch_size: int, whole: int, *, is_off_policy: bool
) -> BatchLayout:
  """Returns how the sequences of an update are cut into micro-batches."""
  _check_divides("micro_batch_size", micro_batch_size, "the sequences", whole)
  return BatchLayout(
    group_size=group_size,
    is_cut=micro_batch_size < whole,
    splits_groups=micro_batch_size % group_size != 0,
    is_off_policy=is_off_policy,
  )


def _check_divides(name: str, size: int, of: str, whole: int) -> None:
  if whole % size:
    raise ValueError(f"{name}={size} does not divide {of}={whole}")
