"""One trial on the bench: what is compiled for it, trained and measured."""

import dataclasses
import functools
import os
import pathlib
import platform
import time
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.comparison import (
  base_models,
  compiled_trial,
  evaluation,
  gradient_noise,
  task_list,
  tasks,
  training,
  trial_setting,
)
from distil_jax.analysis.comparison.settings import Arm, Comparison, FamilyRun
from distil_jax.analysis.comparison.trial_store import Trial
from distil_jax.models import decoder, decoder_config
from distil_jax.training.evaluation import pass_at_k

_HELD_OUT = 2**31
# Samples a problem on the learning curve, and problems of its evaluations.
_CURVE_SAMPLES, _CURVE_PROBLEMS = 4, 128


def run_trial(
  comparison: Comparison,
  trial: Trial,
  params: decoder.Params,
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
  state = compiled_trial.init_state(setting, params, trial.seed)
  key = jax.random.fold_in(
    jax.random.key(3 if trial.is_tuning else 0), _HELD_OUT
  )
  rate = np.float32(trial.learning_rate)
  curve, block_seconds, diverged_at = [], [], None
  num_steps = run.num_steps * arm.num_steps_factor
  for step in range(run.evaluate_every, num_steps + 1, run.evaluate_every):
    begun = time.monotonic()
    state, metrics = compiled_trial.train(
      state, rate, setting=setting, num_steps=run.evaluate_every
    )
    metrics = jax.tree.map(float, metrics)
    if int(state.step) != step:
      # A step that is not finite leaves the state as it was, for ever.
      diverged_at = int(state.step)
      break
    block_seconds.append(time.monotonic() - begun)
    teacher = state.teacher_params
    teacher = state.params if teacher is None else teacher
    values = evaluation.evaluate(
      state.params,
      teacher,
      key,
      setting=_bare(setting),
      num_problems=_CURVE_PROBLEMS,
      num_samples=_CURVE_SAMPLES,
    )
    point: dict[str, float] = {"step": step}
    point |= {f"train/{name}": value for name, value in metrics.items()}
    point |= {name: float(value) for name, value in values.items()}
    if run.score_shares and not arm.like and trial.seed == 0:
      share = gradient_noise.score_share(
        state.params, teacher, key, setting=setting
      )
      point["score_share"] = float(share)
    curve.append(point)
  # The first block holds the compilation, unless it is the only one.
  block_seconds = block_seconds[1:] or block_seconds
  after = held_out(comparison, state.params, setting, trial.is_tuning)
  if diverged_at is not None:
    # The run is lost, whatever its last good parameters could do.
    after = dict.fromkeys(after, 0.0)
    curve += training.lost(curve, every=run.evaluate_every, num_steps=num_steps)
  return {
    **dataclasses.asdict(trial),
    "num_sequences": setting.num_sequences,
    "step_seconds": (
      sum(block_seconds) / max(len(block_seconds), 1) / run.evaluate_every
    ),
    "before": before or held_out(comparison, params, setting, trial.is_tuning),
    "after": after,
    "curve": curve,
    "diverged_at": diverged_at,
    "seconds": sum(block_seconds),
  }


def setting_of(name: str, run: FamilyRun, arm: Arm) -> trial_setting.Setting:
  """What is compiled for an arm in a family."""
  family = task_list.FAMILIES[name]
  num_sequences = run.num_problems * run.group_size
  return trial_setting.Setting(
    family=family,
    network=network_of(run, family),
    objective=arm.objective,
    teacher=arm.teacher,
    num_problems=run.num_problems,
    group_size=run.group_size,
    mini_batch_size=(
      num_sequences // arm.mini_batches if arm.mini_batches > 1 else None
    ),
    decay_steps=(
      run.num_steps * arm.num_steps_factor if run.schedule == "cosine" else None
    ),
  )


def network_of(
  run: FamilyRun, family: tasks.Family
) -> decoder_config.DecoderConfig:
  """Student and teacher, with room for the family's sequences."""
  return base_models.network(
    **run.network.model_dump(),
    max_positions=1
    + family.hint_length
    + family.prompt_length
    + family.completion_length,
  )


def held_out(
  comparison: Comparison,
  params: decoder.Params,
  setting: trial_setting.Setting,
  is_tuning: bool,
) -> dict[str, float]:
  """Accuracy and pass@k on held-out problems, the same for every arm.

  What chooses a learning rate is measured on other problems than what is
  reported.
  """
  key = jax.random.fold_in(jax.random.key(2 if is_tuning else 1), _HELD_OUT)
  rewards = evaluation.held_out_rewards(
    params,
    key,
    setting=_bare(setting),
    num_problems=comparison.num_held_out,
    num_samples=4,
  )
  num_samples = max(comparison.pass_at)
  correct = evaluation.held_out_rewards(
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


def _bare(setting: trial_setting.Setting) -> trial_setting.Setting:
  """The setting without its objective, so that all arms share a program."""
  return dataclasses.replace(setting, objective=None, teacher=None)


@functools.cache
def device() -> str:
  """What this process computes on, in words."""
  kind = jax.devices()[0].device_kind
  if kind != "cpu":
    return f"{jax.device_count()} x {kind}"
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
  names = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
  return f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"
