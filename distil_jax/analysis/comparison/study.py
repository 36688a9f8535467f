"""Runs a comparison: bases, learning rates, seeds; every trial is kept."""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.comparison import (
  base_models,
  gradient_noise,
  task_list,
  training,
  trial_store,
)
from distil_jax.analysis.comparison import run_trial as comparison_run_trial
from distil_jax.analysis.comparison.run_trial import run_trial, setting_of
from distil_jax.analysis.comparison.settings import Comparison, FamilyRun
from distil_jax.analysis.comparison.trial_store import (
  Trial,
  chosen_rate,
  read_trials,
)
from distil_jax.models import decoder
from distil_jax.training.logging import run_info

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]
# What decides a base model, beside its family and its number.
_OF_A_BASE = {
  "network",
  "base_steps",
  "base_batch_size",
  "base_learning_rate",
}
_SECONDS_BETWEEN_LINES = 20.0  # about a base that is being made

Say = Callable[[str], None]


def run_family(
  comparison: Comparison, name: str, arms: Sequence[str] | None, say: Say
) -> None:
  """All trials of a family that are not there yet."""
  run = comparison.families[name]
  trial_store.mend(trial_store.file_of(comparison, name))
  done = read_trials(comparison.directory)
  # A training config brings its own model: there is one base.
  params = [None] if run.config else _bases(comparison, name, run, say)
  chosen_arms = [a for a in comparison.arms if comparison.runs(name, a)]
  for arm in chosen_arms:
    if arms and arm not in arms:
      continue
    rate = _learning_rate(comparison, name, arm, params, done, say)
    for seed in range(run.seeds or comparison.seeds):
      base = trial_store.base_of(comparison, name, seed)
      trial = Trial(name, arm, base, seed, rate)
      _do(comparison, trial, params, done, say)
    # An arm's programs are not needed again, and the memory maps of a process
    # that keeps those of all arms run out.
    jax.clear_caches()


def _learning_rate(comparison, family, arm, params, done, say) -> float:
  owner = comparison.arms[arm].like or arm
  grid = comparison.learning_rates_of(family, owner)
  if len(grid) > 1:
    for i in range(comparison.tuning_seeds_of(family)):
      for rate in grid:
        seed = trial_store.FIRST_TUNING_SEED + i
        base = trial_store.base_of(comparison, family, seed)
        trial = Trial(family, owner, base, seed, rate)
        _do(comparison, trial, params, done, say)
  rate = chosen_rate(comparison, family, arm, done)
  assert rate is not None
  return rate


def _do(comparison, trial: Trial, params, done, say: Say) -> None:
  if trial in done:
    trial_store.check_same(comparison, trial, done[trial])
    return
  if comparison.families[trial.family].config:
    record = _trained(comparison, trial)
  else:
    before = _base_accuracy(comparison, trial, done)
    record = run_trial(comparison, trial, params[trial.base], before)
  record["settings"] = trial_store.settings_of(comparison, trial)
  record["revision"] = run_info.source_revision(_PACKAGE)
  record["device"] = comparison_run_trial.device()
  done[trial] = record
  trial_store.append(trial_store.file_of(comparison, trial.family), record)
  say(
    f"{trial.family:9} {trial.arm:24} lr {trial.learning_rate:g} base "
    f"{trial.base} seed {trial.seed}: {record['before']['avg']:.3f} -> "
    f"{record['after']['avg']:.3f} in {record['seconds']:.0f} s"
  )


def _base_accuracy(
  comparison: Comparison, trial: Trial, done
) -> dict[str, float] | None:
  """What another trial has found of the same base on the same problems.

  Trials that the report does not count may have run with other settings.
  """
  for other, record in done.items():
    same = (other.family, other.base, other.is_tuning)
    if (
      same == (trial.family, trial.base, trial.is_tuning)
      and other.arm in comparison.arms
      and not trial_store.differences(comparison, other, record)
    ):
      return record["before"]
  return None


def _trained(comparison: Comparison, trial: Trial) -> dict[str, Any]:
  """A training run, thrown away when its record is taken."""
  name = f"{trial.family}-{trial.arm}-{trial.learning_rate:g}-seed{trial.seed}"
  folder = comparison.directory / "runs" / name
  config = training.run_config(
    comparison.families[trial.family],
    comparison.arms[trial.arm],
    learning_rate=trial.learning_rate,
    seed=trial.seed,
    directory=str(folder),
  )
  record = dataclasses.asdict(trial) | training.train(config)
  shutil.rmtree(folder)
  return record


def measure_gradients(comparison: Comparison, say: Say) -> None:
  """How well each arm's gradient is estimated, where that is not there yet."""
  run = comparison.gradients
  for family in run.families:
    path = comparison.directory / "gradients" / f"{family}.json"
    if path.is_file() or not run.arms:
      continue
    of_family = comparison.families[family]
    found = gradient_noise.qualities(
      {
        arm: setting_of(family, of_family, comparison.arms[arm])
        for arm in run.arms
      },
      _bases(comparison, family, of_family, say)[0],
      num_batches=run.num_batches,
      num_reference=run.num_reference,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
      "revision": run_info.source_revision(_PACKAGE),
      "device": comparison_run_trial.device(),
      "arms": {arm: dataclasses.asdict(q) for arm, q in found.items()},
    }
    path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    say(f"{family}: gradients of {len(found)} arms measured")
    jax.clear_caches()


def read_gradients(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
  """What `measure_gradients` found of each family: arms, device, revision."""
  return {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((directory / "gradients").glob("*.json"))
  }


def _bases(
  comparison: Comparison, name: str, run: FamilyRun, say: Say
) -> list[decoder.Params]:
  """The family's base models; made where they are not there yet."""
  family = task_list.FAMILIES[name]
  plan = base_models.Plan(
    family=family,
    network=comparison_run_trial.network_of(run, family),
    num_steps=run.base_steps,
    batch_size=run.base_batch_size,
    learning_rate=run.base_learning_rate,
  )
  settings = run.model_dump(mode="json", include=_OF_A_BASE)
  folders = [
    comparison.directory / "bases" / f"{name}-{base}"
    for base in range(comparison.num_bases)
  ]
  for folder in filter(base_models.is_kept, folders):
    differences = base_models.differences(folder, settings)
    if differences:
      raise ValueError(
        f"{folder} holds a base model that was made with other settings of "
        f"families.{name}: {'; '.join(differences)}; choose another "
        "run_directory, or delete that folder and the trials in "
        f"{trial_store.file_of(comparison, name)}"
      )
  for base, folder in enumerate(folders):
    if not base_models.is_kept(folder):
      params, excess = base_models.train(
        jax.random.key(base),
        plan,
        report=_reporter(f"{name}: base {base}", run.base_steps, say),
      )
      say(
        f"{name}: base {base} made, {float(np.mean(excess[-20:])):.4f} nats "
        "per token from its targets"
      )
      base_models.keep(folder, params, plan, settings)
  return [base_models.load(folder, plan) for folder in folders]


def _reporter(label: str, num_steps: int, say: Say) -> base_models.Report:
  """Says now and then how far a base model is."""
  said_at = time.monotonic()

  def report(step: int, excess: float) -> None:
    nonlocal said_at
    if time.monotonic() - said_at >= _SECONDS_BETWEEN_LINES:
      said_at = time.monotonic()
      say(
        f"{label}, step {step} of {num_steps}: {excess:.4f} nats per token "
        "from its targets"
      )

  return report
