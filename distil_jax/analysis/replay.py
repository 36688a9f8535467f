"""Computes a training step of a run again, from its recorded batch."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from distil_jax.training import (
  checkpoints,
  recorded_steps,
  resume,
  skipped_updates,
)
from distil_jax.training.setup import steps as setup_step
from distil_jax.training.setup import train_steps


@dataclasses.dataclass(frozen=True)
class Replay:
  """Holds what a step computed, then and now.

  Attributes:
    start: the step of the checkpoint, or 0, that it began from.
    recorded: metrics of the step in the run.
    computed: metrics of the same step now.
  """

  start: int
  recorded: Mapping[str, float]
  computed: Mapping[str, float]

  def differences(self) -> dict[str, tuple[float | None, float | None]]:
    """Returns the metrics that differ in any bit, by name."""
    names = sorted({*self.recorded, *self.computed})
    pairs = {n: (self.recorded.get(n), self.computed.get(n)) for n in names}
    # As text NaN equals NaN, and 0 is not −0.
    return {n: pair for n, pair in pairs.items() if len({*map(repr, pair)}) > 1}


def replay(trainer: Any, step: int, progress: Any) -> Replay:
  """Computes a step, and those between it and the checkpoint before it.

  Args:
    trainer: a `Trainer` that has not trained; its parameters are donated.
    step: the training step, counted from 1.
    progress: shows what is read.

  Raises:
    RecordError: a batch that is needed is not there, or damaged.
    CheckpointError: the checkpoint cannot be read.
  """
  config, params = trainer.config, trainer.policy.params
  directory: pathlib.Path = config.run_directory
  template = setup_step.build_state_template(
    config, params, trainer.optimizer, trainer.mesh
  )
  step_fn = train_steps.build_host_step(
    config, trainer.policy, trainer.optimizer, template, trainer.teacher_model
  )
  recorded_steps.read(directory, step)  # before anything that takes long
  start, state, notes = _state_before(trainer, template, step, progress)
  step_fn.trimmer.widths = dict(notes.prompt_widths)
  found, metrics = None, {}
  for number in range(start + 1, step + 1):
    found = recorded_steps.read(directory, number)
    if found.guard is not None:
      places = jax.tree.map(lambda x: x.sharding, template.guard)
      state = dataclasses.replace(
        state, guard=jax.device_put(found.guard, places)
      )
    progress.message(f"computing step {number}")
    state, values = step_fn(state, found.batch)
    metrics = {name: float(x) for name, x in values.items()}
    if int(state.step) < number:
      state = skipped_updates.with_step_done(state)
  assert found is not None
  return Replay(start, found.metrics, metrics)


def _state_before(trainer: Any, template: Any, step: int, progress: Any):
  """Returns step, state and notes of the last checkpoint before a step.

  Only one counts from which the batches up to the step are there.
  """
  config, params = trainer.config, trainer.policy.params
  there = set(recorded_steps.steps(config.run_directory))
  starts = [n for n in range(step) if there.issuperset(range(n + 1, step + 1))]
  folder = config.run_directory / "checkpoints"
  saved_steps: list[int] = []
  if folder.is_dir():
    with checkpoints.Checkpoints(folder) as saved:
      saved_steps = saved.steps
      if found := [n for n in saved_steps if n in starts]:
        base, _ = setup_step.split_params(config, params)
        with progress.stage("restoring"):
          state, notes = resume.restore_state(
            config, saved, found[-1], template, base
          )
        return found[-1], state, notes
  if 0 not in starts:
    raise recorded_steps.RecordError(
      f"step {step} follows from a checkpoint and the batches after it, but "
      f"{config.run_directory} has checkpoints of steps {saved_steps} and "
      f"batches from step {starts[0] + 1} on; let logging.kept_batches be at "
      "least checkpoint.every"
    )
  state = setup_step.build_first_state(
    config, params, trainer.optimizer, template
  )
  return 0, state, resume.RunNotes()
