"""Config section of a mixture of data sets and environments."""

import re
from collections.abc import Mapping
from typing import Any

from distil_jax.config.base import Positive, Section, Weight
from distil_jax.config.data import DataConfig
from distil_jax.config.environments import (
  EnvironmentConfig,
  name_own_environment,
)
from distil_jax.config.training import EvaluationSetConfig

# Evaluations have metrics of these names, followed by a slash.
_RESERVED = ("tools", "verdict")


class DataSetConfig(Section):
  """One of several data sets of a run, under a name of your own.

  Each has its environment. `data` and `environment` are then left out.
  """

  weight: Weight = 1.0
  """Its share of the problems of a step, beside the weights of the others; 0:
  it is only evaluated."""
  loss_weight: Weight = 1.0
  """Factor of the loss of its samples. The average's denominator stays, so that
  the other sets' part of the gradient does not depend on it."""
  data: DataConfig = DataConfig()
  """Its problems; see `data`."""
  environment: EnvironmentConfig
  """Judges its completions; see `environment`."""
  teacher: str | None = None
  """With `teacher.models`: the teacher of its problems, whatever their rows
  name; null: as `teacher.routing_key` says."""
  max_prompt_length: Positive | None = None
  """Tokens of its prompts, at most; null: `rollout.max_prompt_length`, which it
  cannot exceed."""
  max_completion_length: Positive | None = None
  """Tokens of its completions in training, at most; null:
  `rollout.max_completion_length`, which it cannot exceed."""
  evaluation: EvaluationSetConfig | None = EvaluationSetConfig()
  """How it is evaluated; a setting that is not given is that of `evaluation`.
  null: not at all."""

  @property
  def is_trained_on(self) -> bool:
    """Returns True if training draws from it."""
    return self.weight > 0

  def length_limit(
    self,
    kind: str,
    rollout: Section,
    where: str,
  ) -> tuple[str, int]:
    """Returns path and value of the limit that holds: its own, or the run's.

    Args:
      kind: `prompt` or `completion`.
      rollout: the run's section.
      where: path of this section, with a point at its end.
    """
    name = f"max_{kind}_length"
    own = getattr(self, name)
    if own is not None:
      return f"{where}{name}", own
    return f"rollout.{name}", getattr(rollout, name)


# The name is a part of paths of settings and of metrics.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
Mixture = dict[str, DataSetConfig]


def fill_in(mixture: Any, evaluation: Any) -> Any:
  """Returns a mixture as the schema has it.

  Each set's `evaluation` takes what it does not name from the run's.

  Args:
    mixture: sections by name, as in a file.
    evaluation: the run's section of this name.

  Raises:
    ValueError: a name is no word.
  """
  if not isinstance(mixture, Mapping):
    return mixture
  shared = {}
  if isinstance(evaluation, Mapping):
    names = EvaluationSetConfig.model_fields
    shared = {k: v for k, v in evaluation.items() if k in names}
  filled = {}
  # Sorted, because the order decides which problems a step has.
  for name, section in sorted(mixture.items(), key=lambda item: str(item[0])):
    if not isinstance(name, str) or not _NAME.fullmatch(name):
      raise ValueError(
        f"mixture: a data set is named {name!r}, but names are parts of "
        "settings and metrics; use letters, digits, - and _, in quotes if it "
        "is a number"
      )
    if isinstance(section, Mapping):
      section = dict(section)
      own = section.get("evaluation", {})
      if isinstance(own, Mapping):
        section["evaluation"] = {**shared, **own}
      if isinstance(inner := section.get("environment"), dict):
        section["environment"] = name_own_environment(inner)
    filled[name] = section
  return filled


def check_names(mixture: Mapping[str, DataSetConfig]) -> None:
  """Checks that no name is that of another metric."""
  for name in mixture:
    if name in _RESERVED:
      raise ValueError(
        f"mixture.{name}: evaluations have other metrics of that name; choose "
        "another name"
      )


def check_shares(mixture: Mapping[str, DataSetConfig]) -> None:
  """Checks that something is trained on and something evaluated."""
  if not mixture:
    return
  if not any(x.is_trained_on for x in mixture.values()):
    raise ValueError(
      "mixture: every weight is 0, so that there is nothing to train on; give "
      "one of them a weight above 0"
    )
  if not any(x.is_trained_on and x.loss_weight for x in mixture.values()):
    raise ValueError(
      "mixture: every loss_weight of what is trained on is 0, so that nothing "
      "would be learned; give one of them a loss_weight above 0"
    )
  if all(x.evaluation is None for x in mixture.values()):
    raise ValueError(
      "mixture: every evaluation is null, so that there is nothing to evaluate "
      "on; leave it out of one of them"
    )
