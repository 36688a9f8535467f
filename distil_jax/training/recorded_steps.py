"""Keeps batches of training steps as arrays, to compute the steps again.

A file `batches/step_000012.0.npz` has process 0's rows of step 12, the state of
the teacher's guard and the metrics that the step computed.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distil_jax.config.schema import Config
from distil_jax.training.teacher_guard import GuardState
from distil_jax.types import TrainBatch

FOLDER = "batches"
# Batches of steps whose numbers failed, which are kept in any case.
_NUM_FAILED = 8
_NAME = re.compile(r"step_(\d+)\.\d+(\.failed)?\.npz")


class RecordError(ValueError):
  """The batch of a step is missing or cannot be read."""


@dataclasses.dataclass(frozen=True)
class RecordedStep:
  """Holds what a step learned from, and what it computed.

  Attributes:
    batch: rows of all processes, on the host.
    guard: the state of the teacher's guard in the step; None without one.
    metrics: of the update, by name.
    is_failed: True if its numbers were not finite.
  """

  batch: TrainBatch
  guard: GuardState | None
  metrics: Mapping[str, float]
  is_failed: bool


def save_if_asked(
  config: Config,
  step: int,
  batch: TrainBatch,
  guard: GuardState | None,
  metrics: Mapping[str, float],
  is_failed: bool,
) -> pathlib.Path | None:
  """Writes a step that failed, or whose record the config asks for.

  Returns:
    The file; None if nothing is kept of the step.
  """
  num_kept = config.logging.kept_batches
  if not is_failed and not num_kept:
    return None
  return save(
    config.run_directory,
    step,
    batch,
    guard,
    metrics,
    is_failed=is_failed,
    num_kept=num_kept,
  )


def save(
  run_directory: pathlib.Path,
  step: int,
  batch: TrainBatch,
  guard: GuardState | None,
  metrics: Mapping[str, float],
  *,
  is_failed: bool,
  num_kept: int,
) -> pathlib.Path:
  """Writes this process's rows of a step, and removes old files.

  Args:
    run_directory: the run's folder.
    step: the training step, counted from 1.
    batch: on the host.
    guard: the state of the teacher's guard in the step; None without one.
    metrics: of the update, by name.
    is_failed: True if its numbers are not finite.
    num_kept: latest steps whose files stay; of failed ones the last few stay
      besides.

  Returns:
    The file.
  """
  folder = run_directory / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  process = jax.process_index()
  ending = ".failed.npz" if is_failed else ".npz"
  path = folder / f"step_{step:06d}.{process}{ending}"
  arrays = {f"batch/{k}": x for k, x in _arrays(batch).items()}
  if guard is not None:
    arrays |= {f"guard/{k}": x for k, x in _arrays(guard).items()}
  # As text every float keeps all of its bits, NaN and infinity too.
  arrays["metrics"] = np.asarray(json.dumps(metrics))
  temporary = path.with_suffix(".partial")
  with temporary.open("wb") as file:
    np.savez(file, allow_pickle=False, **arrays)
  os.replace(temporary, path)
  # A step that was repeated with other settings has one outcome.
  other = ".npz" if is_failed else ".failed.npz"
  (folder / f"step_{step:06d}.{process}{other}").unlink(missing_ok=True)
  _remove_old(folder, process, step, num_kept)
  return path


def read(run_directory: pathlib.Path, step: int) -> RecordedStep:
  """Reads the rows of all processes.

  Raises:
    RecordError: there is no such file, or it is damaged.
  """
  folder = run_directory / FOLDER
  paths = sorted(folder.glob(f"step_{step:06d}.*.npz"), key=_process_of)
  if not paths:
    raise RecordError(
      f"{folder} has no batch of step {step}; it has those of: "
      f"{', '.join(map(str, steps(run_directory))) or 'no step'}. "
      "logging.kept_batches says how many a run keeps"
    )
  parts = [_read(path) for path in paths]
  rows = [x["batch"] for x in parts]
  batch = TrainBatch(
    **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  )
  guard = parts[0]["guard"]
  return RecordedStep(
    batch,
    GuardState(**guard) if guard else None,
    parts[0]["metrics"],
    is_failed=".failed." in paths[0].name,
  )


def steps(run_directory: pathlib.Path) -> list[int]:
  """Returns the steps whose batches are there, in their order."""
  found = map(_NAME.fullmatch, _names(run_directory / FOLDER))
  return sorted({int(match[1]) for match in found if match})


def _read(path: pathlib.Path) -> dict[str, Any]:
  found: dict[str, Any] = {"batch": {}, "guard": {}}
  try:
    with np.load(path, allow_pickle=False) as arrays:
      found["metrics"] = json.loads(str(arrays["metrics"]))
      for name in arrays.files:
        kind, _, field = name.partition("/")
        if field:
          found[kind][field] = arrays[name]
    TrainBatch(**found["batch"])
  # The kind of exception depends on the damage.
  except Exception as error:
    raise RecordError(f"{path} cannot be read: {error}") from error
  return found


def _arrays(record: Any) -> dict[str, np.ndarray]:
  """Returns the fields of a record that hold arrays, on the host."""
  values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
  return {k: np.asarray(x) for k, x in values.items() if x is not None}


def _remove_old(folder: pathlib.Path, process: int, step: int, num_kept: int):
  """Removes this process's files of steps that are not kept any more."""
  own = f".{process}."
  failed, others = [], []
  for name in sorted(_names(folder)):
    match = _NAME.fullmatch(name)
    if match and own in name:
      (failed if match[2] else others).append((int(match[1]), name))
  # A run that was taken back has later ones of before, too.
  old = [name for of, name in others if not step - num_kept < of <= step]
  for name in [*old, *(name for _, name in failed[:-_NUM_FAILED])]:
    (folder / name).unlink(missing_ok=True)


def _names(folder: pathlib.Path) -> list[str]:
  return os.listdir(folder) if folder.is_dir() else []


def _process_of(path: pathlib.Path) -> int:
  return int(path.name.split(".")[1])
