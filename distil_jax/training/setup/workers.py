"""Builds rollout workers, judges and tools from the config."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from distil_jax.config.base import ConfigError, SamplingConfig
from distil_jax.config.schema import Config
from distil_jax.config.tools import ToolsConfig
from distil_jax.envs import judge_pool
from distil_jax.envs.base import Environment, SelfJudged, max_turns
from distil_jax.envs.tools import build_tool
from distil_jax.generation.engine import Engine
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.policy import Policy
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.training import teacher_probe, teaching
from distil_jax.training.logging import progress
from distil_jax.training.rollouts import refill
from distil_jax.training.rollouts.between_turns import Partner
from distil_jax.training.rollouts.reply_pool import ReplyPool
from distil_jax.training.rollouts.rollout_worker import RolloutWorker
from distil_jax.training.rollouts.self_critique import SelfCritic
from distil_jax.training.rollouts.tool_pool import ToolPool
from distil_jax.training.setup.meshes import build_rollout_mesh
from distil_jax.training.setup.sandboxes import build_sandbox
from distil_jax.types import Problem


def build_tool_pool(config: Config, policy: Policy) -> ToolPool | None:
  """Builds the tool that the student may use; None without one.

  One pool serves all that is sampled in a run, so that each kind of failure is
  reported once.

  Raises:
    ConfigError: There is no such tool, or the model's chat template has no
      place for its outputs.
  """
  section = config.tools
  if section is None:
    return None
  # The pool takes what every kind of tool has; the rest belongs to the tool.
  common = section.model_dump(include=set(ToolsConfig.model_fields))
  seconds = common.pop("call_seconds")
  try:
    return ToolPool(
      build_tool(section, functools.partial(build_sandbox, config)),
      policy.tokenizer,
      seconds=seconds,
      warn=progress.warn,
      **common,
    )
  except ValueError as error:
    raise ConfigError(f"tools: {error}") from None


def build_partner(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  environment: Environment,
) -> Partner | None:
  """Builds what replies to the student's turns; None if nobody does.

  Raises:
    ConfigError: Both a tool and the environment would; a guard asks the teacher
      for one turn; or the model's chat template has no place for a reply.
  """
  num_turns = max_turns(environment)
  if num_turns == 1:
    return build_tool_pool(config, policy)
  kind = config.environment.kind
  if config.tools is not None:
    raise ConfigError(
      f"tools.kind={config.tools.kind} and environment.kind={kind}, which "
      f"speaks up to {num_turns - 1} times, would both reply to a turn; set "
      "tools=null, or let the environment have one turn"
    )
  if config.teacher.guard is not None:
    raise ConfigError(
      "teacher.guard lets the teacher answer in one turn, so that with "
      f"environment.kind={kind}, which speaks between {num_turns} turns, it "
      "would not measure what is taught; set teacher.guard=null"
    )
  try:
    return ReplyPool(
      judges,
      policy.tokenizer,
      max_turns=num_turns,
      max_reply_length=config.rollout.max_reply_length,
    )
  except ValueError as error:
    raise ConfigError(f"rollout: {error}") from None


def build_judge_pool(
  config: Config, environment: Environment
) -> judge_pool.JudgePool:
  """Builds the judges.

  One pool serves all that is judged in a run, so that each kind of failure is
  reported once.
  """
  return judge_pool.JudgePool(environment, config.judging, warn=progress.warn)


def build_sampling_params(
  section: SamplingConfig, config: Config, *, max_tokens: int | None = None
) -> SamplingParams:
  """Builds the sampling settings of a config section.

  Args:
    section: Section with temperature, top-k, top-p and min-p.
    config: Config of the run; its `rollout` has the stop strings.
    max_tokens: T; None means `rollout.max_completion_length`.
  """
  return SamplingParams(
    temperature=section.temperature,
    top_k=section.top_k,
    top_p=section.top_p,
    min_p=section.min_p,
    stop=config.rollout.stop,
    max_tokens=max_tokens or config.rollout.max_completion_length,
  )


def build_engine(config: Config, policy: Policy) -> Engine:
  """Builds an engine on the mesh for rollouts."""
  return Engine(
    policy.sampling_graphdef,
    EngineConfig(
      num_slots=config.rollout.num_slots,
      cache_dtype=config.rollout.cache_dtype,
      mesh=build_rollout_mesh(config),
    ),
    eos_ids=policy.tokenizer.eos_ids,
    pad_id=policy.tokenizer.pad_id,
    decode=policy.tokenizer.decode,
    special_ids=policy.tokenizer.special_ids,
    adapters=policy.config.merged_lora,
  )


def build_rollout_worker(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
  partner: Partner | None = None,
) -> RolloutWorker:
  """Builds the worker that samples for training."""
  return RolloutWorker(
    build_engine(config, policy),
    policy.tokenizer,
    judges,
    mesh,
    build_sampling_params(config.rollout, config),
    group_size=config.rollout.group_size,
    max_prompt_length=config.rollout.max_prompt_length,
    partner=partner,
  )


def build_evaluation_workers(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
  partner: Partner | None = None,
) -> dict[str, RolloutWorker]:
  """Builds the workers that sample for evaluation, by data set.

  Sets that sample in the same way share one, and so its compiled programs.
  """
  built, found = {}, {}
  for name, section in config.data_sets.items():
    evaluation = section.evaluation
    if evaluation is None:
      continue
    sampling = build_sampling_params(
      evaluation,
      config,
      max_tokens=evaluation.max_completion_length
      or section.max_completion_length,
    )
    key = (sampling, evaluation.num_samples)
    if key not in built:
      built[key] = RolloutWorker(
        build_engine(config, policy),
        policy.tokenizer,
        judges,
        mesh,
        sampling,
        group_size=evaluation.num_samples,
        max_prompt_length=config.rollout.max_prompt_length,
        partner=partner,
      )
    found[name] = built[key]
  return found


def add_self_critique(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
  *,
  worker: RolloutWorker,
  environment: Environment,
) -> RolloutWorker | SelfCritic:
  """Adds a critic that has the policy criticise what the worker samples.

  Returns:
    The critic; the worker itself if the environment needs no critiques.
  """
  if config.environment.kind != "self_evaluation":
    return worker
  assert isinstance(environment, SelfJudged)
  lengths = config.environment.critique
  sampling = build_sampling_params(
    config.rollout, config, max_tokens=lengths.max_length
  )
  critic = RolloutWorker(
    build_engine(config, policy),
    policy.tokenizer,
    judges,
    mesh,
    # Stop strings belong to the student's format, not to critiques.
    dataclasses.replace(sampling, stop=()),
    group_size=1,
    max_prompt_length=lengths.max_prompt_length,
  )
  return SelfCritic(
    worker,
    critic,
    environment,
    policy.tokenizer,
    max_prompt_length=lengths.max_prompt_length,
    max_length=lengths.max_length,
  )


def build_teacher_worker(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
) -> RolloutWorker:
  """Builds the worker that samples one answer to each teacher's prompt."""
  return RolloutWorker(
    build_engine(config, policy),
    policy.tokenizer,
    judges,
    mesh,
    build_sampling_params(config.rollout, config),
    group_size=1,
    max_prompt_length=config.teacher.max_prompt_length,
  )


