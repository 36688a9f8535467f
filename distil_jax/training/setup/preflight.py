"""Checks a run whose parts are built, before it writes anything."""

from typing import Any

from distil_jax.config.schema import Config
from distil_jax.data import problems as data_problems
from distil_jax.data import training_stream
from distil_jax.training import run_checks
from distil_jax.training.setup import teacher_servers


def check_before_writing(
  config: Config, data: data_problems.Data, ask: Any
) -> None:
  """Refuses a run that would fail after its first files are written.

  Args:
    config: the run's settings.
    data: the run's data.
    ask: asks a teacher behind a server; None without one.

  Raises:
    ConfigError, DataError, ProcessError: say what to change.
  """
  run_checks.check_directory(
    "train.run_directory", config.run_directory, "checkpoints"
  )
  training_stream.build_stream(config, data)  # too few problems raise
  teacher_servers.check_server(config, ask)
  run_checks.check_shared_directory(config)
