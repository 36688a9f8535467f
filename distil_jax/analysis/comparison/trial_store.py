"""The trials that are done: a line each, kept and never made twice."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from distil_jax import config as configs
from distil_jax.analysis.comparison import training
from distil_jax.analysis.comparison.settings import Arm, Comparison, FamilyRun

# Seeds that choose learning rates start here; reported seeds start at 0.
FIRST_TUNING_SEED = 1000
# Settings of families and arms that choose trials but do not change them.
_NOT_OF_A_TRIAL = {
  "arms",
  "families",
  "learning_rates",
  "like",
  "note",
  "question",
  "seeds",
  "tuning_seeds",
}


# What every record has beside its trial's name.
_FOUND = (
  "num_sequences",
  "step_seconds",
  "before",
  "after",
  "curve",
  "settings",
  "revision",
)


@dataclasses.dataclass(frozen=True)
class Trial:
  """What tells a trial apart; its line in the file begins with it."""

  family: str
  arm: str
  base: int
  seed: int
  learning_rate: float

  @property
  def is_tuning(self) -> bool:
    return self.seed >= FIRST_TUNING_SEED


Done = Mapping[Trial, Mapping[str, Any]]


def base_of(comparison: Comparison, family: str, seed: int) -> int:
  """The base model that a seed starts from."""
  if comparison.families[family].config:
    return 0  # it brings its own
  index = seed - FIRST_TUNING_SEED if seed >= FIRST_TUNING_SEED else seed
  return index % comparison.num_bases


def is_planned(comparison: Comparison, trial: Trial) -> bool:
  """Whether its base is its seed's, which `num_bases` may have changed."""
  return trial.base == base_of(comparison, trial.family, trial.seed)


def file_of(comparison: Comparison, family: str) -> pathlib.Path:
  """Where a family's trials stand."""
  return comparison.directory / "trials" / f"{family}.jsonl"


def read_trials(directory: pathlib.Path) -> dict[Trial, dict[str, Any]]:
  """The finished trials of a comparison.

  A last line without its line break was cut off by the end of a process, or is
  being written by another, and does not count.

  Raises:
    ValueError: another line is not the record of a trial.
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
      if not isinstance(record, dict) or not record.keys() >= {*names, *_FOUND}:
        raise ValueError(
          f"{path}:{number} is not the record of a trial: {line[:80]!r}; "
          "repair or delete that line, or choose another run_directory"
        )
      done[Trial(*(record[name] for name in names))] = record
  return done


def append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Adds a trial to its family's file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(record) + "\n")


def mend(path: pathlib.Path) -> None:
  """Cuts off a line that a process left half-written."""
  if path.is_file():
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def settings_of(comparison: Comparison, trial: Trial) -> dict[str, Any]:
  """What, beside its name, decides what a trial finds."""
  run, arm = comparison.families[trial.family], comparison.arms[trial.arm]
  sizes = {"num_held_out", "num_pass_problems", "pass_at"}
  of_config = {"config": training.settings_of(run, arm)} if run.config else {}
  return {
    **_of_sections(run, arm),
    **of_config,
    **comparison.model_dump(mode="json", include=sizes),
  }


def check_same(
  comparison: Comparison, trial: Trial, record: Mapping[str, Any]
) -> None:
  """Refuses a trial that ran with other settings than it would now.

  Raises:
    ValueError: lists every difference.
  """
  found = differences(comparison, trial, record)
  if found:
    raise ValueError(
      "\n".join(
        [
          f"{file_of(comparison, trial.family)} holds {trial}, which ran with "
          "other settings of its family or arm; choose another run_directory, "
          "or delete that line (and the base, where its settings changed)",
          *found,
        ]
      )
    )


def differences(
  comparison: Comparison, trial: Trial, record: Mapping[str, Any]
) -> list[str]:
  """Settings with which a trial ran, and which would differ now.

  A key that its record lacks came later, with a default that leaves what was
  there as it was: the record counts as if it had that default.
  """
  arm = comparison.arms[trial.arm]
  defaults = _of_sections(FamilyRun(), Arm(objective=type(arm.objective)()))
  defaults["config"] = configs.Config().model_dump(mode="json")
  defaults = flat(defaults)
  new = flat(settings_of(comparison, trial))
  old = flat(record["settings"])
  old |= {k: defaults[k] for k in new.keys() - old.keys() if k in defaults}
  return [
    f"  {key}: {old.get(key)!r} then, {new.get(key)!r} now"
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  ]


def check_counted(comparison: Comparison, done: Done) -> None:
  """Refuses if a trial that the report counts ran with other settings.

  Trials of families, arms, learning rates or bases that the comparison does not
  name are not counted, and may be what they will.

  Raises:
    ValueError: lists every difference of the first one.
  """
  for trial, record in done.items():
    if trial.family not in comparison.families:
      continue
    if trial.arm not in comparison.arms:
      continue
    if not is_planned(comparison, trial):
      continue
    owner = comparison.arms[trial.arm].like or trial.arm
    if trial.learning_rate in comparison.learning_rates_of(trial.family, owner):
      check_same(comparison, trial, record)


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Values by their dotted keys."""
  return traverse_util.flatten_dict(tree, sep=".")


def chosen_rate(
  comparison: Comparison, family: str, arm: str, done: Done
) -> float | None:
  """The learning rate with the best tuning trials; None before they are done.

  Best is the final accuracy (to the nearest hundredth) and, where that is the
  same, the mean over the curve; then the rate nearest to the grid's middle.
  """
  arm = comparison.arms[arm].like or arm
  grid = comparison.learning_rates_of(family, arm)
  if len(grid) == 1:
    return grid[0]
  middle = math.log(sorted(grid)[len(grid) // 2])
  ranks = []
  for rate in grid:
    records = [
      record
      for trial, record in done.items()
      if trial.is_tuning
      and (trial.family, trial.arm) == (family, arm)
      and trial.learning_rate == rate
      and is_planned(comparison, trial)
    ]
    if len(records) < comparison.tuning_seeds_of(family):
      return None
    final = np.mean([r["after"]["avg"] for r in records])
    curve = np.mean([[p["avg"] for p in r["curve"]] for r in records])
    distance = abs(math.log(rate) - middle)
    ranks.append((round(float(final), 2), float(curve), -distance, rate))
  return max(ranks)[-1]


def _of_sections(run: FamilyRun, arm: Arm) -> dict[str, Any]:
  return {
    "run": run.model_dump(mode="json", exclude=_NOT_OF_A_TRIAL),
    "arm": arm.model_dump(mode="json", exclude=_NOT_OF_A_TRIAL),
  }
