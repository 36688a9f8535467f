"""Keeps what an evaluation samples, for people to read."""

import pathlib
from typing import Any

import jax

from distil_jax.training.logging import run_folder, step_metrics
from distil_jax.training.logging.rollout_pages import Sample, to_lines
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import BatchStats

FOLDER = "evaluation_samples"


class SampleRecorder:
  """Calls a worker, and keeps the samples of each problem.

  Attributes:
    samples: of this process, in the order in which they came.
  """

  def __init__(self, worker: Any):
    """Takes the worker, see `evaluation.evaluate`."""
    self.samples: list[Sample] = []
    self._worker = worker
    self._seen: set[int] = set()

  @property
  def group_size(self) -> int:
    """The number of samples of each problem."""
    return self._worker.group_size

  def __call__(self, *arguments: Any, **settings: Any) -> Experience:
    """Returns what the worker returns."""
    experience = self._worker(*arguments, **settings)
    count = len(experience.completions)
    found = step_metrics.samples(
      experience, BatchStats(teacher_prompts=[None] * count), count
    )
    fresh = []
    for i, problem in enumerate(experience.problems):
      # The last batch is filled up with problems that were there before.
      if problem.identity not in self._seen:
        self._seen.add(problem.identity)
        start = i * self.group_size
        fresh += found[start : start + self.group_size]
    self.samples += fresh
    return experience


def write(
  directory: pathlib.Path, step: int, samples: list[Sample]
) -> pathlib.Path:
  """Writes a line for each sample, the worst first; returns the file.

  Of several processes each writes its own.

  Args:
    directory: the run's folder.
    step: of the policy that was asked.
    samples: of this process.
  """
  number = jax.process_index()
  part = f".{number}" if number else ""
  path = directory / FOLDER / f"step_{step:06d}{part}.jsonl"
  path.parent.mkdir(parents=True, exist_ok=True)
  run_folder.write_atomically(path, to_lines(samples))
  return path
