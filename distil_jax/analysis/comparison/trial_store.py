"""Keeps the records of finished trials, one JSON line each, in files.

A trial that is in the store is never run again.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from distil_jax.analysis.comparison.trial_record import Trial

# Every record has these keys beside the fields of its trial.
_REQUIRED = (
  "num_sequences",
  "step_seconds",
  "before",
  "after",
  "curve",
  "settings",
  "revision",
)


def file_of(directory: pathlib.Path, family: str) -> pathlib.Path:
  """Returns the file of a family's trials in a comparison's folder."""
  return directory / "trials" / f"{family}.jsonl"


def read_trials(directory: pathlib.Path) -> dict[Trial, dict[str, Any]]:
  """Reads the finished trials of a comparison.

  A last line without a line break is skipped: either its process ended while
  writing it, or another process is writing it now.

  Raises:
    ValueError: Another line is not the record of a trial.
  """
  names = [field.name for field in dataclasses.fields(Trial)]
  done = {}
  for path in sorted((directory / "trials").glob("*.jsonl")):
    *complete, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(complete, start=1):
      try:
        record = json.loads(line)
      except ValueError:
        record = None
      required = {*names, *_REQUIRED}
      if not isinstance(record, dict) or not record.keys() >= required:
        raise ValueError(
          f"{path}:{number} is not the record of a trial: {line[:80]!r}; "
          "repair or delete that line, or choose another run_directory"
        )
      done[Trial(*(record[name] for name in names))] = record
  return done


def append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Adds the record of a trial to its family's file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(record) + "\n")


def repair(path: pathlib.Path) -> None:
  """Removes a last line that a process left half written."""
  if path.is_file():
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def gradients_file(directory: pathlib.Path, family: str) -> pathlib.Path:
  """Returns the file of what was measured of a family's gradients."""
  return directory / "gradients" / f"{family}.json"


def read_gradients(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns what was measured of gradients, by family.

  Each value holds `arms`, `device` and `revision`.
  """
  return {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((directory / "gradients").glob("*.json"))
  }
