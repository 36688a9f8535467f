"""Measures whether the teacher answers better than the student.

A teacher that reads the solution or the feedback and is no better than the
student, because the form of its prompt misleads it or because it is too small
to use them, teaches nothing, whatever else is right.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.teacher_check.records import Check, Run
from distil_jax.generation import random_keys
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.setup import workers
from distil_jax.types import Status

_NAME = "teacher's accuracy"
_CURE = (
  "such a teacher teaches nothing: try another teacher.template, "
  "teacher.solution or teacher.feedback, or a larger teacher.model"
)
_FEW = 16  # answers, below which nothing is said to be wrong


@dataclasses.dataclass(frozen=True)
class Answers:
  """Holds who was right on the same held-out problems.

  Attributes:
    problem: number of each answer's problem. Length n.
    student: share of the student's samples of that problem that were right,
      those without a teacher included: which samples have one depends on how
      they ended. Length n, float.
    teacher: True where the teacher's answer to its own prompt was right.
      Length n.
    num_samples: samples of the student, those without a teacher included.
  """

  problem: np.ndarray
  student: np.ndarray
  teacher: np.ndarray
  num_samples: int


def measure(run: Run, teacher: tuple[Any, Any], num_answers: int) -> Answers:
  """Samples from student and teacher on held-out problems, and judges both.

  The student samples as in training. Wherever it would be taught, the teacher
  writes one answer to its own prompt, with the same sampling settings.

  Args:
    run: the run, with few problems in a step.
    teacher: its graph definition and parameters.
    num_answers: answers of the teacher, at least, if there are enough problems.
  """
  trainer = run.trainer
  size, held_out = trainer.config.rollout.num_problems, trainer.data.held_out
  ask = _asker(run, *teacher)
  found: list[tuple[Any, Any, Any]] = []
  num_samples = 0
  for start in range(0, len(held_out) - size + 1, size):
    problems = held_out[start : start + size]
    experience = trainer.sample_and_judge(run.step, problems)
    batch, stats = trainer.build_batch(problems, experience, run.step)
    num_samples += len(experience.completions)
    rows = np.flatnonzero(np.asarray(batch.sample_mask))
    if len(rows):
      shares = _shares(experience, trainer.config.teacher.success_threshold)
      members = rows // experience.group_size
      answers = ask(experience, stats)
      found += [
        (start + member, shares[member], right)
        for member, right in zip(members, answers[rows], strict=True)
        if not np.isnan(right)
      ]
    if len(found) >= num_answers:
      break
  columns = np.asarray(found, float).reshape(-1, 3).T
  return Answers(
    columns[0].astype(int), columns[1], columns[2] == 1, num_samples
  )


def _shares(experience: Experience, threshold: float) -> np.ndarray:
  """Returns how often the student was right, by problem. Shape `[P]`."""
  is_judged = experience.is_judged.reshape(experience.rewards.shape)
  is_right = is_judged & (experience.rewards >= threshold)
  # A problem without any judged sample has no teacher either.
  return is_right.sum(axis=1) / np.maximum(is_judged.sum(axis=1), 1)


def _asker(run: Run, graphdef: Any, params: Any) -> Any:
  """Returns a function that has the teacher answer every row of a batch."""
  trainer, config = run.trainer, run.trainer.config
  policy, other = trainer.policy, trainer.teacher_model
  if other is not None:
    policy = dataclasses.replace(
      policy, graphdef=graphdef, config=other.config, tokenizer=other.tokenizer
    )
  judges = workers.build_judge_pool(config, trainer.environment)
  worker = workers.build_teacher_worker(config, policy, judges, trainer.mesh)
  key = jax.random.wrap_key_data(run.state.key)

  def ask(experience: Any, stats: Any) -> np.ndarray:
    """Returns 1, 0, or NaN where the judge crashed. Shape `[B]`."""
    problems = [
      problem
      for problem in experience.problems
      for _ in range(experience.group_size)
    ]
    names = random_keys.identities([problem.identity for problem in problems])
    sampled, _ = worker.sample(
      params, stats.teacher_prompt_ids, stats.teacher_prompt_mask, names, key
    )
    texts = policy.texts(sampled.completion_ids, sampled.completion_mask)
    threshold = config.teacher.success_threshold
    return np.asarray(
      [
        np.nan if v.status == Status.CRASHED else float(v.reward >= threshold)
        for v in judges(problems, texts)
      ]
    )

  return ask


def not_measured(why: str) -> Check:
  """Returns the check of teachers that are not asked."""
  return Check(_NAME, None, f"not measured, because {why}")


def check(answers: Answers) -> Check:
  """Returns whether the teacher is better than the student."""
  count = len(answers.problem)
  if not count:
    return Check(
      _NAME, None, f"none of {answers.num_samples} held-out samples has one"
    )
  difference, error = _difference(answers)
  numbers = (
    f"{answers.teacher.mean():.1%} of {count} held-out answers, the student "
    f"{answers.student.mean():.1%} on the same problems; "
    f"{difference:+.1%} ± {error:.1%}"
  )
  if not answers.teacher.any() and not answers.student.any():
    return Check(_NAME, None, f"{numbers}; neither is ever right")
  if difference > 2 * error:
    return Check(_NAME, True, numbers)
  is_clear = count >= _FEW and difference <= 0
  return Check(_NAME, False if is_clear else None, numbers, _CURE)


def _difference(answers: Answers) -> tuple[float, float]:
  """Returns the mean difference and its standard error.

  Samples of one problem depend on each other, so problems are what is counted.
  """
  apart = answers.teacher.astype(float) - answers.student
  mean = apart.mean()
  sums = np.bincount(answers.problem, apart - mean)
  return float(mean), float(np.sqrt((sums**2).sum()) / len(apart))
