"""Samples, judges and builds a batch as a run does, for a few problems."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.teacher_check.records import Gathered
from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import problems as data_problems
from distil_jax.training import checkpoints, resume
from distil_jax.training.setup import steps


def check_has_teacher(config: Config) -> None:
  """Refuses an objective that asks no teacher, and one that is not checked.

  Raises:
    ConfigError: there is nothing to check, or the teacher is another model.
  """
  if not config.objective.needs_teacher:
    raise ConfigError(
      f"objective.kind={config.objective.kind} asks no teacher, so there is no "
      "signal to check; set objective.kind to distil, sdpo, opsd or minillm"
    )
  other = config.teacher.model
  if other is not None:
    # The plain passes know one network, and would check the student by itself.
    raise ConfigError(
      f"teacher.model.directory={other.directory} is another model, and "
      "check-teacher reads only the student's own network; set "
      "teacher.model=null to check the rest of the run"
    )


def fewer_problems(config: Config, num_problems: int) -> Sequence[str]:
  """Returns overrides with which a step has only so many problems.

  Mini-batches and micro-batches shrink to sizes that divide what is left.
  """
  num_sequences = num_problems * config.rollout.group_size
  found = [f"rollout.num_problems={num_problems}"]
  whole = num_sequences
  for name in ("mini_batch_size", "micro_batch_size"):
    size = getattr(config.optimizer, name)
    if size is not None:
      # Both are multiples of the group or divide it, and so is their divisor.
      whole = math.gcd(size, whole)
      found.append(f"optimizer.{name}={whole}")
  return found


def load_state(trainer: Any, progress: Any) -> tuple[int, Any]:
  """Returns step and training state: the last checkpoint's, or the first.

  Args:
    trainer: a `Trainer` that has not trained; its parameters are donated.
    progress: shows what is read.
  """
  config, params = trainer.config, trainer.policy.params
  template = steps.build_state_template(
    config, params, trainer.optimizer, trainer.mesh
  )
  directory = config.run_directory / "checkpoints"
  if directory.is_dir():
    with checkpoints.Checkpoints(directory) as saved:
      step = saved.latest_step
      if step is not None:
        base, _ = steps.split_params(config, params)
        state, _ = resume.restore_state(
          config, saved, step, template, progress, base
        )
        return step, state
  state = steps.build_first_state(config, params, trainer.optimizer, template)
  return 0, state


def gather(trainer: Any, state: Any, step: int) -> Gathered:
  """Samples completions of a step's problems and builds its batch.

  Args:
    trainer: a `Trainer` whose `progress` is set.
    state: from `load_state`.
    step: the number of steps done.
  """
  trainer.state = state
  config = trainer.config
  problems = next(data_problems.build_batches(config, trainer.data, step))
  experience = trainer.sample_and_judge(step, problems)
  assert experience is not None, "every objective with a teacher samples"
  batch, stats = trainer.build_batch(problems, experience)
  return Gathered(
    config=config,
    experience=experience,
    batch=jax.tree.map(np.asarray, batch),
    stats=stats,
    tokenizer=trainer.policy.tokenizer,
    teacher_tokenizer=trainer.policy.tokenizer,
    vocab_size=trainer.policy.config.vocab_size,
  )
