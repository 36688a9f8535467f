"""Describes how and on what a comparison was run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util

from distil_jax import config as configs
from distil_jax.analysis.comparison import (
  base_models,
  builtin_families,
  markdown,
  statistics,
)
from distil_jax.analysis.comparison.settings import Comparison, FamilyRun
from distil_jax.analysis.comparison.trial_record import Found, Records

_AS_CONFIGURED = " and, in a family with a training config, is the config's"


def basis(comparison: Comparison, found: Found, arms: Sequence[str]) -> str:
  """Returns numbers of seeds, bases, parameters and rollouts of a table."""
  cells = [*statistics.rows_of(found, arms)]
  if not cells:
    return "No trial of these arms is done."
  all_records = [record for *_, records in cells for record in records]
  seeds = _range((len(records) for *_, records in cells), "seed")
  num_bases = _range(
    [len({record["base"] for record in all_records})], "base model"
  )
  families = dict.fromkeys(family for family, *_ in cells)
  networks = dict.fromkeys(
    _network(comparison.families[family]) for family in families
  )
  rollouts = _range(map(statistics.num_rollouts, all_records), "rollout")
  return f"{seeds} on {num_bases} ({'; '.join(networks)}); {rollouts} a trial."


def made_by(records: Sequence[Mapping[str, Any]]) -> str:
  """Returns commits and devices of trials or measurements."""
  # All are named: a comparison may be run over days, while the code changes.
  commits = sorted({_revision(r["revision"]) for r in records})
  # Records of earlier versions do not hold a device.
  devices = sorted({r.get("device", "unknown") for r in records})
  return (
    f"Commits: {', '.join(commits) or markdown.NONE}.\n"
    f"Computed on: {', '.join(devices) or markdown.NONE}.\n"
  )


def families(comparison: Comparison, found: Found) -> str:
  """Returns the question of each family, and how it is run."""
  head = ["family", "question", "base, %", "steps", "rollouts", "network"]
  rows = [[*head, "bases", "seeds", "tuning seeds"]]
  for name, run in comparison.families.items():
    records = [
      r for arm_records in found.get(name, {}).values() for r in arm_records
    ]
    # Each base model counts once, however many trials started from it.
    before = {r["base"]: r["before"]["avg"] for r in records}
    base = markdown.NONE
    if before:
      base = f"{100 * sum(before.values()) / len(before):.1f}"
    rollouts = run.num_steps * _num_sequences(run, records)
    sizes = [f"{run.num_steps}", f"{rollouts}", _network(run)]
    num_bases = 1 if run.config else comparison.num_bases
    counts = [
      num_bases,
      comparison.planned_seeds(name),
      comparison.tuning_seeds_of(name),
    ]
    question = run.question or builtin_families.FAMILIES[name].question
    rows.append([name, question, base, *sizes, *map(str, counts)])
  return (
    f"{markdown.table(rows)}\n\nbase: held-out accuracy before training. "
    f"Every accuracy is of {comparison.num_held_out} held-out problems, four "
    "samples each; a family with a training config has those of its config."
  )


def arms(comparison: Comparison) -> str:
  """Describes each arm; an ablation by its differences."""
  rows = [["arm", "objective", "teacher", "beside"]]
  with_config = [run.config is not None for run in comparison.families.values()]
  for name, arm in comparison.arms.items():
    beside = [
      f"{key}={value}"
      for key, value in (
        ("like", arm.like),
        ("mini_batches", arm.mini_batches),
        ("num_steps_factor", arm.num_steps_factor),
      )
      if value not in (None, 1)
    ]
    remarks = [*beside, *filter(None, [arm.note])]
    if arm.like:
      like = comparison.arms[arm.like]
      objective = _changes(arm.objective, like.objective)
      teacher = _changes(arm.teacher, like.teacher)
    else:
      objective = _settings(arm.objective.model_dump(mode="json"))
      # In a family with a config only what the arm sets replaces the teacher
      # there.
      shown = arm.teacher.model_dump(mode="json", exclude_unset=True)
      if not all(with_config):
        shown = {"parameters": arm.teacher.parameters, **shown}
      teacher = _settings(shown)
    rows.append([name, objective, teacher, " ".join(remarks)])
  return (
    f"{markdown.table(rows)}\n\nlike: an ablation, of which only what it "
    "changes is named. Of others, what is not named is off or, of the teacher, "
    f"has its default{_AS_CONFIGURED if any(with_config) else ''}."
  )


def learning_rates(
  comparison: Comparison, chosen: Mapping[tuple[str, str], float | None]
) -> str:
  """Returns the rate that each arm chose in each family.

  Args:
    comparison: Holds the grids.
    chosen: The rates by family and arm; None if tuning is not done.
  """
  rows = [["arm", *comparison.families]]
  for arm in comparison.main_arms:
    rates = [
      _rate(chosen[family, arm], comparison.learning_rates_of(family, arm))
      for family in comparison.families
    ]
    rows.append([arm, *rates])
  return f"{markdown.table(rows)}\n\nAn asterisk: at an end of its grid."


def _rate(rate: float | None, grid: Sequence[float]) -> str:
  if rate is None:
    return markdown.NONE
  is_end = len(grid) > 1 and rate in (min(grid), max(grid))
  return f"{rate:g}{'*' if is_end else ''}"


def _settings(tree: Mapping[str, Any]) -> str:
  """Returns all settings that are not off, the kind first."""
  values = sorted(_flat(tree).items(), key=lambda kv: kv[0] != "kind")
  return " ".join(f"{k}={v}" for k, v in values if v not in (None, False))


def _changes(section: configs.Section, like: configs.Section) -> str:
  new, old = (_flat(x.model_dump(mode="json")) for x in (section, like))
  return " ".join(f"{k}={v}" for k, v in new.items() if old.get(k) != v)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns values by their dotted keys."""
  return traverse_util.flatten_dict(tree, sep=".")


def _num_sequences(run: FamilyRun, records: Records) -> int:
  """Returns the number of rollouts in a training step."""
  if not run.config:
    return run.num_problems * run.group_size
  if records:
    return records[0]["num_sequences"]
  return configs.load(run.config).num_sequences


def _network(run: FamilyRun) -> str:
  if run.config:
    return f"model of {run.config}"
  return f"{base_models.num_params(**run.network.model_dump()):,} parameters"


def _range(values: Iterable[int], noun: str) -> str:
  values = sorted(set(values))
  ends = values if len(values) < 2 else (values[0], values[-1])
  plural = "" if values == [1] else "s"
  return f"{' to '.join(f'{value:,}' for value in ends)} {noun}{plural}"


def _revision(found: Mapping[str, Any] | None) -> str:
  if found is None:
    return "unknown"
  return found["commit"][:12] + (" with changes" if found["dirty"] else "")
