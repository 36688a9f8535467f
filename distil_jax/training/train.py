"""Trains from Python: a config, and what no file can hold."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.data import DataConfig
from distil_jax.config.environments import OwnEnvironmentConfig
from distil_jax.config.schema import Config
from distil_jax.distributed import collectives
from distil_jax.envs.base import Environment
from distil_jax.generation.policy import Policy
from distil_jax.training.step_result import OnStep
from distil_jax.training.trainer import Trainer

Row = Mapping[str, Any]
# What a config can hold.
_PLAIN = (bool, int, float, str, list, dict, type(None))


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """Holds what a run leaves behind.

  Attributes:
    policy: after the last step.
    summary: as in `summary.json`: `before` and `after` with the held-out
      accuracies, `steps`, `rollouts`, `seconds`; empty in all processes but
      the one that writes.
    directory: the run's folder, with metrics, samples and checkpoints.
  """

  policy: Policy
  summary: Mapping[str, Any]
  directory: pathlib.Path


def train(
  config: Config,
  *,
  environment: Environment | None = None,
  train_rows: Sequence[Row] | None = None,
  evaluation_rows: Sequence[Row] | None = None,
  on_step: OnStep | None = None,
) -> TrainedRun:
  """Trains a run, or goes on from its last checkpoint.

  Args:
    config: the run's settings; `run_directory` is `runs/NAME` by default.
    environment: an object with `problem` and `judge`, in place of the one that
      the config names.
    train_rows: the rows that `environment.problem` reads, in place of files;
      given together with `evaluation_rows`.
    evaluation_rows: likewise, held-out.
    on_step: called after each step. If it raises, the run saves the finished
      steps and ends; KeyboardInterrupt is a way to stop early.

  Raises:
    ConfigError: a setting does not suit the data, the model or the devices, or
      the config names an environment or data besides those given here.
    DataError: a data file or a row cannot be read.
    TrainingError: loss or gradient are not finite.
  """
  if environment is not None:
    config = _with_environment(config, environment)
  if train_rows is not None or evaluation_rows is not None:
    config = _with_rows(config, train_rows, evaluation_rows)
  trainer = Trainer(config, environment)
  trainer.on_step = on_step
  summary = trainer.train()
  params = trainer.state.student_params
  return TrainedRun(
    dataclasses.replace(trainer.policy, params=params),
    summary,
    config.run_directory,
  )


def _with_environment(config: Config, environment: Environment) -> Config:
  """Returns a config that names the environment, for the run's record."""
  if config.environment != Config().environment or config.mixture:
    raise ConfigError(
      "the config names an environment and another is given; give one of them"
    )
  made = type(environment)
  settings = {}
  if dataclasses.is_dataclass(environment):
    fields = [field.name for field in dataclasses.fields(environment)]
    settings = {name: getattr(environment, name) for name in fields}
  return _replaced(
    config,
    environment=OwnEnvironmentConfig(
      function=f"{made.__module__}:{made.__name__}",
      settings={k: x for k, x in settings.items() if isinstance(x, _PLAIN)},
    ),
  )


def _with_rows(
  config: Config, train: Sequence[Row] | None, evaluation: Sequence[Row] | None
) -> Config:
  """Returns a config that reads the rows from files in the run's folder.

  So the commands on the run find them too.
  """
  if not train or not evaluation:
    raise ConfigError(
      "give train_rows and evaluation_rows, and at least one row each: a run "
      "is evaluated on rows that it does not train on"
    )
  if DataConfig() != config.data or config.mixture:
    raise ConfigError(
      "the config names data and rows are given besides; give one of them"
    )
  folder = config.run_directory / "data"
  found = {}
  for name, rows in (("train", train), ("evaluation", evaluation)):
    path = folder / f"{name}.jsonl"
    found[name] = str(path)
    if jax.process_index() == 0:
      folder.mkdir(parents=True, exist_ok=True)
      lines = [json.dumps(dict(row)) + "\n" for row in rows]
      path.write_text("".join(lines), encoding="utf-8")
  # Behind this line every process finds the files.
  collectives.wait_for_all("the rows are written")
  return _replaced(config, data=DataConfig(**found))


def _replaced(config: Config, **sections: Any) -> Config:
  """Returns a config with other sections, checked again as a whole."""
  return Config.model_validate({**dict(config), **sections})
