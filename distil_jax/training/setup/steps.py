"""A config to the parts that it asks for."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from distil_jax.config import (
  Config,
  ConfigError,
  CreateModel,
  Sampling,
  Tools,
  needs_teacher,
)
from distil_jax.data import problems as data_problems
from distil_jax.data import tokenizer as tokenizers
from distil_jax.distributed import collectives
from distil_jax.envs import (
  Environment,
  SelfJudged,
  judge_pool,
  make_environment,
  sandbox,
)
from distil_jax.envs.tools import Tool, make_tool
from distil_jax.generation.policy import Policy, load_policy, resolve_directory
from distil_jax.models import decoder, hf_weights, sharding
from distil_jax.models import decoder_config as models_config
from distil_jax.models.kernels import sequence_attention
from distil_jax.objectives import build
from distil_jax.training import batch_builder, build_step, teacher_probe
from distil_jax.training import train_step as training_train_step
from distil_jax.training.rollouts.rollout_worker import Actor
from distil_jax.training.rollouts.self_critique import SelfCritic
from distil_jax.training.rollouts.tool_pool import Tooling
from distil_jax.types import Problem

# Texts that a new tokenizer is trained on, at the most.
_NUM_TOKENIZER_TEXTS = 20_000


def environment(config: Config) -> Environment:
  return _environment(config, config.environment)


def _environment(config: Config, section: Any) -> Environment:
  """Of a section, which may be inside another one."""
  if section.kind == "own":
    return make_environment(section.function, **section.settings)
  settings = section.model_dump(exclude={"kind", "critique"})
  if section.kind == "code":
    settings["box"] = box(config)
  if settings.get("of"):
    settings["of"] = _environment(config, section.of)
  return make_environment(section.kind, **settings)


def box(config: Config) -> sandbox.Sandbox:
  """Where programs run; one for all that run some.

  Raises:
    ConfigError: this machine cannot keep them apart.
  """
  return _box(config.sandbox.model_dump_json())


@functools.cache
def _box(settings: str) -> sandbox.Sandbox:
  """From the section as text, by which it is known again."""
  try:
    return sandbox.make(**json.loads(settings))
  except sandbox.SandboxError as error:
    raise ConfigError(str(error)) from None


def tooling(config: Config, policy: Policy) -> Tooling | None:
  """What the student may use between its turns; None: nothing.

  For all that is sampled in a run, so that what fails is told once.

  Raises:
    ConfigError: there is no such tool, or the model's chat template has no
      place for what it says.
  """
  section = config.tools
  if section is None:
    return None
  common = section.model_dump(include=set(Tools.model_fields))
  seconds = common.pop("call_seconds")
  try:
    return Tooling(
      _tool(config, section), policy.tokenizer, seconds=seconds, **common
    )
  except ValueError as error:
    raise ConfigError(f"tools: {error}") from None


def _tool(config: Config, section: Any) -> Tool:
  if section.kind == "own":
    return make_tool(section.function, **section.settings)
  settings = section.model_dump(exclude={"kind", *Tools.model_fields})
  return make_tool(section.kind, box=box(config), **settings)


def judges(config: Config, environment: Environment) -> judge_pool.Judges:
  """For all that is judged in a run, so that what fails is told once."""
  return judge_pool.Judges(environment, **config.judging.model_dump())


def mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """The mesh; refuses batches that it cannot cut evenly.

  Args:
    config: of the run.
    devices: None: all there are.

  Raises:
    ConfigError: with both numbers and the cure.
  """
  try:
    made = sharding.make_mesh(**config.mesh.model_dump(), devices=devices)
  except ValueError as error:
    raise ConfigError(str(error)) from None
  except NotImplementedError as error:
    raise ConfigError(
      f"mesh does not suit how the chips are joined: {error}"
    ) from None
  learned = {
    f"optimizer.{name}": size
    for name in ("mini_batch_size", "micro_batch_size")
    if (size := getattr(config.optimizer, name))
  }
  _check_batches(sampled_sizes(config) | learned, made, "mesh")
  count, length = made.shape["context"], config.rollout.max_completion_length
  if length % count:
    raise ConfigError(
      f"rollout.max_completion_length={length} is not a multiple of "
      f"mesh.context={count}, which cuts completions into equal parts"
    )
  return made


def rollout_mesh(
  config: Config, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh | None:
  """Where to sample; None: where to train.

  Args:
    config, devices: as for `mesh`.

  Raises:
    ConfigError: it does not fit the devices or the batches.
  """
  if config.rollout.mesh is None:
    trained = mesh(config, devices)
    if trained.shape["context"] == 1:
      return None
    _check_batches(
      sampled_sizes(config), trained, "mesh", ("data", "fsdp", "context")
    )
    return sharding.without_context(trained)
  if config.rollout.mesh.context != 1:
    raise ConfigError(
      f"rollout.mesh.context={config.rollout.mesh.context}: sampling makes one "
      "token after the other and cuts no sequence; use rollout.mesh.fsdp"
    )
  try:
    sizes = config.rollout.mesh.model_dump()
    made = sharding.make_mesh(**sizes, devices=devices)
  except (ValueError, NotImplementedError) as error:
    raise ConfigError(f"rollout.mesh: {error}") from None
  _check_batches(sampled_sizes(config), made, "rollout.mesh")
  return made


def policy(
  config: Config,
  environment: Environment,
  problems: data_problems.Problems,
  mesh: jax.sharding.Mesh,
) -> Policy:
  """Loads the policy; makes it first where the config says so.

  Raises:
    ConfigError: the model that is there has other sizes than `model.create`
      says, fewer positions than a sequence has tokens, or fewer tokens than a
      list is long; or the attention that is named does not run here.
  """
  directory = resolve_directory(config.model.directory)
  if config.model.create and not (directory / hf_weights.CONFIG).is_file():
    _create(config, config.model.create, environment, problems.train)
  check_attention(config, mesh)
  loaded = load_policy(
    config.model.directory,
    config.model.param_dtype,
    compute_dtype=config.model.compute_dtype,
    remat=config.model.remat,
    attention=config.model.attention,
    mesh=mesh,
    chat_template_kwargs=config.model.chat_template_kwargs,
  )
  check_network(config, loaded.config)
  return loaded


def training_actor(
  config: Config,
  policy: Policy,
  judges: judge_pool.Judges,
  mesh: jax.sharding.Mesh,
  tooling: Tooling | None = None,
) -> Actor:
  settings = config.rollout.model_dump(exclude={"num_problems", "mesh"})
  return Actor(
    policy,
    judges,
    mesh,
    rollout_mesh=rollout_mesh(config),
    tooling=tooling,
    **settings,
  )


def evaluation_actor(
  config: Config,
  policy: Policy,
  judges: judge_pool.Judges,
  mesh: jax.sharding.Mesh,
  tooling: Tooling | None = None,
) -> Actor:
  e = config.evaluation
  return Actor(
    policy,
    judges,
    mesh,
    group_size=e.num_samples,
    max_prompt_length=config.rollout.max_prompt_length,
    max_completion_length=e.max_completion_length
    or config.rollout.max_completion_length,
    temperature=e.temperature,
    top_k=e.top_k,
    top_p=e.top_p,
    min_p=e.min_p,
    stop=config.rollout.stop,
    num_slots=config.rollout.num_slots,
    cache_dtype=config.rollout.cache_dtype,
    rollout_mesh=rollout_mesh(config),
    tooling=tooling,
  )


def with_critic(
  config: Config,
  policy: Policy,
  judges: judge_pool.Judges,
  mesh: jax.sharding.Mesh,
  *,
  actor: Actor,
  environment: Environment,
) -> Actor | SelfCritic:
  """The actor, and what has the policy criticise what it samples.

  The actor alone where the environment asks for no critiques.
  """
  if config.environment.kind != "self_evaluation":
    return actor
  assert isinstance(environment, SelfJudged)
  lengths = config.environment.critique
  settings = config.rollout.model_dump(
    include={*Sampling.model_fields, "num_slots", "cache_dtype"}
  )
  critic = Actor(
    policy,
    judges,
    mesh,
    rollout_mesh=rollout_mesh(config),
    group_size=1,
    max_prompt_length=lengths.max_prompt_length,
    max_completion_length=lengths.max_length,
    **settings,
  )
  return SelfCritic(
    actor,
    critic,
    environment,
    policy.tokenizer,
    max_prompt_length=lengths.max_prompt_length,
    max_length=lengths.max_length,
  )


def teacher_settings(config: Config) -> batch_builder.TeacherSettings | None:
  """What stands in the teacher's prompt; None where no teacher is asked."""
  if not needs_teacher(config.objective):
    return None
  settings = config.teacher.model_dump(
    include={f.name for f in dataclasses.fields(batch_builder.TeacherSettings)}
  )
  return batch_builder.TeacherSettings(
    num_sharing=_num_sharing(config),
    max_prefix_length=config.rollout.max_prompt_length,
    **settings,
  )


