"""Samples, judges and builds a batch as a run does, for a few problems."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from distil_jax.analysis.teacher_check.records import Gathered, Run
from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.data import training_stream
from distil_jax.training import checkpoints, resume
from distil_jax.training.setup import steps, train_steps


def check_has_teacher(config: Config) -> None:
  """Refuses an objective that asks no teacher.

  Raises:
    ConfigError: there is nothing to check.
  """
  if not config.objective.needs_teacher:
    raise ConfigError(
      f"objective.kind={config.objective.kind} asks no teacher, so there is no "
      "signal to check; set objective.kind to distil, sdpo, opsd or minillm"
    )
  if config.teacher.server is not None:
    raise ConfigError(
      "the checks compare with the teacher's probabilities at every token, "
      f"which teacher.server.url={config.teacher.server.url} does not send; "
      "check a small model of the same family as teacher.model with "
      "teacher.server=null, and see the metrics teacher/unanswered and cost of "
      "a short run"
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


def load(trainer: Any, progress: Any) -> Run:
  """Returns the run at its last checkpoint, or before its first step.

  Args:
    trainer: a `Trainer` that has not trained; its parameters are donated.
    progress: shows what is read.
  """
  trainer.progress = progress
  template = steps.build_state_template(
    trainer.config, trainer.policy.params, trainer.optimizer, trainer.mesh
  )
  step_fn = compile_step(trainer)
  step, state = _load_state(trainer, template, progress)
  trainer.state = state
  return Run(trainer, step, state, step_fn)


def compile_step(trainer: Any) -> Any:
  """Returns the run's training step, which compiles when it is called.

  The weights of a teacher that is another model are read here.
  """
  config, params = trainer.config, trainer.policy.params
  template = steps.build_state_template(
    config, params, trainer.optimizer, trainer.mesh
  )
  return train_steps.compile_train_step(
    config, trainer.policy, trainer.optimizer, template, trainer.teacher_model
  )


def _load_state(trainer: Any, template: Any, progress: Any) -> tuple[int, Any]:
  """Returns step and training state."""
  config, params = trainer.config, trainer.policy.params
  directory = config.run_directory / "checkpoints"
  if directory.is_dir():
    with checkpoints.Checkpoints(directory) as saved:
      base, _ = steps.split_params(config, params)
      with progress.stage("restoring"):
        found = saved.read_newest(
          lambda step: resume.restore_state(
            config, saved, step, template, base
          )[0]
        )
      if found is not None:
        return found
  state = steps.build_first_state(config, params, trainer.optimizer, template)
  return 0, state


def gather(run: Run) -> Gathered:
  """Samples completions of a step's problems and builds its batch."""
  trainer = run.trainer
  position = run.step * trainer.config.rollout.num_problems
  problems = next(
    training_stream.build_stream(trainer.config, trainer.data, position)
  )
  experience = trainer.sample_and_judge(run.step, problems)
  assert experience is not None, "every objective with a teacher samples"
  batch, stats = trainer.build_batch(problems, experience, run.step)
  policy = trainer.policy
  return Gathered(
    config=trainer.config,
    experience=experience,
    batch=jax.tree.map(np.asarray, batch),
    stats=stats,
    tokenizer=policy.tokenizer,
    teacher_tokenizer=trainer.build_batch.teacher_tokenizer,
    teacher_tokenizers=trainer.build_batch.teacher.tokenizers,
    vocab_size=policy.config.vocab_size,
    num_tokens=policy.config.num_tokens,
  )
