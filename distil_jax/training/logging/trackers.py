"""Sends metrics and samples to Weights & Biases and trackio."""

import importlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.config.training import WandbConfig
from distil_jax.training.logging.rollout_pages import Sample


class Trackers:
  """Tells each service that a config names about a run.

  Both services have the same calls: `init`, `log`, `Table`, `finish`. A run
  that goes on after an interrupt goes on there too, under the same id.
  """

  def __init__(self, config: Config, *, is_writer: bool):
    """Finds the packages of the services; tells them nothing yet.

    Args:
      config: the run's settings.
      is_writer: true in the one process that tells them.

    Raises:
      ConfigError: a package is not installed.
    """
    self._config = config
    found = {"wandb": config.logging.wandb, "trackio": config.logging.trackio}
    self._services = {
      name: (_package(name), section)
      for name, section in found.items()
      if section is not None and is_writer
    }

  def start(self) -> None:
    """Opens the run at each service."""
    config = self._config
    for package, section in self._services.values():
      settings: dict[str, Any] = {
        "project": section.project,
        "name": section.name or config.name,
        "config": config.model_dump(mode="json"),
        "resume": "allow",
      }
      if isinstance(section, WandbConfig):
        settings |= {
          "mode": section.mode,
          "dir": str(config.run_directory),
          # The same folder is the same run, also after an interrupt.
          "id": _identity(config),
        }
      package.init(**settings)

  def log(self, step: int, values: Mapping[str, Any], prefix: str = "") -> None:
    """Sends numbers of a step; those that are None are left out.

    Args:
      step: the training step, counted from 1; 0 is the base model.
      values: numbers by name.
      prefix: put in front of each name.
    """
    named = {f"{prefix}{k}": x for k, x in values.items() if x is not None}
    for package, _ in self._services.values():
      package.log(named, step=step)

  def samples(self, step: int, samples: Sequence[Sample]) -> None:
    """Sends a table of samples."""
    columns = ["problem", "completion", "reward", "status", "feedback"]
    rows = [
      [
        sample.problem.messages[-1]["content"],
        sample.completion,
        float(sample.verdict.reward),
        str(sample.verdict.status),
        sample.verdict.feedback,
      ]
      for sample in samples
    ]
    for package, _ in self._services.values():
      table = package.Table(columns=columns, data=rows)
      package.log({"rollouts": table}, step=step)

  def close(self) -> None:
    """Ends the run at each service; a second call does nothing."""
    for package, _ in self._services.values():
      package.finish()
    self._services = {}


def _package(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ConfigError(
      f"logging.{name} needs the package {name}: pip install {name}, or set "
      f"logging.{name}=null"
    ) from error


def _identity(config: Config) -> str:
  """Returns the id of a run, which its folder keeps.

  A folder that begins anew, without a checkpoint, is another run.
  """
  path = config.run_directory / "wandb_id.txt"
  has_checkpoint = any((config.run_directory / "checkpoints").glob("[0-9]*"))
  if has_checkpoint and path.is_file():
    return path.read_text(encoding="utf-8").strip()
  found = secrets.token_hex(8)
  path.write_text(f"{found}\n", encoding="utf-8")
  return found
