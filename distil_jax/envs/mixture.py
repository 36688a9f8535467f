"""Has each completion judged by the environment of its problem's data set."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from distil_jax.envs.base import Environment
from distil_jax.types import Problem, Verdict


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Judges problems of several data sets.

  Attributes:
    environments: Environment of each data set, by the set's name.
  """

  environments: Mapping[str, Environment]

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Refuses, because a row alone does not tell its data set."""
    raise ValueError("a row of a mixture is read by its own environment")

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Returns the verdict of the environment that the problem comes from."""
    return self.environments[problem.source].judge(problem, completion)


def environment_of(environment: Environment, name: str) -> Environment:
  """Returns the environment of one data set of a run.

  Args:
    environment: Environment of the run.
    name: Name of the data set; empty without a mixture.
  """
  if isinstance(environment, Mixture):
    return environment.environments[name]
  return environment
