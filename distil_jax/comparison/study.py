"""Runs a comparison: bases, learning rates, seeds; every trial is kept."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.comparison import (
  bases,
  catalogue,
  families,
  gradients,
  training,
  trials,
)
from distil_jax.comparison.settings import Arm, Comparison, FamilyRun
from distil_jax.evaluate import pass_at_k
from distil_jax.io import reports, weights
from distil_jax.models import architecture, qwen3

# Seeds that choose learning rates start here; reported seeds start at 0.
_FIRST_TUNING_SEED = 1000
_HELD_OUT = 2**31
_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# Samples a problem on the learning curve, and problems of its evaluations.
_CURVE_SAMPLES, _CURVE_PROBLEMS = 4, 128
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

Say = Callable[[str], None]


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
    return self.seed >= _FIRST_TUNING_SEED


def run_family(
  comparison: Comparison, name: str, arms: Sequence[str] | None, say: Say
) -> None:
  """All trials of a family that are not there yet."""
  run = comparison.families[name]
  _mend(_file(comparison, name))
  done = read_trials(comparison.directory)
  # A training config brings its own model: there is one base.
  params = [None] if run.config else _bases(comparison, name, run, say)
  chosen_arms = [a for a in comparison.arms if _runs(comparison, name, a)]
  for arm in chosen_arms:
    if arms and arm not in arms:
      continue
    rate = _learning_rate(comparison, name, arm, params, done, say)
    for seed in range(run.seeds or comparison.seeds):
      trial = Trial(name, arm, seed % len(params), seed, rate)
      _do(comparison, trial, params, done, say)
    # An arm's programs are not needed again, and the memory maps of a process
    # that keeps those of all arms run out.
    jax.clear_caches()


def read_trials(directory: pathlib.Path) -> dict[Trial, dict[str, Any]]:
  """The finished trials of a comparison.

  A last line without its line break was cut off by the end of a process, or is
  being written by another, and does not count.
  """
  names = [field.name for field in dataclasses.fields(Trial)]
  done = {}
  for path in sorted((directory / "trials").glob("*.jsonl")):
    *complete, _ = path.read_text(encoding="utf-8").split("\n")
    for line in complete:
      record = json.loads(line)
      done[Trial(*(record[name] for name in names))] = record
  return done


def chosen_rate(
  comparison: Comparison,
  family: str,
  arm: str,
  done: Mapping[Trial, Mapping[str, Any]],
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
    ]
    if len(records) < comparison.tuning_seeds_of(family):
      return None
    final = np.mean([r["after"]["avg"] for r in records])
    curve = np.mean([[p["avg"] for p in r["curve"]] for r in records])
    distance = abs(math.log(rate) - middle)
    ranks.append((round(float(final), 2), float(curve), -distance, rate))
  return max(ranks)[-1]


def _runs(comparison: Comparison, family: str, arm: str) -> bool:
  """Whether an arm is to run in a family."""
  of_family = comparison.families[family].arms
  if of_family is not None:
    return arm in of_family
  of_arm = comparison.arms[arm].families
  return of_arm is None or family in of_arm


def _learning_rate(comparison, family, arm, params, done, say) -> float:
  owner = comparison.arms[arm].like or arm
  grid = comparison.learning_rates_of(family, owner)
  if len(grid) > 1:
    for i in range(comparison.tuning_seeds_of(family)):
      for rate in grid:
        seed = _FIRST_TUNING_SEED + i
        trial = Trial(family, owner, i % len(params), seed, rate)
        _do(comparison, trial, params, done, say)
  rate = chosen_rate(comparison, family, arm, done)
  assert rate is not None
  return rate


def _file(comparison: Comparison, family: str) -> pathlib.Path:
  return comparison.directory / "trials" / f"{family}.jsonl"


def _mend(path: pathlib.Path) -> None:
  """Cuts off a line that a process left half-written."""
  if path.is_file():
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _settings(comparison: Comparison, trial: Trial) -> dict[str, Any]:
  """What, beside its name, decides what a trial finds."""
  run, arm = comparison.families[trial.family], comparison.arms[trial.arm]
  sizes = {"num_held_out", "num_pass_problems", "pass_at"}
  return {
    "run": run.model_dump(mode="json", exclude=_NOT_OF_A_TRIAL),
    "arm": arm.model_dump(mode="json", exclude=_NOT_OF_A_TRIAL),
    **comparison.model_dump(mode="json", include=sizes),
  }


def _do(comparison, trial: Trial, params, done, say: Say) -> None:
  settings = _settings(comparison, trial)
  if trial in done:
    if done[trial]["settings"] != settings:
      raise ValueError(
        f"{_file(comparison, trial.family)} holds {trial}, which ran with "
        "other settings of its family or arm; choose another run_directory, or "
        "delete that line (and the base, where its settings changed)"
      )
    return
  if comparison.families[trial.family].config:
    record = _trained(comparison, trial)
  else:
    before = _base_accuracy(trial, done)
    record = run_trial(comparison, trial, params[trial.base], before)
  record["settings"] = settings
  record["revision"] = reports.source_revision(_PACKAGE)
  done[trial] = record
  path = _file(comparison, trial.family)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(record) + "\n")
  say(
    f"{trial.family:9} {trial.arm:24} lr {trial.learning_rate:g} base "
    f"{trial.base} seed {trial.seed}: {record['before']['avg']:.3f} -> "
    f"{record['after']['avg']:.3f} in {record['seconds']:.0f} s"
  )


def _base_accuracy(trial: Trial, done) -> dict[str, float] | None:
  """What another trial has found of the same base on the same problems."""
  for other, record in done.items():
    same = (other.family, other.base, other.is_tuning)
    if same == (trial.family, trial.base, trial.is_tuning):
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


def run_trial(
  comparison: Comparison,
  trial: Trial,
  params: qwen3.Params,
  before: dict[str, float] | None = None,
) -> dict[str, Any]:
  """Trains once; the record of it.

  Args:
    comparison, trial: what to train.
    params: the base.
    before: its accuracy on the held-out problems; None: measured.
  """
  run = comparison.families[trial.family]
  arm = comparison.arms[trial.arm]
  setting = setting_of(trial.family, run, arm)
  state = trials.init_state(setting, params, trial.seed)
  key = jax.random.fold_in(
    jax.random.key(3 if trial.is_tuning else 0), _HELD_OUT
  )
  rate = np.float32(trial.learning_rate)
  curve, seconds, diverged_at = [], 0.0, None
  num_blocks = run.num_steps * arm.num_steps_factor // run.evaluate_every
  for block in range(num_blocks):
    begun = time.monotonic()
    state, metrics = trials.train(
      state, rate, setting=setting, num_steps=run.evaluate_every
    )
    metrics = jax.tree.map(float, metrics)
    if int(state.step) != (block + 1) * run.evaluate_every:
      # A step that is not finite leaves the state as it was, for ever.
      diverged_at = int(state.step)
      break
    if block:  # the first holds the compilation
      seconds += time.monotonic() - begun
    teacher = state.teacher_params
    teacher = state.params if teacher is None else teacher
    values = trials.evaluate(
      state.params,
      teacher,
      key,
      setting=_bare(setting),
      num_problems=_CURVE_PROBLEMS,
      num_samples=_CURVE_SAMPLES,
    )
    point: dict[str, float] = {"step": (block + 1) * run.evaluate_every}
    point |= {f"train/{name}": value for name, value in metrics.items()}
    point |= {name: float(value) for name, value in values.items()}
    if run.score_shares and not arm.like and trial.seed == 0:
      share = gradients.score_share(state.params, teacher, key, setting=setting)
      point["score_share"] = float(share)
    curve.append(point)
  after = held_out(comparison, state.params, setting, trial.is_tuning)
  if diverged_at is not None:
    # The run is lost, whatever its last good parameters could do.
    after = dict.fromkeys(after, 0.0)
    last = curve[-1] if curve else {"avg": 0.0}
    curve += [
      {**last, "avg": 0.0, "step": (block + 1) * run.evaluate_every}
      for block in range(len(curve), num_blocks)
    ]
  return {
    **dataclasses.asdict(trial),
    "num_sequences": setting.num_sequences,
    "step_seconds": seconds / max(num_blocks - 1, 1) / run.evaluate_every,
    "before": before or held_out(comparison, params, setting, trial.is_tuning),
    "after": after,
    "curve": curve,
    "diverged_at": diverged_at,
    "seconds": seconds,
  }


def measure_gradients(comparison: Comparison, say: Say) -> None:
  """How well each arm's gradient is estimated, where that is not there yet."""
  run = comparison.gradients
  for family in run.families:
    path = comparison.directory / "gradients" / f"{family}.json"
    if path.is_file() or not run.arms:
      continue
    of_family = comparison.families[family]
    found = gradients.qualities(
      {
        arm: setting_of(family, of_family, comparison.arms[arm])
        for arm in run.arms
      },
      _bases(comparison, family, of_family, say)[0],
      num_batches=run.num_batches,
      num_reference=run.num_reference,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {arm: dataclasses.asdict(q) for arm, q in found.items()}
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    say(f"{family}: gradients of {len(found)} arms measured")
    jax.clear_caches()


def read_gradients(
  directory: pathlib.Path,
) -> dict[str, dict[str, dict[str, float]]]:
  """What `measure_gradients` found: by family, by arm, by measure."""
  return {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((directory / "gradients").glob("*.json"))
  }


def setting_of(name: str, run: FamilyRun, arm: Arm) -> trials.Setting:
  """What is compiled for an arm in a family."""
  family = catalogue.FAMILIES[name]
  num_sequences = run.num_problems * run.group_size
  return trials.Setting(
    family=family,
    network=_network(run, family),
    objective=arm.objective,
    teacher=arm.teacher,
    num_problems=run.num_problems,
    group_size=run.group_size,
    mini_batch_size=(
      num_sequences // arm.mini_batches if arm.mini_batches > 1 else None
    ),
  )


def held_out(
  comparison: Comparison,
  params: qwen3.Params,
  setting: trials.Setting,
  is_tuning: bool,
) -> dict[str, float]:
  """Accuracy and pass@k on held-out problems, the same for every arm.

  What chooses a learning rate is measured on other problems than what is
  reported.
  """
  key = jax.random.fold_in(jax.random.key(2 if is_tuning else 1), _HELD_OUT)
  rewards = trials.held_out_rewards(
    params,
    key,
    setting=_bare(setting),
    num_problems=comparison.num_held_out,
    num_samples=4,
  )
  num_samples = max(comparison.pass_at)
  correct = trials.held_out_rewards(
    params,
    jax.random.fold_in(key, 1),
    setting=_bare(setting),
    num_problems=comparison.num_pass_problems,
    num_samples=num_samples,
  )
  counts = np.asarray(correct).sum(axis=1).astype(int)
  passed = {
    f"pass@{k}": float(np.mean([pass_at_k(num_samples, c, k) for c in counts]))
    for k in comparison.pass_at
  }
  return {"avg": float(np.mean(np.asarray(rewards))), **passed}


def _bare(setting: trials.Setting) -> trials.Setting:
  """The setting without its objective, so that all arms share a program."""
  return dataclasses.replace(setting, objective=None, teacher=None)


def _network(
  run: FamilyRun, family: families.Family
) -> architecture.Qwen3Config:
  return bases.network(
    **run.network.model_dump(),
    max_positions=1
    + family.hint_length
    + family.prompt_length
    + family.completion_length,
  )


def _bases(
  comparison: Comparison, name: str, run: FamilyRun, say: Say
) -> list[qwen3.Params]:
  """The family's base models; made where they are not there yet."""
  family = catalogue.FAMILIES[name]
  network = _network(run, family)
  _, template = qwen3.make(network)
  made = []
  for base in range(comparison.num_bases):
    folder = comparison.directory / "bases" / f"{name}-{base}"
    if not (folder / weights.CONFIG).is_file():
      params, excess = bases.train(
        jax.random.key(base),
        family=family,
        config=network,
        num_steps=run.base_steps,
        batch_size=128,
        learning_rate=run.base_learning_rate,
      )
      say(
        f"{name}: base {base} made, {float(np.mean(excess[-20:])):.4f} nats "
        "per token from its targets"
      )
      settings = architecture.to_hugging_face(
        network, eos_ids=(families.EOS,), pad_id=families.PAD
      )
      weights.save(folder, params, config_json=settings)
    made.append(weights.load(folder, template, tie_embeddings=False))
  return made