def _num_sharing(config: Config) -> int:
  """How many teacher's prompts in a row are read after a common prefix.

  Those of one group, as far as they are on one device in one micro-batch.
  """
  if not config.teacher.share_prefix or sharding.num_shards("sequence") > 1:
    return 1
  sizes = config.optimizer
  at_once = (
    sizes.micro_batch_size or sizes.mini_batch_size or config.num_sequences
  )
  return math.gcd(
    config.rollout.group_size, at_once // sharding.num_shards("batch")
  )


def optimizer(
  config: Config,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  settings = config.optimizer.model_dump(
    exclude={"micro_batch_size", "mini_batch_size"}
  )
  mini_batch_size = config.optimizer.mini_batch_size or config.num_sequences
  return training_train_step.make_optimizer(
    **settings,
    num_steps=config.train.num_steps,
    updates_per_step=config.num_sequences // mini_batch_size,
  )


def inspector(
  config: Config,
  policy: Policy,
  judges: judge_pool.Judges,
  mesh: jax.sharding.Mesh,
) -> teacher_probe.Inspector | None:
  """Looks at a guarded teacher; None without a guard."""
  if config.teacher.guard is None:
    return None
  settings = config.rollout.model_dump(
    exclude={"num_problems", "group_size", "max_prompt_length", "mesh"}
  )
  actor = Actor(
    policy,
    judges,
    mesh,
    rollout_mesh=rollout_mesh(config),
    group_size=1,
    max_prompt_length=config.teacher.max_prompt_length,
    **settings,
  )
  return teacher_probe.Inspector(
    actor=actor,
    policy=policy,
    judges=judges,
    mesh=mesh,
    num_answers=config.teacher.guard.num_problems // jax.process_count(),
    success_threshold=config.teacher.success_threshold,
  )


def init_state(
  config: Config,
  params: decoder.Params,
  optimizer: optax.GradientTransformation,
) -> training_train_step.TrainState:
  guard = config.teacher.guard
  return training_train_step.init_state(
    params,
    optimizer=optimizer,
    keeps_teacher=build.keeps_teacher(config.objective, config.teacher),
    seed=config.train.seed,
    guard_action=guard.action if guard else None,
  )


def train_step(
  config: Config,
  policy: Policy,
  optimizer: optax.GradientTransformation,
) -> build_step.StepFn:
  return build_step.train_step(
    config.objective,
    config.teacher,
    graphdef=policy.graphdef,
    optimizer=optimizer,
    group_size=config.rollout.group_size,
    num_sequences=config.num_sequences,
    micro_batch_size=config.optimizer.micro_batch_size,
    mini_batch_size=config.optimizer.mini_batch_size,
  )


def sampled_sizes(config: Config) -> dict[str, int]:
  """Problems of each batch that is sampled."""
  sizes = {
    "rollout.num_problems": config.rollout.num_problems,
    "evaluation.num_problems": config.evaluation.num_problems,
  }
  if config.teacher.guard:
    sizes["teacher.guard.num_problems"] = config.teacher.guard.num_problems
  return sizes


def _check_batches(
  sizes: Mapping[str, int],
  made: jax.sharding.Mesh,
  section: str,
  axes: Sequence[str] = ("data", "fsdp"),
) -> None:
  multiple = sharding.batch_size_multiple(made, axes)
  named = ", ".join(f"{section}.{axis}={made.shape[axis]}" for axis in axes)
  if multiple % jax.process_count():
    raise ConfigError(
      f"{named} cut a batch into {multiple} parts, not a multiple of the "
      f"{jax.process_count()} processes, each of which has problems of its "
      f"own; use less of {section}.tensor or {section}.context"
    )
  for name, size in sizes.items():
    if size % multiple:
      raise ConfigError(
        f"{name}={size} is not a multiple of {multiple}, the devices along "
        f"{named}; choose one that is"
      )


def check_attention(config: Config, mesh: jax.sharding.Mesh) -> None:
  """Refuses an attention that does not run on the mesh.

  Raises:
    ConfigError: see `policy`.
  """
  platform = mesh.devices.flat[0].platform
  try:
    sequence_attention.check_platform(config.model.attention, platform)
  except ValueError as error:
    raise ConfigError(f"model.{error}") from None


def check_network(config: Config, network: models_config.Qwen3Config) -> None:
  """Refuses a network that the run's settings do not suit.

  Raises:
    ConfigError: see `policy`.
  """
  create = config.model.create
  # The seed cannot be seen, and the tokenizer may have found fewer tokens.
  sizes = create.model_dump(exclude={"seed", "vocab_size"}) if create else {}
  for name, size in sizes.items():
    if getattr(network, name) != size:
      raise ConfigError(
        f"model.create.{name}={size}, but the model in "
        f"{config.model.directory}, made before, has {getattr(network, name)}; "
        "set another model.directory, or remove that one"
      )
  prompt = config.rollout.max_prompt_length
  if needs_teacher(config.objective):
    prompt = max(prompt, config.teacher.max_prompt_length)
  completion = max(
    config.rollout.max_completion_length,
    config.evaluation.max_completion_length or 0,
  )
  critique = getattr(config.environment, "critique", None)
  if critique and (
    critique.max_prompt_length + critique.max_length > network.max_positions
  ):
    raise ConfigError(
      f"critiques of {critique.max_length} tokens after prompts of "
      f"{critique.max_prompt_length} are longer than the "
      f"{network.max_positions} positions of the model in "
      f"{config.model.directory} (max_position_embeddings); lower "
      "environment.critique.max_prompt_length or max_length"
    )
  if prompt + completion > network.max_positions:
    raise ConfigError(
      f"prompts of {prompt} and completions of {completion} tokens are longer "
      f"than the {network.max_positions} positions of the model in "
      f"{config.model.directory} (max_position_embeddings); lower "
      "rollout.max_prompt_length, teacher.max_prompt_length or "
      "max_completion_length"
    )
  _check_lists(config, network.vocab_size)


def _check_lists(config: Config, vocab_size: int) -> None:
  """No list of tokens is longer than the vocabulary."""
  sizes = {"objective.top_k": getattr(config.objective, "top_k", None)}
  if needs_teacher(config.objective) and config.teacher.access == "top_k":
    sizes["teacher.top_k"] = config.teacher.top_k
  for name, size in sizes.items():
    if size is not None and size > vocab_size:
      raise ConfigError(
        f"{name}={size} is more than the {vocab_size} tokens of the model in "
        f"{config.model.directory}; lower it"
      )


def _create(
  config: Config,
  create: CreateModel,
  environment: Environment,
  problems: Sequence[Problem],
) -> None:
  """Makes a random model and trains its tokenizer on the training data."""
  if jax.process_index() == 0:
    sizes = create.model_dump(exclude={"seed", "vocab_size"})
    texts = data_problems.texts(config, environment, problems)
    tokenizer = tokenizers.train(
      itertools.islice(texts, _NUM_TOKENIZER_TEXTS),
      vocab_size=create.vocab_size,
    )
    network = models_config.Qwen3Config(
      vocab_size=tokenizer.vocab_size,
      param_dtype=config.model.param_dtype,
      **sizes,
    )
    graphdef, _ = decoder.make(network)
    params = decoder.init(network, jax.random.key(create.seed))
    made = Policy(network, graphdef, params, tokenizer)
    made.save(config.model.directory)
  collectives.wait_for_all("the model is created")
