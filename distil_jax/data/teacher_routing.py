"""Gives each problem the name of its teacher, if there are several."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from distil_jax.config.optimizers import OptimizerConfig
from distil_jax.config.rollout import RolloutConfig
from distil_jax.config.teacher import TeacherConfig
from distil_jax.data.data_files import DataError
from distil_jax.types import Problem


@dataclasses.dataclass(frozen=True)
class TeacherRouting:
  """Says which of several teachers a problem has.

  Attributes:
    names: of the teachers, in the order of their numbers.
    key: the field of a row that names the teacher.
    default: the teacher of problems that name none; None means that each must.
    of_all: the teacher of all problems of a data set, whatever their rows name;
      None means that rows name theirs.
  """

  names: tuple[str, ...]
  key: str
  default: str | None
  of_all: str | None = None

  def assign(self, problem: Problem, value: Any, place: str) -> Problem:
    """Returns the problem with its teacher.

    Args:
      problem: an environment may have named its teacher already.
      value: what the row names; None if it names nothing.
      place: names the row, for messages.

    Raises:
      DataError: there is no such teacher, or none is named.
    """
    # The first that names one; a row may hold any value, also an empty one.
    named = (problem.teacher, self.of_all, value, self.default)
    name = next((x for x in named if x is not None), None)
    known = ", ".join(self.names)
    if name is None:
      raise DataError(
        f"{place} names no teacher: field {self.key!r} is missing or null; add "
        f"it (teacher.models has {known}), or set teacher.default_model"
      )
    if name not in self.names:
      near = difflib.get_close_matches(str(name), self.names, n=1)
      guess = f"did you mean {near[0]!r}? " if near else ""
      raise DataError(
        f"{place} names the teacher {name!r} in {self.key!r}, which is none of "
        f"teacher.models; {guess}they are {known}"
      )
    return dataclasses.replace(problem, teacher=name)

  def number(self, problem: Problem) -> int:
    """Returns the number of a problem's teacher."""
    assert problem.teacher is not None, "assign gives each problem a teacher"
    return self.names.index(problem.teacher)

  def sort(self, problems: Sequence[Problem], at_once: int) -> list[Problem]:
    """Returns the problems of a step, those of one teacher side by side.

    A micro-batch is read by the teachers of its sequences alone, so that most
    then have one. Only problems that are learned from in one update change
    places: an update keeps its mixture.

    Args:
      problems: of a step.
      at_once: problems of one update.
    """
    found = []
    for start in range(0, len(problems), at_once):
      found += sorted(problems[start : start + at_once], key=self.number)
    return found


def build_routing(
  section: TeacherConfig, of_all: str | None = None
) -> TeacherRouting | None:
  """Returns who teaches what; None if there are not several teachers.

  Args:
    section: the run's section.
    of_all: see `TeacherRouting`.
  """
  if not section.models:
    return None
  return TeacherRouting(
    names=tuple(section.models),
    key=section.routing_key,
    default=section.default_model,
    of_all=of_all,
  )


def build_sort(
  section: TeacherConfig,
  rollout: RolloutConfig,
  optimizer: OptimizerConfig,
  num_processes: int,
) -> Callable[[Sequence[Problem]], list[Problem]] | None:
  """Returns what sorts a process's part of a step, see `TeacherRouting.sort`.

  Args:
    section, rollout, optimizer: sections of the run.
    num_processes: number of processes that share a step.

  Returns:
    None if there are not several teachers.
  """
  routing = build_routing(section)
  if routing is None:
    return None
  at_once = rollout.num_problems // num_processes
  if optimizer.mini_batch_size:
    # Updates may end within a process's part, of which each is a whole number
    # of these.
    update = optimizer.mini_batch_size // rollout.group_size
    at_once = math.gcd(update, at_once)
  return functools.partial(routing.sort, at_once=at_once)
