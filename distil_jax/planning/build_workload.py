"""Builds the numbers of a run from its config."""

import dataclasses

import jax

from distil_jax.config.schema import Config
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.planning.results import Hardware
from distil_jax.planning.workload import Workload
from distil_jax.training.setup.micro_batch_sizes import build_sizes


def build_workload(
  config: Config,
  hardware: Hardware,
  network: DecoderConfig,
  mesh: jax.sharding.Mesh | None = None,
  rollout_mesh: jax.sharding.Mesh | None = None,
) -> Workload:
  """Returns the numbers of a run.

  Args:
    config: The run.
    hardware: What it is planned for.
    network: Sizes of the network.
    mesh, rollout_mesh: Meshes while training and sampling. None leaves them
      out.
  """
  rollout, optimizer, model = config.rollout, config.optimizer, config.model
  num_sequences = config.num_sequences
  is_cpu = hardware.devices[0].platform == "cpu"
  run = Workload(
    num_problems=rollout.num_problems,
    group_size=rollout.group_size,
    prompt_length=rollout.max_prompt_length,
    completion_length=rollout.max_completion_length,
    teacher_prompt_length=config.teacher.max_prompt_length
    # A server reads its prompts itself.
    if config.objective.needs_teacher and config.teacher.server is None
    else 0,
    micro_batch_size=optimizer.micro_batch_size
    or optimizer.mini_batch_size
    or num_sequences,
    num_slots=min(rollout.num_slots or num_sequences, num_sequences),
    # As the engine chooses it, which would need the arrays.
    cache_dtype=rollout.cache_dtype
    or (model.compute_dtype if is_cpu else "bfloat16"),
    chunk_size=config.objective.chunk_size,
    num_kv_heads=network.num_kv_heads,
    remat=model.remat,
    param_dtype=model.param_dtype,
    compute_dtype=model.compute_dtype,
    mesh=dict(mesh.shape) if mesh else {},
    rollout_mesh=dict(rollout_mesh.shape) if rollout_mesh else {},
    tokens_per_micro_batch=optimizer.tokens_per_micro_batch,
  )
  if mesh is None or optimizer.tokens_per_micro_batch is None:
    return run
  columns = max(run.prompt_length, run.teacher_prompt_length)
  counts = build_sizes(config, mesh).row_counts(columns + run.completion_length)
  return dataclasses.replace(run, micro_batch_size=counts[0])
