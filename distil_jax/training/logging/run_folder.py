"""What a run leaves behind for people: its folder.

config.yaml         the resolved config
environment.json    versions, source revision, devices
metrics.jsonl       one line per logged step
evaluations.jsonl   one line per evaluation
rollouts/           samples as readable text
tensorboard/        the numbers of both `.jsonl` files
summary.json        written last: where it is, the run has ended
"""

import json
import operator
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorboardX

from distil_jax.training.logging.rollout_pages import (
  Sample,
  render_page,
  step_of_page,
)
from distil_jax.training.logging.run_info import environment
from distil_jax.training.logging.tables import ReportError, format_number, plain

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"


class RunFolder:
  """Writes the folder of one run.

  `start` comes first and `close` last. Every process may hold one; only the
  writer touches the disk. The `.jsonl` files are the record of the run: each
  line is on its way to disk when the call returns, and the lines after a
  checkpoint do not depend on whether the run was interrupted there.
  TensorBoard is written in the background and may miss the last second of a
  run that was killed.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    is_writer: bool = True,
    tensorboard: bool = True,
  ):
    """Remembers the place; nothing is written yet.

    Args:
      directory: the run's folder.
      is_writer: whether this process writes; true in one process only.
      tensorboard: whether TensorBoard files are written as well.
    """
    self.directory = pathlib.Path(directory)
    self._is_writer = is_writer
    self._wants_tensorboard = tensorboard
    self._tensorboard: tensorboardX.SummaryWriter | None = None

  def start(
    self,
    config_yaml: str,
    resume_step: int | None,
    *,
    device_kind: str,
    num_devices: int,
  ) -> None:
    """Creates the folder, or takes it back to the step that is resumed.

    What an earlier process wrote after that step goes, because this one will
    write it again; without a step to resume from, that is everything.

    Args:
      config_yaml: the resolved config.
      resume_step: last step of the checkpoint that was restored; None for a
        run from the beginning.
      device_kind: what the run computes on, for example `NVIDIA H100`.
      num_devices: how many of these, over all processes.

    Raises:
      ReportError: the place is taken by a file, or a line in the middle of an
        old report cannot be read.
    """
    if not self._is_writer:
      return
    if self.directory.exists() and not self.directory.is_dir():
      raise ReportError(
        f"{self.directory} is a file; set train.run_directory to a folder"
      )
    self.directory.mkdir(parents=True, exist_ok=True)
    last_step = -1 if resume_step is None else resume_step
    for name in (METRICS, EVALUATIONS):
      _keep_until(self.directory / name, last_step)
    for page in self.directory.glob("rollouts/step_*.md"):
      if step_of_page(page) > last_step:
        page.unlink()
    (self.directory / SUMMARY).unlink(missing_ok=True)
    _write_atomically(self.directory / "config.yaml", config_yaml)
    _write_json(
      self.directory / "environment.json",
      environment(device_kind=device_kind, num_devices=num_devices),
    )
    if self._wants_tensorboard:
      self._tensorboard = tensorboardX.SummaryWriter(
        str(self.directory / "tensorboard"),
        purge_step=last_step + 1,
        flush_secs=1,
        # File names carry seconds only: two quick starts must not collide.
        filename_suffix=f".from_step_{last_step + 1}",
      )

  def metrics(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends one line to `metrics.jsonl`.

    Args:
      step: training step, counted from 1.
      values: numbers by name; Python's, NumPy's or JAX's. Floats keep every
        bit; NaN and infinity, which JSON does not have, become null.

    Raises:
      ReportError: a value is not a single number.
    """
    if not self._is_writer:
      return
    record = _record(step, values)
    with (self.directory / METRICS).open("a", encoding="utf-8") as file:
      file.write(_json_line(record))
    self._to_tensorboard(record, prefix="")

  def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds one line to `evaluations.jsonl`, in place of one of the same step.

    Args:
      step: training steps that the policy has behind it; 0 is the base model.
      values: numbers by name, as in `metrics`.

    Raises:
      ReportError: a value is not a single number.
    """
    if not self._is_writer:
      return
    record = _record(step, values)
    path = self.directory / EVALUATIONS
    kept = [text for text, old in _lines(path) if old["step"] != step]
    # Rare, so the whole file is renewed: a run that was stopped between an
    # evaluation and the end evaluates that step again.
    _write_atomically(path, "".join([*kept, _json_line(record)]))
    self._to_tensorboard(record, prefix="evaluation/")

  def evaluations(self) -> list[dict[str, Any]]:
    """The evaluations so far, oldest first, those before a resume included."""
    return read_lines(self.directory / EVALUATIONS)

  def rollouts(self, step: int, samples: Sequence[Sample]) -> None:
    """Writes `rollouts/step_000010.md`, a page with samples of one step."""
    if not self._is_writer:
      return
    folder = self.directory / "rollouts"
    folder.mkdir(exist_ok=True)
    _write_atomically(
      folder / f"step_{step:06d}.md", render_page(step, samples)
    )

  def summary(self, values: Mapping[str, Any]) -> None:
    """Writes `summary.json`; `values` may be nested mappings of numbers."""
    if self._is_writer:
      _write_json(self.directory / SUMMARY, values)

  def close(self) -> None:
    """Ends the writing; a second call does nothing."""
    if self._tensorboard is not None:
      self._tensorboard.close()
      self._tensorboard = None

  def _to_tensorboard(self, record: Mapping[str, Any], prefix: str) -> None:
    if self._tensorboard is None:
      return
    for name, value in record.items():
      # A gap shows a number that is not finite; null stands in the .jsonl.
      if name != "step" and value is not None:
        tag = prefix + name.replace("@", "_at_")
        self._tensorboard.add_scalar(tag, value, record["step"])


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a `.jsonl` report; a missing file has no lines.

  A last line without its line break was cut off by the end of a process and
  does not count.

  Raises:
    ReportError: another line is not a record of a step.
  """
  return [record for _, record in _lines(path)]


def _record(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
  numbers = {name: format_number(name, value) for name, value in values.items()}
  return {"step": operator.index(step)} | numbers


def _json_line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, allow_nan=False) + "\n"


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  tree = plain(path.name, values)
  _write_atomically(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def _write_atomically(path: pathlib.Path, text: str) -> None:
  """Either the old file or the whole new one is there, whenever one looks."""
  temporary = path.with_name(f".{path.name}.partial")
  # Feedback may carry bytes that are no text; they are shown as escapes.
  with temporary.open(
    "w", encoding="utf-8", errors="backslashreplace", newline="\n"
  ) as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each line, with its line break, and what it says."""
  if not path.exists():
    return
  text = path.read_text(encoding="utf-8", errors="replace")
  *complete, _ = text.split("\n")
  for number, line in enumerate(complete, start=1):
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
      raise ReportError(
        f"{path}:{number} is not a JSON object with a step: {line[:80]!r}; "
        "repair or delete that line, or choose another train.run_directory"
      )
    yield line + "\n", record


def _keep_until(path: pathlib.Path, last_step: int) -> None:
  """Drops the lines after a step, and a last line that was cut off."""
  if path.exists():
    kept = [text for text, old in _lines(path) if old["step"] <= last_step]
    _write_atomically(path, "".join(kept))
