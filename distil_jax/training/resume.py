"""Saves a run, and finds, checks and restores what it goes on from."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.distributed import process_group, signals
from distil_jax.training import (
  changed_settings,
  checkpoints,
  content,
  run_checks,
  train_state,
)
from distil_jax.training.logging.monitors import MonitorStop
from distil_jax.training.logging.progress import Progress
from distil_jax.training.remote_teacher.asking import TeacherServerError
from distil_jax.training.setup.model_directory import (
  base_digest,
  check_same_base,
)
from distil_jax.training.setup.teacher_models import (
  Teachers,
  check_resumed_teacher,
)
from distil_jax.training.skipped_updates import TrainingError

# The key of a checkpoint's notes about a teacher that is another model.
_TEACHER = "teacher_model"
# And of what is read from the paths in its settings.
_CONTENT = "content"
# Errors on which all processes agree, so that they can save together.
_AGREED = (KeyboardInterrupt, TeacherServerError, MonitorStop, TrainingError)


@dataclasses.dataclass(frozen=True)
class RunNotes:
  """Holds what a run goes on with besides its state.

  Attributes:
    seconds: time that the run has taken so far.
    position: problems that the run has drawn from its data.
    prompt_widths: widths of prompts, see `trimming.Trimmer`.
    seconds_by_cause: what the time was spent on, see `run_clock.RunClock`.
    skipped: updates that were skipped, all of the run and the last in a row.
  """

  seconds: float = 0.0
  position: int = 0
  prompt_widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
  seconds_by_cause: Mapping[str, float] = dataclasses.field(
    default_factory=dict
  )
  skipped: Sequence[int] = (0, 0)


def open_folder(
  config: Config, accuracies: Callable[[], Mapping[int, float]]
) -> checkpoints.Checkpoints:
  """Opens the run's folder of checkpoints for saving.

  Args:
    config: the run's settings.
    accuracies: returns the held-out accuracy by step, in all processes.
  """
  section = config.checkpoint
  return checkpoints.Checkpoints(
    config.run_directory / "checkpoints",
    keep=section.keep,
    keep_every=section.keep_every,
    keep_best=section.keep_best,
    accuracies=accuracies,
  )


def with_settings_of_run(config: Config) -> Config:
  """Returns the config with what the run has where a default has changed.

  A run that began before goes on as it was, unless its config names another
  value.

  Args:
    config: the settings of a run that may have checkpoints.
  """
  folder = config.run_directory / "checkpoints"
  if "decay" in config.optimizer.model_fields_set or not folder.is_dir():
    return config
  decay = config.optimizer.decay
  with checkpoints.Checkpoints(folder) as saved:
    for step in reversed(saved.steps):
      try:
        notes = saved.notes(step)
      except checkpoints.CheckpointError:
        continue  # whoever reads the checkpoint says so
      tree = run_checks.with_defaults(notes["config"])
      decay = tree["optimizer"].get("decay", decay)
      break
  if decay == config.optimizer.decay:
    return config
  optimizer = config.optimizer.model_copy(update={"decay": decay})
  return config.model_copy(update={"optimizer": optimizer})


def save_state(
  config: Config,
  saved: checkpoints.Checkpoints,
  state: train_state.TrainState,
  notes: RunNotes,
  teacher: Teachers | None = None,
) -> None:
  """Saves the state under its step, with the settings that led to it.

  Args:
    config: the run's settings; a later start compares its own with them.
    saved: the run's checkpoints.
    state: the state after `state.step` steps.
    notes: what the run goes on with besides.
    teacher: the teacher, if it is another model.
  """
  found = {
    "config": config.model_dump(mode="json"),
    **dataclasses.asdict(notes),
    _CONTENT: content.digests(config),
  }
  if teacher is not None:
    found[_TEACHER] = teacher.notes()
  if config.model.lora is not None:
    found[checkpoints.BASE] = base_digest(config)
  # An interrupt waits until the checkpoint is handed over as a whole.
  with signals.deferred():
    saved.save(int(state.step), _as_dict(state), found)


def save_interrupted(
  config: Config,
  saved: checkpoints.Checkpoints,
  state: train_state.TrainState,
  notes: RunNotes,
  progress: Progress,
  error: BaseException,
  teacher: Teachers | None = None,
) -> None:
  """Saves the steps since the last checkpoint of a run that is ending early.

  Several processes all stop after the same step. Nothing is raised, so that
  the error that ended the run is the one that is told.

  Args:
    config: see `save_state`.
    saved: see `save_state`.
    state: see `save_state`.
    notes: see `save_state`.
    progress: shows what is saved.
    error: what ended the run.
    teacher: see `save_state`.
  """
  is_interrupted = isinstance(error, KeyboardInterrupt)
  why = "interrupted" if is_interrupted else f"ended by {type(error).__name__}"
  if jax.process_count() > 1 and not (
    process_group.is_joined() and isinstance(error, _AGREED)
  ):
    # The processes have not agreed where to stop, and saving needs them all.
    progress.message(f"{why}: the run can go on from its last checkpoint")
    return
  if any(x.is_deleted() for x in jax.tree.leaves(state)):
    progress.message(
      f"{why}: the failed step took the state with it; the run can go on from "
      "its last checkpoint"
    )
    return
  step = None
  try:
    # A step that failed on the devices fails here once more.
    step = int(state.step)
    if step == 0:
      return
    save_state(config, saved, state, notes, teacher)
    saved.wait()
  except Exception as second:  # whatever orbax raises, such as a full disk
    which = "its last steps" if step is None else f"step {step}"
    progress.message(
      f"{why}: {which} could not be saved ({second}); the run can go on from "
      "its last checkpoint"
    )
    return
  progress.message(
    f"{why}: step {step} is saved; the same command goes on from it"
  )


def check_resumable(
  config: Config,
  saved: checkpoints.Checkpoints,
  teacher: Teachers | None = None,
) -> int | None:
  """Refuses checkpoints that this run must not go on from.

  Returns:
    The step of the last checkpoint whose notes can be read; None if there is
    no checkpoint.

  Raises:
    ConfigError: `checkpoint.resume` is false, or the checkpoint was made with
      other settings or another teacher.
    CheckpointError: no checkpoint can be read.
  """
  step = saved.latest_step
  if step is not None and not config.checkpoint.resume:
    raise ConfigError(
      f"{config.run_directory} has a checkpoint of step {step}, but "
      "checkpoint.resume=false; set another train.run_directory, or remove "
      "that folder"
    )
  found = saved.read_newest(
    lambda step: _checked_notes(config, saved, step, teacher)
  )
  return found and found[0]


def _checked_notes(
  config: Config,
  saved: checkpoints.Checkpoints,
  step: int,
  teacher: Teachers | None,
) -> tuple[dict[str, Any], Mapping[str, changed_settings.Change]]:
  """Returns a checkpoint's notes and the changes of settings since then."""
  notes = saved.notes(step)
  before = notes.get(_CONTENT)
  changes = run_checks.check_same_settings(
    notes["config"],
    config,
    step,
    before and (before, content.digests(config)),
  )
  check_resumed_teacher(config, notes.get(_TEACHER), teacher, step)
  where = f"{config.run_directory} has a checkpoint of step {step} that"
  check_same_base(config, notes.get(checkpoints.BASE), where)
  return notes, changes


