"""Reads run folders; needs no device and changes nothing."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from distil_jax.training import lock_owner, retention
from distil_jax.training.logging import rollout_records, run_folder
from distil_jax.training.logging.tables import ReportError

CONFIG = "config.yaml"
SAMPLES = "evaluation_samples"  # as `sample_recorder` calls it


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """Holds what a run folder says, but for the rollouts.

  Attributes:
    directory: the folder.
    settings: values by their dotted paths.
    metrics: lines of `metrics.jsonl`.
    evaluations: lines of `evaluations.jsonl`.
    summary: None until the run has finished.
    environment: devices, versions and source revision.
    is_running: whether a process holds the folder's lock.
    accuracies: held-out accuracy by step.
  """

  directory: pathlib.Path
  settings: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  evaluations: Sequence[Mapping[str, Any]]
  summary: Mapping[str, Any] | None
  environment: Mapping[str, Any]
  is_running: bool
  accuracies: Mapping[int, float]

  @property
  def name(self) -> str:
    """The folder's name."""
    return self.directory.resolve().name

  @property
  def step(self) -> int:
    """The last step that has a line in a report."""
    lines = (*self.metrics[-1:], *self.evaluations[-1:])
    return max((line["step"] for line in lines), default=0)

  @property
  def num_steps(self) -> int:
    """Steps that the run is meant to have."""
    return int(self.settings.get("train.num_steps") or 0)

  @property
  def status(self) -> str:
    """One of running, finished and stopped."""
    if self.is_running:
      return "running"
    return "stopped" if self.summary is None else "finished"

  @property
  def best(self) -> tuple[int, float] | None:
    """Step and value of the highest held-out accuracy; of equals the last."""
    ranked = retention.by_accuracy(self.accuracies, self.accuracies)
    return (ranked[0], self.accuracies[ranked[0]]) if ranked else None

  @property
  def last(self) -> tuple[int, float] | None:
    """Step and value of the last held-out accuracy."""
    step = max(self.accuracies, default=None)
    return None if step is None else (step, self.accuracies[step])


def read_run(directory: pathlib.Path) -> RunRecord:
  """Reads a run's folder.

  Raises:
    ReportError: it is no run folder, or a file in it is damaged.
  """
  if not is_run(directory):
    raise ReportError(
      f"{directory} is no run folder: it has no {CONFIG}; distil-jax runs "
      "lists those there are"
    )
  try:
    text = (directory / CONFIG).read_text(encoding="utf-8")
    settings = flat(yaml.safe_load(text))
  except (yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
    raise ReportError(
      f"{directory / CONFIG} cannot be read: {error}"
    ) from error
  return RunRecord(
    directory=directory,
    settings=settings,
    metrics=run_folder.read_lines(directory / run_folder.METRICS),
    evaluations=run_folder.read_lines(directory / run_folder.EVALUATIONS),
    summary=_read_json(directory / run_folder.SUMMARY),
    environment=_read_json(directory / "environment.json") or {},
    is_running=lock_owner.find(directory) is not None,
    accuracies=retention.read_accuracies(directory),
  )


def is_run(directory: pathlib.Path) -> bool:
  """Returns True if a folder looks like that of a run."""
  return (directory / CONFIG).is_file()


def find_runs(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the run folders in a folder and one or two levels below it."""
  if is_run(folder):
    return [folder]
  found = (folder.glob(pattern) for pattern in ("*", "*/*"))
  return sorted(path for paths in found for path in paths if is_run(path))


def read_rollouts(run: RunRecord) -> list[dict[str, Any]]:
  """Returns the samples of training, and those of `evaluate`, as recorded.

  Each has `step` and `kind`, training or held-out.

  Raises:
    ReportError: a line is damaged.
  """
  found = []
  for folder, kind in (("rollouts", "training"), (SAMPLES, "held-out")):
    for record in rollout_records.read_folder(run.directory / folder):
      found.append({**record, "kind": kind})
  return found


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
  """Returns the values of nested mappings by their dotted paths."""
  found = {}
  for name, value in tree.items():
    key = f"{path}{name}"
    if isinstance(value, Mapping) and value:
      found |= flat(value, f"{key}.")
    else:
      found[key] = value
  return found


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
  if not path.exists():
    return None
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ReportError(f"{path} is damaged: {error}; delete it") from error
  return found if isinstance(found, dict) else None
