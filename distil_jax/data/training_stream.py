"""Deals out the training problems of a run, as its config orders them."""

from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import problem_stream, problems, teacher_routing


def build_stream(
  config: Config, data: problems.Data, position: int = 0
) -> problem_stream.ProblemStream[Any]:
  """Returns this process's training problems, from a position on.

  With several teachers the problems of one are side by side.

  Args:
    config: the run's settings.
    data: the run's data.
    position: number of problems that all processes have drawn before.

  Raises:
    ConfigError: the batch is not a multiple of the number of processes.
    DataError: the data does not fill one batch.
  """
  count = jax.process_count()
  if config.rollout.num_problems % count:
    raise ConfigError(
      f"rollout.num_problems={config.rollout.num_problems} is not a multiple "
      f"of the {count} processes; choose a multiple"
    )
  arrange_fn = None
  if config.objective.needs_teacher:
    arrange_fn = teacher_routing.build_sort(
      config.teacher, config.rollout, config.optimizer, count
    )
  return problem_stream.ProblemStream(
    _sequence(config, data),
    batch_size=config.rollout.num_problems // count,
    position=position,
    process_index=jax.process_index(),
    process_count=count,
    arrange_fn=arrange_fn,
  )


def num_batches(config: Config, data: problems.Data) -> int:
  """Returns how many global batches the training problems of a run fill."""
  return len(_sequence(config, data)) // config.rollout.num_problems


def _sequence(config: Config, data: problems.Data) -> Any:
  """Returns all epochs of the training problems, mixed by their shares."""
  sections = [config.data_sets[name] for name in data.train]
  sequences = [
    problem_stream.shuffled(
      items, seed=section.data.seed, num_epochs=section.data.num_epochs
    )
    for items, section in zip(data.train.values(), sections, strict=True)
  ]
  return problem_stream.mixed(
    sequences, [section.weight for section in sections]
  )
