"""Checkpoints: the state of a step and notes about it, saved as one."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

# Names and nesting of a checkpoint's arrays and notes. Raise it with every
# change that older code could not read, and let `restore` read all versions
# below. Checkpoints without a number are version 1.
LAYOUT_VERSION = 1
_LAYOUT = "layout_version"
# The note that names the frozen weights beside which adapters were trained.
BASE = "base_digest"


class CheckpointError(RuntimeError):
  """The error of a checkpoint that cannot be read; names it and the cure."""


class Checkpoints:
  """The checkpoints of one run.

  A step is complete or absent, because orbax writes under a temporary name.
  Saving continues in the background; `close` waits for it. Several processes
  all make the same calls, on the same folder.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int | None = None):
    """Opens a folder of checkpoints.

    Args:
      directory: the folder; it is made unless `keep` is None.
      keep: number of latest checkpoints to keep; None only reads, which is
        safe while another process writes.
    """
    self._manager = ocp.CheckpointManager(
      pathlib.Path(directory).absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, read_only=keep is None
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
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        notes=ocp.args.JsonSave({**notes, _LAYOUT: LAYOUT_VERSION}),
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
    self.notes(step)  # refuses a newer layout
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
      )
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
    self.notes(step)  # refuses a newer layout
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
    return restored[name]

  def notes(self, step: int) -> dict[str, Any]:
    """Returns the notes of a step, without the version of the layout.

    Raises:
      CheckpointError: see `restore`.
    """
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
      )
    notes = dict(restored["notes"])
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
      raise CheckpointError(
        f"{self._manager.directory / str(step)} was made with another model, "
        "or is damaged. If model.directory has changed, set it back; if not, "
        "remove this folder to go on from the checkpoint before it.\n"
        f"{error}"
      ) from error


def last_notes(directory: pathlib.Path) -> dict[str, Any]:
  """Returns the notes of a folder's last checkpoint; empty if it has none."""
  if not directory.is_dir():
    return {}
  with Checkpoints(directory) as saved:
    step = saved.latest_step
    return {} if step is None else saved.notes(step)


def last_params(directory: pathlib.Path, base: Any) -> tuple[int | None, Any]:
  """Returns step and student's parameters of a folder's last checkpoint.

  Args:
    directory: the folder of checkpoints; it need not exist.
    base: the parameters of the base model.

  Returns:
    Step and parameters; None and the base model's if there is no checkpoint.

  Raises:
    CheckpointError: the checkpoint cannot be read.
  """
  if not directory.is_dir():
    return None, base
  with Checkpoints(directory) as saved:
    step = saved.latest_step
    if step is None:
      return None, base
    return step, saved.read_params(step, template(base))


def template(state: Any) -> Any:
  """Returns shape, dtype and sharding of each array, for `restore`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