def build_teacher_probe(
  config: Config,
  policy: Policy,
  judges: judge_pool.JudgePool,
  mesh: jax.sharding.Mesh,
) -> teacher_probe.TeacherProbe | None:
  """Builds the probe of a guarded teacher; None without a guard."""
  if config.teacher.guard is None:
    return None
  return teacher_probe.TeacherProbe(
    worker=build_teacher_worker(config, policy, judges, mesh),
    policy=policy,
    judges=judges,
    mesh=mesh,
    num_answers=config.teacher.guard.num_problems // jax.process_count(),
    success_threshold=config.teacher.success_threshold,
  )


def build_refill(
  config: Config, teacher: teaching.TeacherSettings | None
) -> refill.Refill | None:
  """Builds what replaces groups without signal; None without `refill`.

  Args:
    config: Config of the run.
    teacher: Says what stands in the teacher's prompt.
  """
  section = config.rollout.refill
  if section is None:
    return None
  rule = refill.SignalRule(
    learns_from_rewards=config.objective.learns_from_rewards,
    weighs_failures=config.objective.weighs_failures,
    teacher=teacher,
  )
  return refill.Refill(rule, section.max_rounds)


def completion_limits(
  config: Config, problems: Sequence[Problem], num_real: int | None = None
) -> np.ndarray | None:
  """Returns the most tokens of each problem's completions in training.

  Args:
    config: Config of the run.
    problems: P problems.
    num_real: Problems from this one on stand in; None means none do.

  Returns:
    Shape `[P]`; None if all have `rollout.max_completion_length`.
  """
  longest = config.rollout.max_completion_length
  limits = {
    name: section.length_limit("completion", config.rollout, "")[1]
    for name, section in config.data_sets.items()
  }
  # With a refill they are given at every step: without them it would be
  # another program.
  if config.rollout.refill is None and set(limits.values()) == {longest}:
    return None
  found = np.asarray([limits[problem.source] for problem in problems])
  found[num_real if num_real is not None else len(found) :] = 1
  return found


class WorkerSet(NamedTuple):
  """Holds what samples completions in a run.

  Attributes:
    rollout: samples and judges what is learned from.
    evaluation: samples and judges held-out problems, by data set.
    teacher_probe: asks a guarded teacher; None without a guard.
  """

  rollout: RolloutWorker | SelfCritic
  evaluation: Mapping[str, RolloutWorker | SelfCritic]
  teacher_probe: teacher_probe.TeacherProbe | None


def build_worker_set(
  config: Config,
  environment: Environment,
  policy: Policy,
  mesh: jax.sharding.Mesh,
) -> WorkerSet:
  """Builds the workers of a run, which share judges and tools."""
  # Parameters that a worker held would outlive the trainer's.
  policy = dataclasses.replace(policy, params={})
  judges = build_judge_pool(config, environment)
  parts = (config, policy, judges, mesh)
  partner = build_partner(config, policy, judges, environment)
  rollout = add_self_critique(
    *parts,
    worker=build_rollout_worker(*parts, partner),
    environment=environment,
  )
  evaluation = build_evaluation_workers(*parts, partner)
  # Held-out rewards come from the same critic where no other judge gives any.
  if getattr(environment, "is_rewarded_by_critique", False):
    evaluation = {
      name: add_self_critique(*parts, worker=worker, environment=environment)
      for name, worker in evaluation.items()
    }
  return WorkerSet(rollout, evaluation, build_teacher_probe(*parts))
