"""Groups runs by the settings in which they differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.analysis.report.run_record import RunRecord

SEED = "train.seed"
# They say where and how a run is written, not what is learned.
_IGNORED = ("name", "train.run_directory", "train.allow_changes", "logging")
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Group:
  """Holds runs that differ in their seeds at most.

  Attributes:
    label: the settings that set the group apart, or the run's name.
    runs: at least one.
  """

  label: str
  runs: Sequence[RunRecord]


def differing(runs: Sequence[RunRecord]) -> list[str]:
  """Returns the settings that differ between runs, the seed left out.

  Of a section whose kinds differ the settings that only some kinds have are
  left out too: the kind says it already.
  """
  keys = dict.fromkeys(key for run in runs for key in run.settings)
  found = []
  for key in keys:
    values = [run.settings.get(key, _MISSING) for run in runs]
    if key == SEED or _is_ignored(key) or not _is_varied(values):
      continue
    kind = f"{key.partition('.')[0]}.kind"
    others = [run.settings.get(kind) for run in runs]
    if _MISSING in values and _is_varied(others) and key != kind:
      continue
    found.append(key)
  return found


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
  """Returns the runs, those together that differ in the seed alone."""
  keys = differing(runs)
  found: dict[str, list[RunRecord]] = {}
  for run in runs:
    found.setdefault(label(run.settings, keys), []).append(run)
  # Runs with one seed and the same settings were run twice on purpose.
  return [
    Group(text or _common_name(members), members)
    for text, members in found.items()
  ]


def label(settings: Mapping[str, Any], keys: Sequence[str]) -> str:
  """Returns the values of some settings, each behind the end of its name."""
  ends = [key.rpartition(".")[2] for key in keys]
  names = [
    key if ends.count(end) > 1 else end
    for key, end in zip(keys, ends, strict=True)
  ]
  return ", ".join(
    f"{name}={shown(settings.get(key))}"
    for name, key in zip(names, keys, strict=True)
  )


def shown(value: Any) -> str:
  """Returns a value as it stands in YAML, on one short line."""
  if value is None:
    return "null"
  if isinstance(value, bool):
    return str(value).lower()
  text = f"{value:g}" if isinstance(value, float) else str(value)
  return text if len(text) <= 40 else f"{text[:39]}…"


def _common_name(members: Sequence[RunRecord]) -> str:
  if len(members) == 1:
    return members[0].name
  return f"{members[0].name} and {len(members) - 1} more"


def _is_ignored(key: str) -> bool:
  return any(key == name or key.startswith(f"{name}.") for name in _IGNORED)


def _is_varied(values: Sequence[Any]) -> bool:
  return any(value != values[0] for value in values)
