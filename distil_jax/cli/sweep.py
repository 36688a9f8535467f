"""Reads what `train --sweep` asks for: a product of settings."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Sequence

from distil_jax import config as configs

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
# What a folder's name has besides these is written as `_`.
_ODD = re.compile(r"[^\w.=,+-]")
_MAX_RUNS = 1000


@dataclasses.dataclass(frozen=True)
class Trial:
  """Holds one run of a sweep.

  Attributes:
    name: of its folder, such as `learning_rate=1e-5,seed=0`.
    config: its settings; its folder lies in that of the sweep.
  """

  name: str
  config: configs.Config


def trials(
  path: str, overrides: Sequence[str], sweep: Sequence[str]
) -> tuple[pathlib.Path, list[Trial]]:
  """Returns the sweep's folder and its runs, in order.

  Args:
    path: the config file.
    overrides: settings of all runs.
    sweep: each `key=value,value` or, for whole numbers, `key=first..last`.

  Raises:
    ConfigError: a part is malformed, or a config of any run is.
  """
  axes = _axes(sweep)
  base = configs.load(path, overrides)
  folder = base.run_directory
  if base.train.run_directory is None:
    # The plain run of this config has that folder.
    folder = folder.with_name(f"{folder.name}_sweep")
  found = []
  for values in itertools.product(*axes.values()):
    settings = [f"{k}={v}" for k, v in zip(axes, values, strict=True)]
    name = _name(list(axes), values)
    of_run = [*overrides, *settings, f"train.run_directory={folder / name}"]
    # All are read before the first one starts, so that a mistake in the last
    # does not show after a night.
    found.append(Trial(name, configs.load(path, of_run)))
  names = [trial.name for trial in found]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise configs.ConfigError(f"--sweep: two runs would be {twice!r}")
  return folder, found


def _axes(sweep: Sequence[str]) -> dict[str, list[str]]:
  found: dict[str, list[str]] = {}
  for text in sweep:
    key, equals, values = text.partition("=")
    if not equals or not values:
      raise configs.ConfigError(
        f"--sweep {text}: needs key=value,value or key=first..last, such as "
        "optimizer.learning_rate=1e-5,3e-5 or train.seed=0..2"
      )
    if key in found:
      raise configs.ConfigError(
        f"--sweep: {key} is given twice; join its values"
      )
    if key == "train.run_directory":
      raise configs.ConfigError(
        "--sweep: each run has a folder of its own; give train.run_directory "
        "once, as a setting, for the folder of all"
      )
    found[key] = _values(values)
  count = 1
  for values in found.values():
    count *= len(values)
  if count > _MAX_RUNS:
    raise configs.ConfigError(
      f"--sweep: these are {count} runs, more than {_MAX_RUNS}; leave some out"
    )
  return found


def _values(text: str) -> list[str]:
  """Returns the values of a range, or between commas outside of brackets."""
  if match := _RANGE.fullmatch(text):
    first, last = int(match[1]), int(match[2])
    step = 1 if last >= first else -1
    # No longer than what would be refused.
    numbers = range(first, last + step, step)[: _MAX_RUNS + 1]
    return [str(number) for number in numbers]
  found, depth = [""], 0
  for letter in text:
    depth += (letter in "[{") - (letter in "]}")
    if letter == "," and depth == 0:
      found.append("")
    else:
      found[-1] += letter
  return found


def _name(keys: Sequence[str], values: Sequence[str]) -> str:
  """Returns a folder's name from the ends of the keys and the values."""
  ends = [key.rpartition(".")[2] for key in keys]
  parts = [
    f"{key if ends.count(end) > 1 else end}={value}"
    for key, end, value in zip(keys, ends, values, strict=True)
  ]
  return _ODD.sub("_", ",".join(parts))[:200]
