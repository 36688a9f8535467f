"""Runs a trial of a training config: a whole run, read back as a record."""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

from distil_jax.analysis.comparison.trial_record import lost_points
from distil_jax.config.schema import Config
from distil_jax.training.logging import run_folder

# Metrics of a step that the learning curve takes, and their names there.
_METRICS = {
  "entropy": "entropy",
  "completion_length": "length",
  "teacher/accuracy": "teacher",
}

# Trains as a config says and returns the run's summary; None if it diverged.
Train = Callable[[Config], Mapping[str, Any] | None]


def run_config_trial(config: Config, train: Train) -> dict[str, Any]:
  """Trains once, and deletes the run's folder.

  A run that diverges has lost what it learned, even if its last good parameters
  could still do something.

  Args:
    config: The training config of the trial.
    train: Runs it.

  Returns:
    The trial's record, without its name.
  """
  summary = train(config)
  folder = config.run_directory
  metrics = {
    line["step"]: line
    for line in run_folder.read_lines(folder / run_folder.METRICS)
  }
  accuracy = f"avg@{config.evaluation.num_samples}"
  evaluations = {
    line["step"]: line
    for line in run_folder.read_lines(folder / run_folder.EVALUATIONS)
  }
  before = _from_evaluation(evaluations.pop(0), accuracy)
  curve = [
    {"step": step, "avg": line[accuracy]} | _from_step(metrics[step])
    for step, line in evaluations.items()
  ]
  # The first step includes compilation, so it counts only if it is alone.
  times = [line["time/step_seconds"] for line in metrics.values()]
  steps = sorted(times[1:] or times or [0.0])
  if summary is None:
    after = dict.fromkeys(before, 0.0)
    curve += lost_points(
      curve, every=config.evaluation.every, num_steps=config.train.num_steps
    )
    seconds = sum(times)
  else:
    after = _from_evaluation(summary["after"], accuracy)
    seconds = summary["seconds"]
  # The record has all that the report reads, and the checkpoints of hundreds of
  # trials would fill the disk.
  shutil.rmtree(folder)
  return {
    "num_sequences": config.num_sequences,
    "step_seconds": steps[len(steps) // 2],
    "before": before,
    "after": after,
    "curve": curve,
    "diverged_at": max(metrics, default=0) if summary is None else None,
    "seconds": seconds,
  }


def _from_step(line: Mapping[str, Any]) -> dict[str, float]:
  return {name: line[key] for key, name in _METRICS.items() if key in line}


def _from_evaluation(
  values: Mapping[str, Any], accuracy: str
) -> dict[str, float]:
  pass_at_k = {k: v for k, v in values.items() if k.startswith("pass@")}
  return {"avg": values[accuracy], **pass_at_k}
