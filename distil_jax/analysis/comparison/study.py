"""Runs a comparison: base models, learning rates and seeds.

Every trial is kept as soon as it is done. What runs a trial is handed in, so
that reading and reporting trials needs neither sampler nor trainer.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.comparison import (
  base_models,
  builtin_families,
  config_trial,
  record_settings,
  trial_store,
)
from distil_jax.analysis.comparison.build_program_setting import (
  build_network,
  build_setting,
)
from distil_jax.analysis.comparison.results import chosen_rate
from distil_jax.analysis.comparison.settings import Comparison, FamilyRun
from distil_jax.analysis.comparison.trial_record import (
  FIRST_TUNING_SEED,
  Done,
  Trial,
)
from distil_jax.models import decoder
from distil_jax.training.logging import run_info

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]
# Settings that decide a base model, beside its family and its number.
_BASE_SETTINGS = {
  "network",
  "base_steps",
  "base_batch_size",
  "base_learning_rate",
}
_SECONDS_BETWEEN_LINES = 20.0  # about a base model that is being trained

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Runners:
  """Holds the functions that run trials.

  Attributes:
    run_trial: Runs a trial of a family that comes with the package; see
      `run_trial.run_trial`.
    train: Runs a training config; see `config_trial.Train`.
  """

  run_trial: Callable[..., dict[str, Any]]
  train: config_trial.Train


def run_family(
  comparison: Comparison,
  name: str,
  arms: Sequence[str] | None,
  runners: Runners,
  say: Say,
) -> None:
  """Runs the trials of a family that are not done yet.

  Args:
    comparison: What to run.
    name: The family.
    arms: Only these arms; all if empty or None.
    runners: Run the trials.
    say: Prints a line.

  Raises:
    ValueError: A trial or a base model that is there has other settings.
  """
  run = comparison.families[name]
  trial_store.repair(trial_store.file_of(comparison.directory, name))
  trials = _Trials(
    comparison,
    # A training config brings its own model, which is then the only base.
    bases=[None] if run.config else _bases(comparison, name, run, say),
    done=trial_store.read_trials(comparison.directory),
    runners=runners,
    say=say,
  )
  for arm in filter(lambda arm: comparison.runs(name, arm), comparison.arms):
    if arms and arm not in arms:
      continue
    rate = _tuned_rate(trials, name, arm)
    for seed in range(comparison.planned_seeds(name)):
      base = comparison.base_of(name, seed)
      _run_if_new(trials, Trial(name, arm, base, seed, rate))
    # An arm's programs are not needed again. A process that keeps those of all
    # arms runs out of memory maps.
    jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class _Trials:
  """Holds what the trials of a family share.

  Attributes:
    comparison: What is run.
    bases: Parameters of the base models.
    done: Finished trials; new ones are added.
    runners: Run the trials.
    say: Prints a line.
  """

  comparison: Comparison
  bases: Sequence[decoder.Params | None]
  done: dict[Trial, dict[str, Any]]
  runners: Runners
  say: Say


def _tuned_rate(trials: _Trials, family: str, arm: str) -> float:
  """Returns an arm's learning rate, after its tuning trials have been run."""
  comparison = trials.comparison
  owner = comparison.arms[arm].like or arm
  grid = comparison.learning_rates_of(family, owner)
  if len(grid) > 1:
    for i in range(comparison.tuning_seeds_of(family)):
      for rate in grid:
        seed = FIRST_TUNING_SEED + i
        base = comparison.base_of(family, seed)
        _run_if_new(trials, Trial(family, owner, base, seed, rate))
  rate = chosen_rate(comparison, family, arm, trials.done)
  assert rate is not None
  return rate


def _run_if_new(trials: _Trials, trial: Trial) -> None:
  """Runs and keeps a trial, unless it is done with the same settings."""
  comparison, done = trials.comparison, trials.done
  if trial in done:
    record_settings.check_same(comparison, trial, done[trial])
    return
  if comparison.families[trial.family].config:
    record = _run_config_trial(comparison, trial, trials.runners.train)
  else:
    before = _base_accuracy(comparison, trial, done)
    record = trials.runners.run_trial(
      comparison, trial, trials.bases[trial.base], before
    )
  record["settings"] = record_settings.settings_of(comparison, trial)
  record["revision"] = run_info.source_revision(_PACKAGE)
  record["device"] = device_name()
  done[trial] = record
  path = trial_store.file_of(comparison.directory, trial.family)
  trial_store.append(path, record)
  trials.say(
    f"{trial.family:9} {trial.arm:24} lr {trial.learning_rate:g} base "
    f"{trial.base} seed {trial.seed}: {record['before']['avg']:.3f} -> "
    f"{record['after']['avg']:.3f} in {record['seconds']:.0f} s"
  )


