"""Checkpoints: the state of a step and notes about it, saved as one."""

import contextlib
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import orbax.checkpoint as ocp

from distil_jax.distributed import collectives
from distil_jax.training import checksums, quiet_reads, retention

# Names and nesting of a checkpoint's arrays and notes. Raise it with every
# change that older code could not read, and let `restore` read all versions
# below. Checkpoints without a number are version 1.
LAYOUT_VERSION = 1
_LAYOUT = "layout_version"
# The note that names the frozen weights beside which adapters were trained.
BASE = "base_digest"
# The notes that tell whether arrays and notes are as they were saved.
_CHECKSUMS = "checksums"
_DIGEST = "notes_digest"
# Failures of the machine, after which the same files may well be read.
_PASSING = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE")
# Damaged checkpoints of a run are moved here, beside the good ones' folder.
DAMAGED = "damaged_checkpoints"

T = TypeVar("T")
# The step of a checkpoint, or the one with the highest held-out accuracy.
Step = int | Literal["best"]


class CheckpointError(RuntimeError):
  """The error of a checkpoint that cannot be read; names it and the cure."""


class DamagedError(CheckpointError):
  """The error of a checkpoint whose files are incomplete or altered."""


class Checkpoints:
  """The checkpoints of one run.

  A step is complete or absent, because orbax writes under a temporary name.
  Saving continues in the background; `close` waits for it. Several processes
  all make the same calls, on the same folder.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    keep: int | None = None,
    keep_every: int | None = None,
    keep_best: int = 0,
    accuracies: Callable[[], Mapping[int, float]] = dict,
  ):
    """Opens a folder of checkpoints.

    Args:
      directory: the folder; it is made unless `keep` is None.
      keep: number of latest checkpoints to keep; None only reads, which is
        safe while another process writes.
      keep_every: steps that are multiples of it are kept too; None keeps none.
      keep_best: number of checkpoints with the highest accuracy to keep too.
      accuracies: returns the accuracy by step; called at each save if
        `keep_best` is not 0.
    """
    self._is_read_only = keep is None
    self._keeps_best = bool(keep_best)
    self._read_accuracies = accuracies
    self._accuracies: dict[int, float] = {}
    policy = None
    if keep is not None:
      policy = retention.build_policy(
        keep, keep_every, keep_best, self._accuracies
      )
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policy, read_only=self._is_read_only
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    is_failing = kind is not None and not issubclass(kind, KeyboardInterrupt)
    if is_failing and jax.process_count() > 1:
      # A save in progress needs the other processes, which may never come.
      return
    self.close()

  @property
  def latest_step(self) -> int | None:
    """The step of the latest checkpoint; None if there is none."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """The steps of all checkpoints, in their order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: dict[str, Any],
    notes: dict[str, Any],
  ) -> None:
    """Saves a step once; a second call for the same step does nothing.

    Args:
      step: training steps done.
      state: arrays, as a nested dictionary.
      notes: any JSON values; the version of the layout is added.
    """
    # orbax raises if a step is saved twice, even if it is told to overwrite.
    if self.latest_step == step:
      return
    if self._keeps_best:
      self._accuracies.update(self._read_accuracies())
    noted = {
      **notes,
      _LAYOUT: LAYOUT_VERSION,
      _CHECKSUMS: checksums.checksums(state),
    }
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        notes=ocp.args.JsonSave({**noted, _DIGEST: checksums.digest(noted)}),
      ),
    )

  def restore(self, step: int, template: dict[str, Any]) -> dict[str, Any]:
    """Reads a step's arrays onto any mesh and any number of processes.

    Args:
      step: a step that was saved.
      template: the same tree as was saved, of `jax.ShapeDtypeStruct` with
        shardings.

    Raises:
      CheckpointError: the checkpoint is damaged, does not fit the template, or
        was written by a newer version of this package.
    """
    expected = self._all_notes(step)[_CHECKSUMS]
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
      )
    self._check_arrays(step, expected, restored["state"])
    return restored["state"]

  def read_params(
    self, step: int, template: dict[str, Any], name: str = "params"
  ) -> dict[str, Any]:
    """Reads the parameters alone; needs no data and no optimizer.

    Args:
      step: a step that was saved.
      template: as for `restore`, of the parameters.
      name: `params`, the student's, or `teacher_params`.

    Raises:
      CheckpointError: see `restore`.
    """
    expected = self._all_notes(step)[_CHECKSUMS]
    path = self._manager.directory / str(step) / "state"
    with self._reading(step), ocp.PyTreeCheckpointer() as reader:
      tree = {name: template}
      arguments = ocp.checkpoint_utils.construct_restore_args(tree)
      # A partial restore leaves teacher and moments on the disk, which take
      # several times the memory of the parameters.
      restored = reader.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=tree, restore_args=arguments, partial_restore=True
        ),
      )
      # What the files lack comes back as the shape that was asked for.
      if not all(isinstance(x, jax.Array) for x in jax.tree.leaves(restored)):
        raise ValueError(
          "it lacks some of these parameters: is model.lora that of the run?"
        )
    self._check_arrays(step, expected, restored)
    return restored[name]

  def notes(self, step: int) -> dict[str, Any]:
    """Returns the notes of a step as they were given to `save`.

    Raises:
      CheckpointError: see `restore`.
    """
    notes = self._all_notes(step)
    del notes[_CHECKSUMS]
    return notes

  def read_newest(self, read: Callable[[int], T]) -> tuple[int, T] | None:
    """Reads the newest checkpoint that is not damaged.

    A warning names those that were skipped, and why. A folder that is open for
    saving moves them into `damaged_checkpoints` beside it, because their steps
    will be saved again. With several processes all must call this.

    Args:
      read: takes a step and returns what it reads of that checkpoint.

    Returns:
      The step and what was read; None if there are no checkpoints.

    Raises:
      CheckpointError: all checkpoints are damaged, or `read` refuses one that
        is not.
    """
    with quiet_reads.without_late_answers():
      return self._read_newest(read)

  def _read_newest(self, read: Callable[[int], T]) -> tuple[int, T] | None:
    reasons: dict[int, DamagedError] = {}
    for step in reversed(self.steps):
      found: list[T] = []
      error = None
      try:
        found.append(read(step))
      except DamagedError as damage:
        # Its frames hold the arrays that were read, which may fill a device.
        error = damage.with_traceback(None)
      # A process may be the only one to read a damaged part.
      if collectives.global_max(int(error is not None)):
        path = self._manager.directory / str(step)
        reasons[step] = error or DamagedError(
          f"{path} cannot be read by another process"
        )
        continue
      self._leave(reasons, step)
      return step, found[0]
    if not reasons:
      return None
    if len(reasons) == 1:
      raise next(iter(reasons.values()))
    listed = "\n".join(f"* {error}" for error in reasons.values())
    raise CheckpointError(f"no checkpoint can be read:\n{listed}")

  def _leave(self, reasons: Mapping[int, DamagedError], used: int) -> None:
    """Says which checkpoints are skipped, and moves them aside if it may."""
    if not reasons:
      return
    directory = pathlib.Path(self._manager.directory)
    aside = None if self._is_read_only else directory.with_name(DAMAGED)
    collectives.wait_for_all("all have read the checkpoints")
    for step, error in reasons.items():
      moved = "" if aside is None else f"; it is kept in {aside}"
      warnings.warn(
        f"skipped the checkpoint of step {step}, using step {used}{moved}: "
        + " ".join(str(error).split())[:400],
        stacklevel=3,
      )
      if aside is not None and jax.process_index() == 0:
        aside.mkdir(exist_ok=True)
        number = sum(1 for _ in aside.glob(f"{step}.*"))
        (directory / str(step)).rename(aside / f"{step}.{number}")
    if aside is not None:
      collectives.wait_for_all("damaged checkpoints are moved aside")
      self._manager.reload()

  def _all_notes(self, step: int) -> dict[str, Any]:
    """Returns notes and checksums, which older checkpoints lack."""
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
      )
    notes = dict(restored["notes"])
    digest = notes.pop(_DIGEST, None)
    # Both are written at once: one without the other is an altered name.
    if (digest is None) != (_CHECKSUMS not in notes) or digest not in (
      None,
      checksums.digest(notes),
    ):
      raise self._damaged(step, "its notes are not those that were saved")
    notes.setdefault(_CHECKSUMS, {})
    version = notes.pop(_LAYOUT, 1)
    if version > LAYOUT_VERSION:
      raise CheckpointError(
        f"{self._manager.directory / str(step)} has layout version {version}, "
        f"but this distil_jax reads versions up to {LAYOUT_VERSION}. Update "
        "distil_jax to the version that wrote it, or newer"
      )
    return notes

  def wait(self) -> None:
    """Blocks until everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Closes the folder, after waiting for saves in progress."""
    self.wait()
    self._manager.close()

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Names the checkpoint in the error if it cannot be read."""
    try:
      yield
    # The kind of exception depends on the damage; orbax raises even Exception.
    except Exception as error:
      if isinstance(error, (MemoryError, PermissionError, TimeoutError)) or any(
        status in str(error) for status in _PASSING
      ):
        path = self._manager.directory / str(step)
        raise CheckpointError(f"{path} cannot be read now: {error}") from error
      raise self._damaged(step, f"\n{error}") from error

  def _check_arrays(
    self, step: int, expected: Mapping[str, str], tree: Any
  ) -> None:
    if names := checksums.changed(expected, tree):
      raise self._damaged(
        step, f"the numbers have changed of {', '.join(names[:3])}"
      )

  def _damaged(self, step: int, reason: str) -> DamagedError:
    return DamagedError(
      f"{self._manager.directory / str(step)} was made with another model, "
      f"or is damaged; if model.directory has changed, set it back: {reason}"
    )


def last_params(
  directory: pathlib.Path,
  base: Any,
  *,
  name: str = "params",
  step: Step | None = None,
  check: Callable[[dict[str, Any]], None] = lambda notes: None,
) -> tuple[int | None, Any]:
  """Returns step and parameters of a folder's last undamaged checkpoint.

  Args:
    directory: the folder of checkpoints; it need not exist.
    base: the parameters of the base model, or their template.
    name: see `Checkpoints.read_params`.
    step: reads this step and no other, or the one with the highest held-out
      accuracy; None takes the last.
    check: takes the notes of the checkpoint and raises if it does not suit.

  Returns:
    Step and parameters; None and `base` if there is no checkpoint.

  Raises:
    CheckpointError: no checkpoint can be read, or there is none of that step.
  """

  def read(chosen: int) -> dict[str, Any]:
    check(saved.notes(chosen))
    return saved.read_params(chosen, template(base), name)

  found = None
  if directory.is_dir():
    with Checkpoints(directory) as saved:
      if step == "best":
        step = _best_step(directory, saved.steps)
      if step in saved.steps:
        return step, read(step)
      there = saved.steps
      found = saved.read_newest(read) if step is None else None
  else:
    there = []
  if step is not None:
    listed = ", ".join(map(str, there)) or "none"
    raise CheckpointError(
      f"{directory} has no checkpoint of step {step}; there are: {listed}"
    )
  return found or (None, base)


def _best_step(directory: pathlib.Path, steps: Sequence[int]) -> int:
  """Returns the step with the highest held-out accuracy."""
  accuracies = retention.read_accuracies(directory.parent)
  if best := retention.by_accuracy(steps, accuracies):
    return best[0]
  raise CheckpointError(
    f"no checkpoint in {directory} has been evaluated, so none is known to be "
    "the best; set evaluation.every to a multiple of checkpoint.every, or "
    "choose one with --step N"
  )


def template(state: Any) -> Any:
  """Returns shape, dtype and sharding of each array, for `restore`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
