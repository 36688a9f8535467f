"""Lowers the program of a training step that needs the most memory."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from distil_jax.config.schema import Config
from distil_jax.models import sharding
from distil_jax.objectives.base import Objective, with_lists
from distil_jax.objectives.teachers import TeacherNetwork
from distil_jax.planning import abstract_inputs, memory
from distil_jax.planning.workload import Workload
from distil_jax.training import (
  build_step,
  length_step,
  train_state,
  train_step,
)
from distil_jax.types import TrainBatch

GRADIENT = "gradient"


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
  """Holds a program to compile, within the mesh of the training step.

  Attributes:
    lower: lowers it.
    by_hand: bytes of its arguments besides the training state.
    count: runs of it in a training step.
  """

  lower: Callable[[], Any]
  by_hand: Mapping[str, float]
  count: float = 1.0


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Holds what training programs are built from.

  Attributes:
    config: the run.
    step_fn: the training step as one program.
    graphdef: of the student.
    state: shapes and shardings of the training state.
    teacher: the teacher's network, if it is not the student's.
    teacher_params: its parameters, or None.
    run: numbers of the run.
    mesh: of the training step.
  """

  config: Config
  step_fn: Callable[..., Any]
  graphdef: nnx.GraphDef
  state: train_state.TrainState
  teacher: TeacherNetwork
  teacher_params: train_step.TeacherParams
  run: Workload
  mesh: jax.sharding.Mesh

  def batch(self) -> TrainBatch:
    """Returns the whole batch of a step, at the limits of lengths."""
    teacher = self.config.teacher
    return abstract_inputs.batch(
      self.mesh,
      num_sequences=self.run.num_sequences,
      prompt_length=self.run.prompt_length,
      teacher_prompt_length=self.run.teacher_prompt_length,
      completion_length=self.run.completion_length,
      has_tools=self.config.tools is not None,
      num_turns=self.config.environment.max_turns,
      list_size=teacher.list_size if teacher.server else 0,
      has_teachers=bool(teacher.models),
      has_taught_mask=bool(teacher.first_tokens or teacher.skip),
    )


def build(inputs: Inputs) -> TrainingProgram:
  """Returns the training step, or its largest micro-batch by length."""
  if inputs.run.tokens_per_micro_batch is None:
    return whole_step(inputs)
  return largest_micro_batch(inputs)


def whole_step(inputs: Inputs) -> TrainingProgram:
  """Returns the training step as one program."""
  shardings = _shardings(inputs.state)
  # Donated as in a run, or the state would be counted twice.
  step = jax.jit(
    inputs.step_fn, donate_argnums=0, out_shardings=(shardings, None)
  )
  batch = inputs.batch()
  return TrainingProgram(
    lambda: step.lower(inputs.state, batch, inputs.teacher_params),
    {"batch": memory.tree_bytes(batch)},
  )


def largest_micro_batch(inputs: Inputs) -> TrainingProgram:
  """Returns the gradient of the largest micro-batch by length.

  Its rows are at the limits of lengths, and it runs as often as a step whose
  rows all are needs it.
  """
  config, run, mesh = inputs.config, inputs.run, inputs.mesh
  objective = build_step.objective_by_length(
    config.objective,
    config.teacher,
    graphdef=inputs.graphdef,
    teacher_network=inputs.teacher,
    group_size=run.group_size,
    is_off_policy=config.optimizer.mini_batch_size is not None,
  )
  state = inputs.state
  batch = _prepared(
    objective,
    (state.student_params, inputs.teacher_params or state.student_params),
    inputs.batch(),
    num_rows=run.micro_batch_size,
    by_row=sharding.sharding(mesh, "batch"),
  )
  # The parameters are an argument of their own.
  rest = dataclasses.replace(state, params=None)
  others = (state.params, rest, inputs.teacher_params)
  shapes = jax.eval_shape(
    functools.partial(length_step.slice_gradient, objective=objective),
    *others,
    batch,
  )
  shardings = length_step.totals_shardings(_shardings(state))
  (gradient, value), aux = shapes
  totals = (
    (_with(gradient, shardings[0][0]), _with_one(value, shardings[1])),
    _with_one(aux, shardings[1]),
  )
  # The rest of the state is in memory too, and must be counted.
  accumulate = jax.jit(
    functools.partial(length_step.accumulate, objective=objective),
    donate_argnums=0,
    out_shardings=shardings,
    keep_unused=True,
  )
  return TrainingProgram(
    lambda: accumulate.lower(totals, *others, batch),
    {
      GRADIENT: memory.tree_bytes(totals[0][0]),
      "batch": memory.tree_bytes(batch),
    },
    count=math.ceil(run.num_sequences / len(batch.completion_ids)),
  )


def _prepared(
  objective: Objective, params, batch: TrainBatch, *, num_rows: int, by_row
) -> TrainBatch:
  """Returns shapes of a micro-batch with all that the loss reads."""
  prepared = jax.eval_shape(objective.prepare_fn, batch)
  shape = batch.completion_ids.shape
  if objective.credit_fn is not None:
    weights = jax.ShapeDtypeStruct(shape, jnp.float32)
    prepared = dataclasses.replace(
      prepared, score_weights=weights, future_costs=weights
    )
  if objective.ask_fn is not None and batch.teacher_candidate_ids is None:
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape[0]))
    lists = jax.eval_shape(objective.ask_fn, *params, batch, keys)
    prepared = with_lists(prepared, lists)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (num_rows, *x.shape[1:]), x.dtype, sharding=by_row
    ),
    prepared,
  )


def _shardings(state):
  return jax.tree.map(lambda x: x.sharding, state)


def _with(tree, shardings):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    tree,
    shardings,
  )


def _with_one(tree, place):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
  )
