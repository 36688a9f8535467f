"""Builds a teacher that is another model, without its weights."""

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.models import decoder
from distil_jax.objectives.teachers import OtherNetwork
from distil_jax.planning import abstract_inputs
from distil_jax.training.setup import teacher_models


def teacher_inputs(
  config: Config, vocab_size: int, mesh: jax.sharding.Mesh
) -> tuple[OtherNetwork | None, decoder.Params | None]:
  """Returns the teacher's network, and its parameters with shardings.

  Args:
    config: The run.
    vocab_size: V of the student.
    mesh: The mesh of the training step.

  Returns:
    None for both if the student's own network is the teacher, or nobody is.

  Raises:
    ConfigError: There is no such model, or the mesh does not cut it evenly.
    HubError: The model is one of the Hub, and its `config.json` is not here.
  """
  network = teacher_models.teacher_network(config, vocab_size, only_config=True)
  if network is None:
    return None, None
  graphdef, shapes = decoder.make(network)
  try:
    params = abstract_inputs.params(shapes, mesh)
  except ValueError as error:
    raise ConfigError(f"teacher.model: {error}") from None
  # Without tokenizers it is not known how many entries are tokens. That the
  # rest is left out takes no memory.
  return OtherNetwork(graphdef, vocab_size), params
