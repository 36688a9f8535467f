"""Replaces groups without signal by groups of further problems."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.distributed import collectives
from distil_jax.generation.usage import Report
from distil_jax.training import teaching
from distil_jax.training.rollouts import experience as experiences
from distil_jax.training.rollouts.experience import Experience

# Draws further problems: their number in each process -> this process's
# problems; None if there are no more.
DrawFn = Callable[[Sequence[int]], list[Any] | None]
# `(problems, round, num_real) -> experience`; the problems from `num_real` on
# stand in, so that all rounds have one shape, and end with their first token.
SampleFn = Callable[[Sequence[Any], int, int], Experience]
# Folded into a step's key, so that a problem that is drawn twice in a step gets
# other samples the second time.
_ROUND = 2**31 + 16


@dataclasses.dataclass(frozen=True)
class SignalRule:
  """Says which groups an objective can learn from.

  Attributes:
    learns_from_rewards: Differences of rewards in a group are a signal.
    weighs_failures: A teacher's signal counts only as far as the other members
      of the group fail.
    teacher: Says what stands in the teacher's prompt; None without a teacher.
  """

  learns_from_rewards: bool
  weighs_failures: bool
  teacher: teaching.TeacherSettings | None

  def __call__(self, experience: Experience) -> np.ndarray:
    """Returns True for the groups with a signal. Shape `[P]`."""
    rewards = experience.rewards
    is_judged = experience.is_judged.reshape(rewards.shape)
    found = np.zeros(len(rewards), bool)
    if self.learns_from_rewards:
      # A sample that was not judged gets the mean of the others, so that it
      # makes no difference.
      largest = np.where(is_judged, rewards, -np.inf).max(axis=1)
      smallest = np.where(is_judged, rewards, np.inf).min(axis=1)
      found |= largest > smallest
    if self.teacher is not None:
      found |= (is_judged & self._is_taught(experience)).any(axis=1)
    return found

  def _is_taught(self, experience: Experience) -> np.ndarray:
    """Returns True where a teacher has something to say. Shape `[P, G]`."""
    assert self.teacher is not None
    shape = experience.rewards.shape
    taught = [
      teaching.has_content(experience, i, self.teacher)
      for i in range(len(experience.completions))
    ]
    taught = np.asarray(taught).reshape(shape)
    if self.weighs_failures:
      fails = experience.rewards < 1
      taught &= fails.sum(axis=1, keepdims=True) > fails
    return taught


@dataclasses.dataclass(frozen=True)
class Refill:
  """Samples further problems until all groups of a step have a signal.

  All processes take part in each round, even one that has nothing to replace,
  and the number of rows is always the same.

  Attributes:
    has_signal_fn: Returns True for the groups with a signal. Shape `[P]`.
    max_rounds: Rounds at most; what has no signal then stays.
  """

  has_signal_fn: Callable[[Experience], np.ndarray]
  max_rounds: int

  def __call__(
    self, experience: Experience, sample: SampleFn, draw: DrawFn
  ) -> Experience:
    """Returns the experience with groups replaced, and counts of them.

    `refills` has the number of further problems that were sampled (`refilled`),
    of rounds (`refill_rounds`), and of the groups that are without signal at
    the end (`without_signal`), of all processes.

    Args:
      experience: Of this process's problems.
      sample: Samples and judges.
      draw: Draws further problems.
    """
    num_groups = len(experience.problems)
    num_refilled = number = 0
    while True:
      missing = np.flatnonzero(~self.has_signal_fn(experience))
      counts = collectives.gathered(len(missing))
      if number == self.max_rounds or not any(counts):
        break
      problems = draw(counts)
      if problems is None:
        break
      number += 1
      num_refilled += sum(counts)
      num_real = len(problems)
      # A problem that is there already stands in.
      filled = [
        *problems,
        *[experience.problems[0]] * (num_groups - num_real),
      ]
      num_rows = len(counts) * num_groups - sum(counts)
      experience = experiences.replace_groups(
        experience,
        missing.tolist(),
        sample(filled, number, num_real),
        num_stand_ins=num_rows * experience.group_size,
      )
    return dataclasses.replace(
      experience,
      refills={
        "groups/refilled": num_refilled,
        "groups/refill_rounds": number,
        "groups/without_signal": sum(counts),
      },
    )


def sample_step(
  worker: Callable[..., Experience],
  params: Any,
  problems: Sequence[Any],
  key: jax.Array,
  *,
  make_report: Callable[[], Report],
  limit_fn: Callable[..., np.ndarray | None],
  refill: Refill | None,
  draw: DrawFn | None,
) -> Experience:
  """Samples and judges the problems of a step, in one round or several.

  Args:
    worker: Samples and judges, see `rollout_worker.RolloutWorker`.
    params: Parameters of the student.
    problems: This process's problems.
    key: Key of the step.
    make_report: Makes what each round reports its progress to.
    limit_fn: `(problems, num_real) -> max_lengths` of the worker.
    refill: Replaces groups without signal; None keeps them.
    draw: Draws the problems of further rounds.
  """

  def sample(
    problems: Sequence[Any], number: int = 0, num_real: int | None = None
  ) -> Experience:
    return worker(
      params,
      problems,
      jax.random.fold_in(key, _ROUND + number) if number else key,
      report=make_report(),
      max_lengths=limit_fn(problems, num_real),
    )

  experience = sample(problems)
  if refill is None or draw is None:
    return experience
  return refill(experience, sample, draw)
