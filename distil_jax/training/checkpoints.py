"""Checkpoints: state and notes of a step, saved as one.

The position in the data is not in them: it is the step.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp


class CheckpointError(RuntimeError):
  """A checkpoint that cannot be read; the message names it and the cure."""


class Checkpoints:
  """The checkpoints of one run.

  A step is complete or absent: orbax writes under a temporary name. Saving
  goes on in the background; `close` waits for it. Of several processes all make
  the same calls, on the same folder.
  """

  def __init__(self, directory: str | pathlib.Path, *, keep: int | None = None):
    """Opens a folder of checkpoints.

    Args:
      directory: made if this is to write.
      keep: how many of the latest to keep; None only reads, and may do so
        while another process writes.
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
      return  # what is being written needs the others, who may never come
    self.close()

  @property
  def latest_step(self) -> int | None:
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
      notes: anything JSON.
    """
    if self.latest_step == step:
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        notes=ocp.args.JsonSave(notes),
      ),
    )

  def restore(self, step: int, template: dict[str, Any]) -> dict[str, Any]:
    """Reads a step's arrays, on whatever mesh and however many processes.

    Args:
      step: one that was saved.
      template: `jax.ShapeDtypeStruct` with shardings, same tree as saved.

    Raises:
      CheckpointError: it is damaged, or does not fit the template.
    """
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(template))
      )
    return restored["state"]

  def read_params(self, step: int, template: dict[str, Any]) -> dict[str, Any]:
    """Reads the student's parameters alone; needs no data and no optimiser.

    Raises:
      CheckpointError: see `restore`.
    """
    path = self._manager.directory / str(step) / "state"
    with self._reading(step), ocp.PyTreeCheckpointer() as reader:
      tree = {"params": template}
      arguments = ocp.checkpoint_utils.construct_restore_args(tree)
      restored = reader.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=tree, restore_args=arguments, partial_restore=True
        ),
      )
    return restored["params"]

  def notes(self, step: int) -> dict[str, Any]:
    """What was noted with a step.

    Raises:
      CheckpointError: see `restore`.
    """
    with self._reading(step):
      restored = self._manager.restore(
        step, args=ocp.args.Composite(notes=ocp.args.JsonRestore())
      )
    return restored["notes"]

  def wait(self) -> None:
    """Returns when all that was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for what is being written."""
    self.wait()
    self._manager.close()

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Says which checkpoint it is that cannot be read."""
    try:
      yield
    # Which exception depends on the damage; orbax raises plain Exception too.
    except Exception as error:
      raise CheckpointError(
        f"{self._manager.directory / str(step)} was made with another model, "
        "or is damaged. Restore model.directory if it has changed; if not, "
        "remove this folder to go on from the checkpoint before it.\n"
        f"{error}"
      ) from error


def last_params(directory: pathlib.Path, base: Any) -> tuple[int | None, Any]:
  """The step and the student's parameters of a folder's last checkpoint.

  Args:
    directory: of checkpoints; it need not be there.
    base: parameters of the base model.

  Returns:
    None and those of the base model where there is no checkpoint.

  Raises:
    CheckpointError: it cannot be read.
  """
  if not directory.is_dir():
    return None, base
  with Checkpoints(directory) as saved:
    step = saved.latest_step
    if step is None:
      return None, base
    return step, saved.read_params(step, template(base))


def template(state: Any) -> Any:
  """Shapes, types and shardings of arrays, for `restore`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
