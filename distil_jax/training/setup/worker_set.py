"""Builds everything that samples in a run."""

import dataclasses
from typing import NamedTuple

import jax

from distil_jax.config import Config
from distil_jax.envs.base import Environment
from distil_jax.generation.policy import Policy
from distil_jax.training import teacher_probe
from distil_jax.training.rollouts.rollout_worker import RolloutWorker
from distil_jax.training.rollouts.self_critique import SelfCritic
from distil_jax.training.setup import workers


class WorkerSet(NamedTuple):
  """Holds what samples completions in a run.

  Attributes:
    rollout: samples and judges what is learned from.
    evaluation: samples and judges held-out problems.
    teacher_probe: asks a guarded teacher; None without a guard.
  """

  rollout: RolloutWorker | SelfCritic
  evaluation: RolloutWorker | SelfCritic
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
  judges = workers.build_judge_pool(config, environment)
  parts = (config, policy, judges, mesh)
  tool_pool = workers.build_tool_pool(config, policy)
  rollout = workers.add_self_critique(
    *parts,
    worker=workers.build_rollout_worker(*parts, tool_pool),
    environment=environment,
  )
  evaluation = workers.build_evaluation_worker(*parts, tool_pool)
  if getattr(environment, "is_rewarded_by_critique", False):
    evaluation = workers.add_self_critique(
      *parts, worker=evaluation, environment=environment
    )
  return WorkerSet(rollout, evaluation, workers.build_teacher_probe(*parts))
