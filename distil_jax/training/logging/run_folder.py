"""Writes the folder of a run.

config.yaml         the resolved config
environment.json    versions, source revision, devices
metrics.jsonl       one line per logged step
evaluations.jsonl   one line per evaluation
rollouts/           samples as readable text, and as `.jsonl` for the report
tensorboard/        the numbers of both `.jsonl` files
summary.json        written last: it exists if the run has ended
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
  to_lines,
)
from distil_jax.training.logging.run_info import environment
from distil_jax.training.logging.tables import ReportError, format_number, plain

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"


class RunFolder:
  """Writes the folder of one run.

  Call `start` first and `close` last. Every process can hold one; only the
  writer touches the disk. The `.jsonl` files are the record of the run: each
  line is handed to the operating system when the call returns, and the lines
  after a checkpoint do not depend on whether the run was interrupted there.
  TensorBoard files are written in the background and can miss the last second
  of a run that was killed.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    is_writer: bool = True,
    tensorboard: bool = True,
  ):
    """Remembers the folder; nothing is written yet.

    Args:
      directory: the run's folder.
      is_writer: true in the one process that writes.
      tensorboard: write TensorBoard files too.
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

    It deletes what an earlier process wrote after that step, because this one
    will write it again; without a step to resume, it deletes all reports.

    Args:
      config_yaml: the resolved config.
      resume_step: the step of the checkpoint that was restored; None for a new
        run.
      device_kind: the kind of the devices, for example `NVIDIA H100`.
      num_devices: number of devices of all processes.

    Raises:
      ReportError: the directory is a file, or a line in the middle of an old
        report cannot be read.
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
    for page in self.directory.glob("rollouts/step_*.*"):
      if step_of_page(page) > last_step:
        page.unlink()
    # It says that a run has ended, which this one has not.
    (self.directory / SUMMARY).unlink(missing_ok=True)
    write_atomically(self.directory / "config.yaml", config_yaml)
    _write_json(
      self.directory / "environment.json",
      environment(device_kind=device_kind, num_devices=num_devices),
    )
    if self._wants_tensorboard:
      self._tensorboard = tensorboardX.SummaryWriter(
        str(self.directory / "tensorboard"),
        purge_step=last_step + 1,
        flush_secs=1,
        # Names of these files differ by seconds, which two starts can share.
        filename_suffix=f".from_step_{last_step + 1}",
      )

  def metrics(self, step: int, values: Mapping[str, Any]) -> None:
    """Appends one line to `metrics.jsonl`.

    Args:
      step: the training step, counted from 1.
      values: numbers of Python, NumPy or JAX by name. Floats keep every bit;
        NaN and infinity become null, because JSON does not have them.

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
    """Adds one line to `evaluations.jsonl`; replaces one of the same step.

    Args:
      step: training steps of the policy; 0 is the base model.
      values: numbers by name, as in `metrics`.

    Raises:
      ReportError: a value is not a single number.
    """
    if not self._is_writer:
      return
    record = _record(step, values)
    path = self.directory / EVALUATIONS
    kept = [text for text, old in _lines(path) if old["step"] != step]
    # A run that was stopped between an evaluation and its end evaluates that
    # step again. Evaluations are few, so the whole file is written again.
    write_atomically(path, "".join([*kept, _json_line(record)]))
    self._to_tensorboard(record, prefix="evaluation/")

  def evaluations(self) -> list[dict[str, Any]]:
    """Returns all evaluations, oldest first, also those before a resume."""
    return read_lines(self.directory / EVALUATIONS)

  def step_metrics(self) -> list[dict[str, Any]]:
    """Returns the metrics of all logged steps, also those before a resume."""
    return read_lines(self.directory / METRICS)

  def rollouts(self, step: int, samples: Sequence[Sample]) -> None:
    """Writes `rollouts/step_000010.md` and `.jsonl`, samples of one step."""
    if not self._is_writer:
      return
    path = self.directory / "rollouts" / f"step_{step:06d}"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path.with_suffix(".md"), render_page(step, samples))
    lines = to_lines(samples)
    write_atomically(path.with_suffix(".jsonl"), lines)

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
      # A number that is not finite is a gap here and null in the .jsonl file.
      if name != "step" and value is not None:
        # TensorBoard allows no such character in a name.
        tag = prefix + name.replace("@", "_at_")
        self._tensorboard.add_scalar(tag, value, record["step"])


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a `.jsonl` report; a missing file has no lines.

  A last line without a line break is left out, because the process ended while
  it wrote it.

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
  write_atomically(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Replaces a file so that a reader sees the old or the whole new one."""
  temporary = path.with_name(f".{path.name}.partial")
  # Feedback can hold half a surrogate pair; it is written as an escape.
  with temporary.open(
    "w", encoding="utf-8", errors="backslashreplace", newline="\n"
  ) as file:
    file.write(text)
    file.flush()
    # Otherwise a crash of the host could leave an empty file under the new
    # name.
    os.fsync(file.fileno())
  temporary.replace(path)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each line, with its line break, and its record."""
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
    write_atomically(path, "".join(kept))
