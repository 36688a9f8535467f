"""Builds optimizer, training state, training step and guard."""

import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from distil_jax.config.base import ConfigError
from distil_jax.config.optimizers import (
  AdafactorConfig,
  LionConfig,
  MuonConfig,
  OptimizerConfig,
)
from distil_jax.config.schema import Config
from distil_jax.data import teacher_templates
from distil_jax.data.tokenizer import Tokenizer
from distil_jax.envs.base import Environment, max_turns
from distil_jax.generation.policy import Policy
from distil_jax.models import decoder, lora, sharding
from distil_jax.training import (
  batch_builder,
  checkpoints,
  low_precision,
  optimizers,
  parameter_groups,
  teacher_guard,
  train_state,
)
from distil_jax.training.setup.model_directory import check_same_base
from distil_jax.training.setup.records import record_of
from distil_jax.training.setup.teacher_models import (
  TeacherModel,
  Teachers,
)
from distil_jax.training.setup.teacher_servers import (
  build_remote_teacher,
)


def build_batch_builder(
  config: Config,
  policy: Policy,
  teacher: Teachers | None,
  environment: Environment,
) -> batch_builder.BatchBuilder:
  """Returns what builds the batches of a run.

  It depends on the mesh that is set, see `_num_sharing`.

  Args:
    config: the run's settings.
    policy: the student.
    teacher: the teacher, if it is another model, or several.
    environment: whose replies its prompts quote.
  """
  writer, writers = policy.tokenizer, {}
  if isinstance(teacher, TeacherModel):
    writer = teacher.tokenizer
  elif teacher is not None:
    writers = teacher.tokenizers
  return record_of(
    batch_builder.BatchBuilder,
    config.rollout,
    ask=build_remote_teacher(config, policy),
    loss_weights=_loss_weights(config),
    tokenizer=policy.tokenizer,
    teacher_tokenizer=writer,
    teacher=build_teacher_settings(
      config,
      tokenizers=writers,
      num_turns=max_turns(environment),
    ),
  )


def _loss_weights(config: Config) -> Mapping[str, float] | None:
  """Returns the weight of each data set's loss; None if all weigh 1."""
  weights = {name: x.loss_weight for name, x in config.data_sets.items()}
  return None if set(weights.values()) == {1.0} else weights


def build_teacher_settings(
  config: Config,
  *,
  tokenizers: Mapping[str, Tokenizer] = types.MappingProxyType({}),
  num_turns: int = 1,
) -> batch_builder.TeacherSettings | None:
  """Returns what stands in the teacher's prompt; None without a teacher.

  It depends on the mesh that is set, see `_num_sharing`.

  Args:
    config: the run's settings.
    tokenizers, num_turns: see `teaching.TeacherSettings`.
  """
  if not config.objective.needs_teacher:
    return None
  try:
    template = teacher_templates.load(config.teacher.template)
  except ValueError as error:
    raise ConfigError(f"teacher.template: {error}") from error
  return record_of(
    batch_builder.TeacherSettings,
    config.teacher,
    template=template,
    # Turns have prompts of their own, of which none is split.
    num_sharing=_num_sharing(config) if num_turns == 1 else 1,
    max_prefix_length=config.rollout.max_prompt_length,
    names=tuple(config.teacher.models),
    tokenizers=tokenizers,
    num_turns=num_turns,
  )


def _num_sharing(config: Config) -> int:
  """Returns how many teacher's prompts in a row can share their prefix.

  They belong to one group and are on one device in one micro-batch.
  """
  # A server reads whole prompts.
  is_read_here = config.teacher.share_prefix and config.teacher.server is None
  sizes = config.optimizer
  # Sequences that are sorted by length leave their groups.
  if not is_read_here or sizes.tokens_per_micro_batch:
    return 1
  if sharding.num_shards("sequence") > 1:
    return 1
  at_once = (
    sizes.micro_batch_size or sizes.mini_batch_size or config.num_sequences
  )
  # A prefix is read once for its prompts, so these must lie in one group, one
  # micro-batch and on one device.
  return math.gcd(
    config.rollout.group_size, at_once // sharding.num_shards("batch")
  )