def resume_state(
  config: Config,
  saved: checkpoints.Checkpoints,
  template: train_state.TrainState,
  progress: Progress,
  base_params: Any = None,
  teacher: Teachers | None = None,
) -> tuple[train_state.TrainState, RunNotes]:
  """Restores the last checkpoint that is not damaged, to go on from it.

  Changes of settings that are allowed are noted in the run's folder.

  Args:
    config: the run's settings.
    saved: the run's checkpoints, at least one.
    template: shape, dtype and sharding of each array of the state.
    progress: shows where the run goes on.
    base_params: what the adapters of the checkpoint stand beside; None without
      adapters.
    teacher: the teacher, if it is another model.

  Returns:
    The state, and what the run goes on with besides.

  Raises:
    ConfigError: see `check_resumable`.
    CheckpointError: no checkpoint can be read.
  """

  def read(step: int):
    _, changes = _checked_notes(config, saved, step, teacher)
    with progress.stage("restoring"):
      return changes, restore_state(config, saved, step, template, base_params)

  found = saved.read_newest(read)
  assert found is not None, "there is a checkpoint to go on from"
  step, (changes, (state, notes)) = found
  if jax.process_index() == 0:
    changed_settings.note(config.run_directory, step, changes)
  num_steps = config.train.num_steps
  progress.message(
    f"going on from step {step}"
    if step < num_steps
    else f"step {step} of {num_steps} is done: raise train.num_steps to go on"
  )
  return state, notes


def restore_state(
  config: Config,
  saved: checkpoints.Checkpoints,
  step: int,
  template: train_state.TrainState,
  base_params: Any = None,
) -> tuple[train_state.TrainState, RunNotes]:
  """Restores a checkpoint.

  Args:
    config, saved, template, base_params: see `resume_state`.
    step: the step to restore.

  Raises:
    CheckpointError: the checkpoint cannot be read.
  """
  notes = saved.notes(step)
  # Older checkpoints have no widths and causes, and no position: each step drew
  # one batch.
  position = notes.get("position", step * config.rollout.num_problems)
  restored = saved.restore(step, _as_dict(template))
  state = train_state.TrainState(**restored)
  return (
    dataclasses.replace(state, base_params=base_params),
    RunNotes(
      notes["seconds"],
      position,
      notes.get("prompt_widths", {}),
      notes.get("seconds_by_cause", {"unknown": notes["seconds"]}),
      notes.get("skipped", (0, 0)),
    ),
  )


def _as_dict(state: train_state.TrainState) -> dict[str, Any]:
  # Not `asdict`, which would copy every array. The frozen weights are those of
  # `model.directory`.
  return {
    f.name: getattr(state, f.name)
    for f in dataclasses.fields(state)
    if f.name != "base_params"
  }
