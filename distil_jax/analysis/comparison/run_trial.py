"""Runs one trial of a family that comes with the package."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.comparison import (
  compiled_trial,
  gradient_noise,
  program_setting,
)
from distil_jax.analysis.comparison.build_program_setting import build_setting
from distil_jax.analysis.comparison.settings import Comparison
from distil_jax.analysis.comparison.trial_record import Trial, lost_points
from distil_jax.models import decoder
from distil_jax.training.evaluation import pass_at_k

# Folded into keys of held-out problems, which training steps never use.
_HELD_OUT = 2**31
# Samples per problem, and problems, of the evaluations on the learning curve.
_CURVE_SAMPLES, _CURVE_PROBLEMS = 4, 128


def run_trial(
  comparison: Comparison,
  trial: Trial,
  params: decoder.Params,
  before: dict[str, float] | None = None,
) -> dict[str, Any]:
  """Trains once and evaluates along the way.

  Args:
    comparison: Settings of family and arm.
    trial: What to train.
    params: The base model.
    before: Its accuracy on the held-out problems. None means that it is
      measured.

  Returns:
    The trial's record, which begins with its name.
  """
  run = comparison.families[trial.family]
  arm = comparison.arms[trial.arm]
  setting = build_setting(trial.family, run, arm)
  state = compiled_trial.init_state(setting, params, trial.seed)
  # Learning curves, tuning and the final accuracy each have problems of their
  # own, so that no choice is made on what is reported.
  key = jax.random.fold_in(
    jax.random.key(3 if trial.is_tuning else 0), _HELD_OUT
  )
  rate = np.float32(trial.learning_rate)
  curve, block_seconds, diverged_at = [], [], None
  num_steps = run.num_steps * arm.num_steps_factor
  for step in range(run.evaluate_every, num_steps + 1, run.evaluate_every):
    start = time.monotonic()
    state, metrics = compiled_trial.train(
      state, rate, setting=setting, num_steps=run.evaluate_every
    )
    metrics = jax.tree.map(float, metrics)
    if int(state.step) != step:
      # A step that is not finite leaves the state as it was, so all later
      # steps would fail as well.
      diverged_at = int(state.step)
      break
    block_seconds.append(time.monotonic() - start)
    teacher = state.teacher_params
    teacher = state.params if teacher is None else teacher
    values = compiled_trial.evaluate(
      state.params,
      teacher,
      key,
      setting=_without_objective(setting),
      num_problems=_CURVE_PROBLEMS,
      num_samples=_CURVE_SAMPLES,
    )
    point: dict[str, float] = {"step": step}
    point |= {f"train/{name}": value for name, value in metrics.items()}
    point |= {name: float(value) for name, value in values.items()}
    if run.score_shares and not arm.like and trial.seed == 0:
      share = gradient_noise.score_share(
        state.params,
        teacher,
        key,
        setting=setting,
        experience=compiled_trial.experience,
      )
      point["score_share"] = float(share)
    curve.append(point)
  # The first block includes compilation, so it counts only if it is alone.
  block_seconds = block_seconds[1:] or block_seconds
  after = held_out(comparison, state.params, setting, trial.is_tuning)
  if diverged_at is not None:
    # The run has lost what it learned, even if its last good parameters could
    # still do something.
    after = dict.fromkeys(after, 0.0)
    curve += lost_points(curve, every=run.evaluate_every, num_steps=num_steps)
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


def measure_gradients(
  settings: dict[str, program_setting.Setting],
  params: decoder.Params,
  *,
  num_batches: int,
  num_reference: int,
) -> dict[str, gradient_noise.Quality]:
  """Compares gradient estimators; see `gradient_noise.qualities`."""
  return gradient_noise.qualities(
    settings,
    params,
    experience=compiled_trial.experience,
    num_batches=num_batches,
    num_reference=num_reference,
  )


def held_out(
  comparison: Comparison,
  params: decoder.Params,
  setting: program_setting.Setting,
  is_tuning: bool,
) -> dict[str, float]:
  """Returns accuracy and pass@k on held-out problems, shared by all arms.

  Learning rates are chosen on other problems than those of the report.
  """
  key = jax.random.fold_in(jax.random.key(2 if is_tuning else 1), _HELD_OUT)
  rewards = compiled_trial.held_out_rewards(
    params,
    key,
    setting=_without_objective(setting),
    num_problems=comparison.num_held_out,
    num_samples=4,
  )
  num_samples = max(comparison.pass_at)
  correct = compiled_trial.held_out_rewards(
    params,
    jax.random.fold_in(key, 1),
    setting=_without_objective(setting),
    num_problems=comparison.num_pass_problems,
    num_samples=num_samples,
  )
  counts = np.asarray(correct).sum(axis=1).astype(int)
  pass_rates = {
    f"pass@{k}": float(np.mean([pass_at_k(num_samples, c, k) for c in counts]))
    for k in comparison.pass_at
  }
  return {"avg": float(np.mean(np.asarray(rewards))), **pass_rates}


def _without_objective(
  setting: program_setting.Setting,
) -> program_setting.Setting:
  """Returns the part of a setting that all arms share, to compile only once."""
  return dataclasses.replace(setting, objective=None, teacher=None)