def build_optimizer(
  config: Config, params: decoder.Params, num_steps: int | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimizer, and the learning rate at each training step.

  Args:
    config: the run's settings.
    params: the student's parameters, or their shapes.
    num_steps: at which the run ends; None means `train.num_steps`.

  Raises:
    ConfigError: `optimizer.groups` names parameters that do not exist.
  """
  _, params = split_params(config, params)
  section = config.optimizer
  schedule = optimizers.make_schedule(
    learning_rate=section.learning_rate,
    warmup_steps=section.warmup_steps,
    schedule=section.schedule,
    num_steps=num_steps or config.train.num_steps,
    decay_steps=section.decay_steps,
    final_learning_rate=section.final_learning_rate,
  )
  groups = [
    record_of(parameter_groups.ParameterGroup, group)
    for group in section.groups
  ]
  _check_groups(params, groups)
  mini_batch_size = section.mini_batch_size or config.num_sequences
  optimizer = optimizers.make_optimizer(
    schedule,
    direction=_build_direction(section, params),
    weight_decay=parameter_groups.weight_decays(
      params,
      groups,
      weight_decay=section.weight_decay,
      only_matrices=section.decay == "matrices",
    )
    if groups or section.decay == "matrices"
    else section.weight_decay,
    learning_rate_scales=parameter_groups.learning_rate_scales(params, groups)
    if groups
    else None,
    max_gradient_norm=section.max_gradient_norm,
    updates_per_step=config.num_sequences // mini_batch_size,
  )
  # Adapters are float32 whatever the type of the weights.
  if config.model.param_dtype != "float32" and config.model.lora is None:
    if section.master_dtype is not None:
      optimizer = low_precision.with_master_params(optimizer)
    elif section.stochastic_rounding:
      optimizer = low_precision.with_stochastic_rounding(
        optimizer, config.train.seed
      )
  return optimizer, schedule


def _build_direction(
  section: OptimizerConfig, params: decoder.Params
) -> optax.GradientTransformation:
  """Returns what turns gradients into updates, by `optimizer.kind`."""
  match section:
    case AdafactorConfig():
      return optimizers.adafactor(
        decay_rate=section.decay_rate,
        clipping_threshold=section.clipping_threshold,
        multiply_by_parameter_scale=section.multiply_by_parameter_scale,
        min_dim_size_to_factor=section.min_dim_size_to_factor,
      )
    case LionConfig():
      return optax.scale_by_lion(section.beta1, section.beta2)
  adam = optax.scale_by_adam(section.beta1, section.beta2, section.epsilon)
  if isinstance(section, MuonConfig):
    return optimizers.muon(
      parameter_groups.matrices(params), momentum=section.momentum, adam=adam
    )
  return adam


def _check_groups(
  params: decoder.Params,
  groups: Sequence[parameter_groups.ParameterGroup],
) -> None:
  """Refuses a group without parameters, which would be ignored silently."""
  unmatched = parameter_groups.unmatched(params, groups)
  if unmatched is None:
    return
  index, match = unmatched
  known = jax.tree.leaves(parameter_groups.names(params))
  raise ConfigError(
    f"optimizer.groups[{index}].match={match!r} names no parameter that an "
    f"earlier group has not; the parameters are {', '.join(known)}"
  )


def split_params(
  config: Config, params: decoder.Params
) -> tuple[decoder.Params | None, decoder.Params]:
  """Returns the frozen parameters, if there are adapters, and the trained."""
  return (None, params) if config.model.lora is None else lora.split(params)


def trained_params(
  config: Config, params: decoder.Params, step: checkpoints.Step | None = None
) -> tuple[int | None, decoder.Params]:
  """Returns the step and the parameters of a checkpoint of the run.

  Args:
    config: the run's settings.
    params: the base model's, with new adapters if the run has any.
    step: the checkpoint's step; None takes the last that is not damaged.

  Returns:
    None and `params` if there is no checkpoint.

  Raises:
    CheckpointError: see `checkpoints.last_params`.
  """
  base, trained = split_params(config, params)
  directory = config.run_directory / "checkpoints"
  found_step, found = checkpoints.last_params(
    directory,
    trained,
    step=step,
    check=lambda notes: check_same_base(
      config, notes.get(checkpoints.BASE), str(directory)
    ),
  )
  return found_step, lora.join(base, found)


def build_train_state(
  config: Config,
  params: decoder.Params,
  optimizer: optax.GradientTransformation,
) -> train_state.TrainState:
  """Returns the state before the first step."""
  guard = config.teacher.guard
  # A moving average in bfloat16 would stop: at a rate of 0.01 it moves by less
  # than it can be rounded to.
  is_average = config.teacher.parameters == "ema"
  base, trained = split_params(config, params)
  return train_state.init_state(
    trained,
    base_params=base,
    optimizer=optimizer,
    keeps_teacher=config.objective.keeps_teacher(config.teacher),
    seed=config.train.seed,
    guard_action=guard.action if guard else None,
    teacher_dtype=jnp.float32 if is_average else None,
  )


def build_state_template(
  config: Config,
  params: decoder.Params,
  optimizer: optax.GradientTransformation,
  mesh: jax.sharding.Mesh,
) -> train_state.TrainState:
  """Returns shape, dtype and sharding of each array; holds no memory."""
  shapes = jax.eval_shape(
    lambda params: build_train_state(config, params, optimizer), params
  )
  shardings = train_state.state_shardings(shapes, mesh, optimizer)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def build_first_state(
  config: Config,
  params: decoder.Params,
  optimizer: optax.GradientTransformation,
  template: train_state.TrainState,
) -> train_state.TrainState:
  """Returns the sharded state before the first step; donates the parameters."""
  # Under jit with shardings every device makes its own parts, so that neither
  # moments nor copies exist whole anywhere.
  init = jax.jit(
    lambda params: build_train_state(config, params, optimizer),
    out_shardings=jax.tree.map(lambda x: x.sharding, template),
    donate_argnums=0,
  )
  return init(params)


def compile_guard(
  config: Config, mesh: jax.sharding.Mesh
) -> Callable[..., teacher_guard.GuardState] | None:
  """Returns `teacher_guard.look` under jit; None without a guard."""
  guard = config.teacher.guard
  if guard is None:
    return None
  return jax.jit(
    functools.partial(teacher_guard.look, margin=guard.margin),
    out_shardings=sharding.sharding(mesh),
  )
