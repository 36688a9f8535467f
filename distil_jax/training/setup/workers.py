"""Builds rollout workers, judges and tools."""

from typing import Any

import jax

from distil_jax.config import Config, ConfigError, SamplingConfig, ToolsConfig
from distil_jax.envs import Environment, SelfJudged, judge_pool
from distil_jax.envs.tools import Tool, make_tool
from distil_jax.generation.policy import Policy
from distil_jax.training import teacher_probe
from distil_jax.training.logging import progress
from distil_jax.training.rollouts.rollout_worker import RolloutWorker
from distil_jax.training.rollouts.self_critique import SelfCritic
from distil_jax.training.rollouts.tool_pool import ToolPool
from distil_jax.training.setup.environments import build_sandbox
from distil_jax.training.setup.meshes import build_rollout_mesh


def build_tool_pool(config: Config, policy: Policy) -> ToolPool | None:
  """What the student may use between its turns; None: nothing.

  For all that is sampled in a run, so that what fails is told once.

  Raises:
    ConfigError: there is no such tool, or the model's chat template has no
      place for what it says.
  """
  section = config.tools
  if section is None:
    return None
  common = section.model_dump(include=set(ToolsConfig.model_fields))
  seconds = common.pop("call_seconds")
  try:
    return ToolPool(
      _tool(config, section),
      policy.tokenizer,
      seconds=seconds,
      tell=progress.warn,
      **common,
    )
  except ValueError as error:
    raise ConfigError(f"tools: {error}") from None


def _tool(config: Config, section: Any) -> Tool:
  if section.kind == "own":
    return make_tool(section.function, **section.settings)
  settings = section.model_dump(exclude={"kind", *ToolsConfig.model_fields})
  return make_tool(section.kind, box=build_sandbox(config), **settings)


def build_judge_pool(
  config: Config, environment: Environment
) -> judge_pool.JudgePool:
  """For all that is judged in a run, so that what fails is told once."""
  return judge_pool.JudgePool(
    environment, **config.judging.model_dump(), tell=progress.warn
  )


def build_rollout_worker(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
  tooling: ToolPool | None = None,
) -> RolloutWorker:
  settings = config.rollout.model_dump(exclude={"num_problems", "mesh"})
  return RolloutWorker(
    policy,
    judges,
    mesh,
    rollout_mesh=build_rollout_mesh(config),
    tooling=tooling,
    **settings,
  )


def build_evaluation_worker(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
  tooling: ToolPool | None = None,
) -> RolloutWorker:
  e = config.evaluation
  return RolloutWorker(
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
    rollout_mesh=build_rollout_mesh(config),
    tooling=tooling,
  )


def add_self_critique(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
  *,
  actor: RolloutWorker,
  environment: Environment,
) -> RolloutWorker | SelfCritic:
  """The actor, and what has the policy criticise what it samples.

  The actor alone where the environment asks for no critiques.
  """
  if config.environment.kind != "self_evaluation":
    return actor
  assert isinstance(environment, SelfJudged)
  lengths = config.environment.critique
  settings = config.rollout.model_dump(
    include={*SamplingConfig.model_fields, "num_slots", "cache_dtype"}
  )
  critic = RolloutWorker(
    policy,
    judges,
    mesh,
    rollout_mesh=build_rollout_mesh(config),
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


def build_teacher_probe(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
) -> teacher_probe.TeacherProbe | None:
  """Looks at a guarded teacher; None without a guard."""
  if config.teacher.guard is None:
    return None
  settings = config.rollout.model_dump(
    exclude={"num_problems", "group_size", "max_prompt_length", "mesh"}
  )
  actor = RolloutWorker(
    policy,
    judges,
    mesh,
    rollout_mesh=build_rollout_mesh(config),
    group_size=1,
    max_prompt_length=config.teacher.max_prompt_length,
    **settings,
  )
  return teacher_probe.TeacherProbe(
    actor=actor,
    policy=policy,
    judges=judges,
    mesh=mesh,
    num_answers=config.teacher.guard.num_problems // jax.process_count(),
    success_threshold=config.teacher.success_threshold,
  )
