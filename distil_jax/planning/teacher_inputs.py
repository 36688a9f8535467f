"""Builds teachers that are other models, without their weights."""

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.models import decoder
from distil_jax.objectives.teachers import OtherNetwork, TeacherNetwork
from distil_jax.planning import abstract_inputs
from distil_jax.training.setup import teacher_models
from distil_jax.training.train_step import TeacherParams


def teacher_inputs(
  config: Config, vocab_size: int, mesh: jax.sharding.Mesh
) -> tuple[TeacherNetwork, TeacherParams]:
  """Returns the teacher's network, and its parameters with shardings.

  Args:
    config: The run.
    vocab_size: V of the student.
    mesh: The mesh of the training step.

  Returns:
    None for both if the student's own network is the teacher, or nobody is;
    tuples if there are several teachers.

  Raises:
    ConfigError: There is no such model, or the mesh does not cut it evenly.
    HubError: The model is one of the Hub, and its `config.json` is not here.
  """
  networks = teacher_models.teacher_networks(
    config, vocab_size, only_config=True
  )
  found = {}
  for key, network in networks.items():
    graphdef, shapes = decoder.make(network)
    try:
      params = abstract_inputs.params(shapes, mesh)
    except ValueError as error:
      raise ConfigError(f"{key}: {error}") from None
    found[key] = (OtherNetwork(graphdef), params)
  nobody = (None, None)
  names = config.teacher.models
  if names and config.objective.needs_teacher:
    several = [found.get(f"teacher.models.{name}", nobody) for name in names]
    return tuple(one[0] for one in several), tuple(one[1] for one in several)
  return found.get("teacher.model", nobody)
