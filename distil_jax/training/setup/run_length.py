"""Finds the last step of a run, by its settings and its data."""

from collections.abc import Callable

from distil_jax.config import checks
from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import problems as data_problems
from distil_jax.data import training_stream


def find_num_steps(config: Config, data: data_problems.Data) -> int:
  """Returns the steps of a run: `train.num_steps`, or fewer if its data ends.

  Groups that are refilled draw further problems, so that the data of such a run
  may end before.

  Args:
    config: the run's settings.
    data: the run's data.

  Raises:
    ConfigError: a wsd schedule does not fit into these steps.
  """
  # Too little data for a step is refused when the run begins.
  of_data = max(training_stream.num_batches(config, data), 1)
  num_steps = min(config.train.num_steps, of_data)
  if num_steps < config.train.num_steps:
    shorter = config.train.model_copy(update={"num_steps": num_steps})
    try:
      checks.check_schedule(config.optimizer, shorter)
    except ValueError as error:
      raise ConfigError(f"num_epochs ends the run earlier: {error}") from error
  return num_steps


def say(
  config: Config, data: data_problems.Data, say_fn: Callable[[str], None]
) -> None:
  """Says which of the two ends the run, unless its data has no end."""
  if text := describe(config, data):
    say_fn(text)


def describe(config: Config, data: data_problems.Data) -> str | None:
  """Returns which of the two ends the run; None if its data has no end."""
  epochs = [x.data.num_epochs for x in config.data_sets.values()]
  if not any(epochs):
    return None
  wanted, of_data = (
    config.train.num_steps,
    training_stream.num_batches(config, data),
  )
  if of_data >= wanted:
    return (
      f"train.num_steps={wanted} ends the run; the epochs of num_epochs would "
      f"last until step {of_data}"
    )
  falls = config.optimizer.falls_until_last_step
  return (
    f"num_epochs ends the run after step {of_data}, before train.num_steps="
    f"{wanted}" + (": the learning rate falls until then" if falls else "")
  )
