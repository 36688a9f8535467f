"""Meshes and micro-batches for a training step, tried and ranked."""

from distil_jax.config import Config, ConfigError, MeshConfig
from distil_jax.models import decoder, sharding
from distil_jax.models import decoder_config as models_config
from distil_jax.planning import abstract_inputs, estimates
from distil_jax.planning import planner as planning_planner
from distil_jax.planning.results import Hardware, Search, Trial
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import meshes


def search(
  config: Config,
  hardware: Hardware,
  network: models_config.DecoderConfig,
  progress: Progress,
  *,
  tries: int,
) -> Search:
  """Tries meshes and micro-batches; arithmetic says which.

  Args:
    config: the run; its mesh and micro-batch do not matter.
    hardware: what it is planned for.
    network: its sizes.
    progress: told what is being done.
    tries: programs to compile at most.

  Raises:
    ConfigError: nothing cuts batches and network evenly, or the peaks of the
      hardware are not known.
  """
  ranked = _ranked(config, hardware, network)
  assert hardware.chip is not None
  room = hardware.chip.memory_bytes
  chosen = [guess for guess in ranked if guess.num_bytes <= room]
  # Arithmetic may be wrong: where it finds no room, the compiler is asked.
  chosen = chosen or sorted(ranked, key=lambda g: g.num_bytes)
  trials = []
  with progress.stage("trying", tries) as report:
    for guess in chosen:
      try:
        planner = planning_planner.Planner(
          arranged(config, guess), hardware, network, progress
        )
      except ConfigError:
        continue  # a mesh that the network of chips does not suit
      trials.append(Trial(guess, planner.outcome([planner.training()])))
      report(len(trials))
      if len(trials) == tries:
        break
  return Search(hardware, len(ranked), trials)


def arranged(config: Config, guess: estimates.Estimate) -> Config:
  """The config with another mesh and micro-batch."""
  sizes = {"micro_batch_size": guess.micro_batch_size}
  return config.model_copy(
    update={
      "mesh": MeshConfig(**guess.mesh),
      "optimizer": config.optimizer.model_copy(update=sizes),
    }
  )


def _ranked(
  config: Config, hardware: Hardware, network: models_config.DecoderConfig
) -> list[estimates.Estimate]:
  if hardware.chip is None:
    raise ConfigError(
      f"--search ranks by published peaks, and those of {hardware.name} are "
      "not known; give --topology"
    )
  guard = config.teacher.guard
  found = estimates.estimate_all(
    sharding.AXES,
    len(hardware.devices),
    hardware.chip,
    network,
    planning_planner.described(config, hardware, network),
    num_params=abstract_inputs.num_params(decoder.make(network)[1]),
    num_copies=config.objective.keeps_teacher(config.teacher)
    + (guard is not None and guard.action == "roll_back"),
    batch_sizes=list(meshes.sampled_sizes(config).values()),
    mini_batch_size=config.optimizer.mini_batch_size or config.num_sequences,
  )
  if not found:
    raise ConfigError(
      f"no mesh cuts network and batches evenly over {len(hardware.devices)} "
      "chips; make rollout.num_problems and evaluation.num_problems multiples "
      "of that"
    )
  return found
