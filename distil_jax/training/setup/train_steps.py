"""Builds the training step: a program, and what runs it from the host."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.generation.policy import Policy
from distil_jax.models import sharding
from distil_jax.objectives import teachers
from distil_jax.objectives.base import BatchLayout
from distil_jax.objectives.build import build_objective
from distil_jax.objectives.teachers import OtherNetwork, TeacherNetwork
from distil_jax.training import (
  build_step,
  host_step,
  step_work,
  token_values,
)
from distil_jax.training.length_step import LengthStep
from distil_jax.training.setup.micro_batch_sizes import build_sizes
from distil_jax.training.setup.teacher_models import (
  TeacherModel,
  TeacherModels,
  Teachers,
)
from distil_jax.training.train_state import TrainState
from distil_jax.types import TrainBatch


def build_host_step(
  config: Config,
  policy: Policy,
  optimizer: optax.GradientTransformation,
  template: TrainState,
  teacher: Teachers | None = None,
) -> host_step.HostStep:
  """Returns the training step of a run.

  The weights of a teacher that is another model are read here.

  Args:
    config: the run's settings.
    policy: the student.
    optimizer: from `build_optimizer`.
    template: shape, dtype and sharding of each array of the state.
    teacher: the teacher, if it is another model, or several.

  Raises:
    ConfigError: several processes would have to share mini-batches.
  """
  mesh = template.step.sharding.mesh
  if config.optimizer.tokens_per_micro_batch is None:
    step_fn = compile_train_step(config, policy, optimizer, template, teacher)
    run_fn = host_step.whole_batch(step_fn, mesh)
    params = teacher and step_fn.keywords["teacher_params"]
  else:
    run_fn = build_length_step(config, policy, optimizer, template, teacher)
    params = run_fn.teacher_params
  return host_step.HostStep(
    run_fn,
    build_values_fn(config, policy, mesh, teacher, params),
    # A server has read them already.
    reads_teacher_prompts=config.teacher.server is None,
    count=step_work.WorkCounter(
      _networks(config, policy, teacher),
      config.rollout.group_size if config.objective.uses_rollouts else None,
    ),
  )


def _networks(
  config: Config, policy: Policy, teacher: Teachers | None
) -> step_work.Networks:
  """Returns the networks that scoring and update run here."""
  needs_teacher = config.objective.needs_teacher
  match teacher:
    case TeacherModel():
      teachers = (teacher.config,)
    case TeacherModels():
      teachers = tuple(
        policy.config if one is None else one.config
        for one in teacher.models.values()
      )
    case None:
      is_here = needs_teacher and config.teacher.server is None
      teachers = (policy.config,) if is_here else ()
  return step_work.Networks(
    policy.config,
    teachers,
    # Both networks of a trust region read what the teacher reads.
    num_teacher_passes=1 + (config.teacher.parameters == "trust_region"),
    reads_reference=not needs_teacher
    and config.objective.keeps_teacher(config.teacher),
  )


def build_values_fn(
  config: Config,
  policy: Policy,
  mesh: jax.sharding.Mesh,
  teacher: Teachers | None,
  teacher_params: Any,
) -> host_step.ValuesFn | None:
  """Returns what computes values of the tokens of some rows.

  Args:
    config: the run's settings.
    policy: the student.
    mesh: the mesh of the step.
    teacher: the teacher, if it is another model, or several.
    teacher_params: its weights.

  Returns:
    None if the objective has no teacher, or nobody wants the values.
  """
  logging = config.logging
  is_wanted = logging.token_values and logging.rollouts_every
  if not is_wanted or not config.objective.needs_teacher:
    return None
  whole = config.optimizer.mini_batch_size or config.num_sequences
  sections = (config.objective, config.teacher)
  networks = (policy.graphdef, teacher_network(config, teacher))
  choose_fn = None
  if config.teacher.access == "probabilities":
    choose_fn = functools.partial(
      teachers.ask_teacher,
      network=build_step.build_network(*sections, *networks),
      kind="top_k",
      size=token_values.NUM_CHOICES,
    )
  of_step = functools.partial(
    token_values.of_step,
    objective=build_objective(
      *sections,
      forward=build_step.forward_passes(*sections, *networks),
      layout=BatchLayout(group_size=config.rollout.group_size),
    ),
    num_mini_batches=config.num_sequences // whole,
    num_micro_batches=whole // (_micro_batch_size(config) or whole),
    choose_fn=choose_fn,
  )
  # The rows are few, and the process that writes them needs all.
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  values_fn = jax.jit(of_step, out_shardings=everywhere)
  decode = functools.partial(policy.tokenizer.decode, skip_special=False)

  def run(state: TrainState, batch: TrainBatch, rows: Sequence[int]):
    chosen = np.asarray(rows)
    placed = sharding.put_batch(mesh, batch)
    numbers = sharding.rows_of_process(placed.sample_mask, 0)[chosen]
    found = values_fn(state, placed, numbers, teacher_params)
    if jax.process_index() != 0:
      return []  # its own rows are others
    return token_values.records(
      {name: np.asarray(x) for name, x in found.items()},
      np.asarray(batch.completion_ids)[chosen],
      np.asarray(batch.completion_mask)[chosen],
      decode,
    )

  return run


def build_length_step(
  config: Config,
  policy: Policy,
  optimizer: optax.GradientTransformation,
  template: TrainState,
  teacher: Teachers | None = None,
) -> LengthStep:
  """Returns the training step for sequences that are sorted by length.

  Arguments and errors are those of `build_host_step`.
  """
  mesh = template.step.sharding.mesh
  section = config.optimizer
  mini_batch_size = section.mini_batch_size or config.num_sequences
  num_mini_batches = config.num_sequences // mini_batch_size
  if num_mini_batches > 1 and jax.process_count() > 1:
    raise ConfigError(
      f"optimizer.mini_batch_size={mini_batch_size} with optimizer."
      f"tokens_per_micro_batch={section.tokens_per_micro_batch} needs a single "
      "process, because each sorts the sequences that it has sampled; set one "
      "of the two to null"
    )
  return LengthStep(
    build_step.objective_by_length(
      config.objective,
      config.teacher,
      graphdef=policy.graphdef,
      teacher_network=teacher_network(config, teacher),
      group_size=config.rollout.group_size,
      is_off_policy=num_mini_batches > 1,
    ),
    optimizer,
    _shardings(template),
    build_sizes(config, mesh),
    num_mini_batches=num_mini_batches,
    ema_rate=build_step.ema_rate(config.objective, config.teacher),
    teacher_params=teacher and teacher.load_params(mesh),
  )


def compile_train_step(
  config: Config,
  policy: Policy,
  optimizer: optax.GradientTransformation,
  template: TrainState,
  teacher: Teachers | None = None,
) -> build_step.StepFn:
  """Returns the training step under jit; it donates the state.

  The weights of a teacher that is another model are read here.
  """
  network = teacher_network(config, teacher)
  # XLA might choose other shardings for the result, with which the next step
  # would have to be compiled again.
  step_fn = jax.jit(
    build_train_step(config, policy, optimizer, network),
    donate_argnums=0,
    out_shardings=(_shardings(template), None),
  )
  if teacher is None:
    return step_fn
  params = teacher.load_params(template.step.sharding.mesh)
  return functools.partial(step_fn, teacher_params=params)


def build_train_step(
  config: Config,
  policy: Policy,
  optimizer: optax.GradientTransformation,
  teacher_network: TeacherNetwork = None,
) -> build_step.StepFn:
  """Returns the training step of the config's objective, to be compiled."""
  return build_step.train_step(
    config.objective,
    config.teacher,
    graphdef=policy.graphdef,
    teacher_network=teacher_network,
    optimizer=optimizer,
    group_size=config.rollout.group_size,
    num_sequences=config.num_sequences,
    micro_batch_size=_micro_batch_size(config),
    mini_batch_size=config.optimizer.mini_batch_size,
  )


def teacher_network(config: Config, teacher: Teachers | None) -> TeacherNetwork:
  """Returns the teacher's network; None if it is the student's."""
  if config.teacher.server is not None:
    return OtherNetwork(None)
  return None if teacher is None else teacher.network


def _micro_batch_size(config: Config) -> int | None:
  """Returns the sequences of a micro-batch, if all of them have one width.

  With a budget of tokens it is their largest number within it at the limits of
  lengths, for checks that run a whole step as one program.
  """
  section = config.optimizer
  if section.tokens_per_micro_batch is None:
    return section.micro_batch_size
  length = config.rollout.max_completion_length + max(
    config.rollout.max_prompt_length,
    config.teacher.max_prompt_length if config.objective.needs_teacher else 0,
  )
  whole = section.mini_batch_size or config.num_sequences
  least = sharding.num_shards("batch")
  sizes = range(least, section.tokens_per_micro_batch // length + 1, least)
  return max((n for n in sizes if whole % n == 0), default=least)


def _shardings(template: TrainState) -> TrainState:
  return jax.tree.map(lambda x: x.sharding, template)
