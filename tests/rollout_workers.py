"""Rollout workers for tests, from flat settings."""

import dataclasses

from distil_jax.generation.engine import Engine
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.training.rollouts.rollout_worker import RolloutWorker

_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}


def make(
  policy,
  judges,
  mesh,
  *,
  max_completion_length,
  num_slots=None,
  rollout_mesh=None,
  **settings,
):
  """A worker with an engine of its own."""
  sampling = {k: settings.pop(k) for k in _SAMPLING & set(settings)}
  tokenizer = policy.tokenizer
  return RolloutWorker(
    Engine(
      policy.graphdef,
      EngineConfig(num_slots=num_slots, mesh=rollout_mesh),
      eos_ids=tokenizer.eos_ids,
      pad_id=tokenizer.pad_id,
      decode=tokenizer.decode,
    ),
    tokenizer,
    judges,
    mesh,
    SamplingParams(**sampling, max_tokens=max_completion_length),
    **settings,
  )