def _base_accuracy(
  comparison: Comparison, trial: Trial, done: Done
) -> dict[str, float] | None:
  """Returns what another trial has measured of the same base model.

  Only trials that the report may count are used; others may have run with other
  settings.
  """
  for other, record in done.items():
    same = (other.family, other.base, other.is_tuning)
    if (
      same == (trial.family, trial.base, trial.is_tuning)
      and other.arm in comparison.arms
      and not record_settings.differences(comparison, other, record)
    ):
      return record["before"]
  return None


def _run_config_trial(
  comparison: Comparison, trial: Trial, train: config_trial.Train
) -> dict[str, Any]:
  """Runs a trial of a family with a training config."""
  name = f"{trial.family}-{trial.arm}-{trial.learning_rate:g}-seed{trial.seed}"
  config = record_settings.run_config(
    comparison.families[trial.family],
    comparison.arms[trial.arm],
    learning_rate=trial.learning_rate,
    seed=trial.seed,
    directory=str(comparison.directory / "runs" / name),
  )
  record = config_trial.run_config_trial(config, train)
  return dataclasses.asdict(trial) | record


def measure_gradients(
  comparison: Comparison, measure: Callable[..., dict[str, Any]], say: Say
) -> None:
  """Measures how well gradients are estimated, where that is not done yet.

  Args:
    comparison: Its section `gradients` names families and arms.
    measure: Compares estimators; see `run_trial.measure_gradients`.
    say: Prints a line.
  """
  run = comparison.gradients
  for family in run.families:
    path = trial_store.gradients_file(comparison.directory, family)
    if path.is_file() or not run.arms:
      continue
    family_run = comparison.families[family]
    found = measure(
      {
        arm: build_setting(family, family_run, comparison.arms[arm])
        for arm in run.arms
      },
      _bases(comparison, family, family_run, say)[0],
      num_batches=run.num_batches,
      num_reference=run.num_reference,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
      "revision": run_info.source_revision(_PACKAGE),
      "device": device_name(),
      "arms": {arm: dataclasses.asdict(q) for arm, q in found.items()},
    }
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    say(f"{family}: gradients of {len(found)} arms measured")
    jax.clear_caches()


def _bases(
  comparison: Comparison, name: str, run: FamilyRun, say: Say
) -> list[decoder.Params]:
  """Returns the family's base models; trains those that are not there yet."""
  family = builtin_families.FAMILIES[name]
  plan = base_models.Plan(
    family=family,
    network=build_network(run, family),
    num_steps=run.base_steps,
    batch_size=run.base_batch_size,
    learning_rate=run.base_learning_rate,
  )
  settings = run.model_dump(mode="json", include=_BASE_SETTINGS)
  folders = [
    comparison.directory / "bases" / f"{name}-{base}"
    for base in range(comparison.num_bases)
  ]
  # All are checked before the first is trained.
  for folder in filter(base_models.is_saved, folders):
    differences = base_models.differences(folder, settings)
    if differences:
      path = trial_store.file_of(comparison.directory, name)
      raise ValueError(
        f"{folder} holds a base model that was made with other settings of "
        f"families.{name}: {'; '.join(differences)}; choose another "
        f"run_directory, or delete that folder and the trials in {path}"
      )
  for base, folder in enumerate(folders):
    if not base_models.is_saved(folder):
      params, excess = base_models.train(
        jax.random.key(base),
        plan,
        report=_reporter(f"{name}: base {base}", run.base_steps, say),
      )
      say(
        f"{name}: base {base} made, {float(np.mean(excess[-20:])):.4f} nats "
        "per token from its targets"
      )
      base_models.save(folder, params, plan, settings)
  return [base_models.load(folder, plan) for folder in folders]


def _reporter(label: str, num_steps: int, say: Say) -> base_models.Report:
  """Returns a function that now and then prints a base model's progress."""
  last_line_at = time.monotonic()

  def report(step: int, excess: float) -> None:
    nonlocal last_line_at
    if time.monotonic() - last_line_at >= _SECONDS_BETWEEN_LINES:
      last_line_at = time.monotonic()
      say(
        f"{label}, step {step} of {num_steps}: {excess:.4f} nats per token "
        "from its targets"
      )

  return report


@functools.cache
def device_name() -> str:
  """Returns number and kind of the devices that this process computes on."""
  kind = jax.devices()[0].device_kind
  if kind != "cpu":
    return f"{jax.device_count()} x {kind}"
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
  names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
  return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"
