"""Searches the mesh and micro-batch size for a training step."""

from collections.abc import Callable

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.mesh import MeshConfig
from distil_jax.config.schema import Config
from distil_jax.models import decoder, sharding
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.planning import abstract_inputs, estimates, memory
from distil_jax.planning.build_workload import build_workload
from distil_jax.planning.results import Candidate, Hardware, Plan, Search
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import meshes, teacher_models
from distil_jax.training.setup import steps as setup_step


def search(
  config: Config,
  hardware: Hardware,
  network: DecoderConfig,
  progress: Progress,
  *,
  num_candidates: int,
  plan_training: Callable[[Config], Plan],
) -> Search:
  """Compiles the meshes and micro-batch sizes with the best estimates.

  Args:
    config: The run; its mesh and micro-batch size are replaced.
    hardware: What it is planned for.
    network: Sizes of the network.
    progress: Shows what is being done.
    num_candidates: Programs to compile at most.
    plan_training: Compiles the training step of a config; raises ConfigError
      if the mesh does not suit the network of chips.

  Raises:
    ConfigError: No mesh shards batches and network evenly, or the peaks of the
      hardware are not known.
  """
  ranked = _ranked(config, hardware, network)
  assert hardware.chip is not None
  capacity = hardware.chip.memory_bytes
  chosen = [e for e in ranked if e.num_bytes <= capacity]
  # Estimates may be wrong, so if none of them fits the compiler decides about
  # the smallest.
  chosen = chosen or sorted(ranked, key=lambda e: e.num_bytes)
  candidates = []
  with progress.stage("trying", num_candidates) as report:
    for estimate in chosen:
      try:
        plan = plan_training(with_mesh(config, estimate))
      except ConfigError:
        continue  # the mesh does not suit the network of chips
      candidates.append(Candidate(estimate, plan))
      report(len(candidates))
      if len(candidates) == num_candidates:
        break
  return Search(hardware, len(ranked), candidates)


def with_mesh(config: Config, estimate: estimates.Estimate) -> Config:
  """Returns the config with another mesh and micro-batch size."""
  sizes = {
    "micro_batch_size": estimate.micro_batch_size,
    "tokens_per_micro_batch": None,
  }
  return config.model_copy(
    update={
      "mesh": MeshConfig(**estimate.mesh),
      "optimizer": config.optimizer.model_copy(update=sizes),
    }
  )


def _ranked(
  config: Config, hardware: Hardware, network: DecoderConfig
) -> list[estimates.Estimate]:
  """Returns the estimates of all meshes, the fastest first."""
  if hardware.chip is None:
    raise ConfigError(
      f"--search ranks by published peaks, and those of {hardware.name} are "
      "not known; give --topology"
    )
  shapes = decoder.make(network)[1]
  optimizer, _ = setup_step.build_optimizer(config, shapes)
  state = jax.eval_shape(
    lambda params: setup_step.build_train_state(config, params, optimizer),
    shapes,
  )
  teachers = teacher_models.teacher_networks(
    config, network.vocab_size, only_config=True
  )
  shapes_of = {key: decoder.make(one)[1] for key, one in teachers.items()}
  # Of several teachers each sequence has one; the largest is counted.
  largest = max(
    shapes_of,
    key=lambda key: abstract_inputs.num_params(shapes_of[key]),
    default=None,
  )
  step = estimates.Step(
    network=network,
    run=build_workload(config, hardware, network),
    num_params=abstract_inputs.num_params(shapes),
    state_bytes=memory.tree_bytes((state, shapes_of)),
    batch_sizes=list(meshes.sampled_sizes(config).values()),
    mini_batch_size=config.optimizer.mini_batch_size or config.num_sequences,
    teacher=None if largest is None else teachers[largest],
    num_teacher_params=abstract_inputs.num_params(
      {} if largest is None else shapes_of[largest]
    ),
  )
  # Thousands of meshes are estimated in the time in which one is compiled.
  found = estimates.estimate_all(
    sharding.AXES, len(hardware.devices), hardware.chip, step
  )
  if not found:
    raise ConfigError(
      f"no mesh shards network and batches evenly over {len(hardware.devices)} "
      "chips; make rollout.num_problems and evaluation.num_problems multiples "
      "of that number"
    )
  return found
