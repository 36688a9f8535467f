"""What a run leaves behind for people: its folder.

config.yaml         the resolved config
environment.json    versions, source revision, devices
metrics.jsonl       one line per logged step
evaluations.jsonl   one line per evaluation
rollouts/           samples as readable text
tensorboard/        the numbers of both `.jsonl` files
summary.json        written last: where it is, the run has ended
"""

import dataclasses
import importlib.metadata
import json
import math
import operator
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorboardX

from distil_jax import types

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"

_PACKAGES = (
  "distil_jax",
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "chex",
  "transformers",
  "numpy",
  "math-verify",
  "reasoning-gym",
)
_GIT_SECONDS = 10  # a repository on a slow disk must not hold up a run


class ReportError(ValueError):
  """A report cannot be written or read; the message names place and cure."""


@dataclasses.dataclass(frozen=True)
class Sample:
  """One completion as a person wants to read it.

  Attributes:
    problem: what was asked.
    completion: the student's text; of an episode the last turn.
    num_tokens: length of the completion, tokens.
    stop_reason: why the completion ended.
    verdict: what the environment said about it.
    teacher_prompt: the teacher's prompt as it was built, after truncation;
      None where the sample has no teacher signal.
    earlier: of an episode, what was said before the last turn, and by whom.
  """

  problem: types.Problem
  completion: str
  num_tokens: int
  stop_reason: types.StopReason
  verdict: types.Verdict
  teacher_prompt: str | None = None
  earlier: Sequence[types.Message] = ()


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
      if _page_step(page) > last_step:
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
    _write_atomically(folder / f"step_{step:06d}.md", _page(step, samples))

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


def environment(*, device_kind: str, num_devices: int) -> dict[str, Any]:
  """What the run ran on, as far as it can change the numbers.

  Args:
    device_kind: as JAX names it.
    num_devices: over all processes.

  Returns:
    Python, platform, devices, package versions (null where a package is not
    installed) and the source revision (null outside a git checkout).
  """
  return {
    "python": sys.version,
    "platform": platform.platform(),
    "devices": {"kind": device_kind, "count": num_devices},
    "packages": package_versions(),
    "git": source_revision(pathlib.Path(__file__).resolve().parents[1]),
  }


def package_versions() -> dict[str, str | None]:
  """Of what can change the numbers; None where it is not installed."""
  return {name: _version(name) for name in _PACKAGES}


def source_revision(package: pathlib.Path) -> dict[str, Any] | None:
  """Commit and cleanness of the repository that tracks a package.

  Args:
    package: the package's directory.

  Returns:
    `{"commit": ..., "dirty": ...}`; dirty means that files of the package
    differ from the commit or are not in it. None where git does not track the
    package, for example in a virtual environment inside another repository.
  """

  def git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(package), *arguments]
    return subprocess.run(
      command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
    ).stdout.strip()

  try:
    git("ls-files", "--error-unmatch", "__init__.py")
    commit = git("rev-parse", "HEAD")
    dirty = bool(git("status", "--porcelain", "--", "."))
  except (OSError, subprocess.SubprocessError):
    return None
  return {"commit": commit, "dirty": dirty}


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a `.jsonl` report; a missing file has no lines.

  A last line without its line break was cut off by the end of a process and
  does not count.

  Raises:
    ReportError: another line is not a record of a step.
  """
  return [record for _, record in _lines(path)]


def comparison_table(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> str:
  """Two evaluations side by side.

  Accuracies (`avg@k`, `pass@k`) and shares are in percent, their change in
  points.

  Args:
    before: numbers by name.
    after: numbers by name; a name that only one side has gets a dash.

  Returns:
    Aligned plain text without a final line break.
  """
  rows = [("", "before", "after", "change")]
  for name in {**before, **after}:
    if name == "step":
      continue
    old, new = (side.get(name, math.nan) for side in (before, after))
    change = "-"
    if _plain(name, old) is not None and _plain(name, new) is not None:
      points = " points" if _is_share(name) else ""
      change = f"{_scaled(name, new) - _scaled(name, old):+.1f}{points}"
    rows.append((_title(name), _cell(name, old), _cell(name, new), change))
  return _aligned(rows)


def evaluation_table(values: Mapping[str, Any]) -> str:
  """One evaluation, a number a line; see `comparison_table`."""
  return _aligned(
    [
      (_title(name), _cell(name, value))
      for name, value in values.items()
      if name != "step"
    ]
  )


def _is_share(name: str) -> bool:
  return name == "cut_off" or name.startswith(("avg@", "pass@", "verdict/"))


def _title(name: str) -> str:
  return name.removeprefix("verdict/").replace("_", " ")


def _scaled(name: str, value: Any) -> float:
  return float(value) * (100 if _is_share(name) else 1)


def _cell(name: str, value: Any) -> str:
  if _plain(name, value) is None:
    return "-"
  return f"{_scaled(name, value):.1f}{' %' if _is_share(name) else ''}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      [row[0].ljust(widths[0])]
      + [
        cell.rjust(width)
        for cell, width in zip(row[1:], widths[1:], strict=True)
      ]
    )
    for row in rows
  )


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _record(step: int, values: Mapping[str, Any]) -> dict[str, Any]:
  numbers = {name: _number(name, value) for name, value in values.items()}
  return {"step": operator.index(step)} | numbers


def _number(name: str, value: Any) -> int | float | None:
  """A JSON number: integers stay integers, what is not finite is None."""
  try:
    return operator.index(value)
  except TypeError:
    pass  # not an integer
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise ReportError(f"{name} must be one number, got {value!r}") from error
  return number if math.isfinite(number) else None


def _plain(name: str, value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
  is_plain = value is None or isinstance(value, str | bool)
  return value if is_plain else _number(name, value)


def _json_line(record: Mapping[str, Any]) -> str:
  return json.dumps(record, allow_nan=False) + "\n"


def _write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
  tree = _plain(path.name, values)
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


def _page_step(page: pathlib.Path) -> int:
  digits = page.stem.removeprefix("step_")
  return int(digits) if digits.isdecimal() else -1  # not one of our pages


def _page(step: int, samples: Sequence[Sample]) -> str:
  parts = [f"# Rollouts of step {step}\n"]
  for number, sample in enumerate(samples, start=1):
    verdict = sample.verdict
    stop_reason = types.StopReason(int(sample.stop_reason))
    parts.append(
      f"## Sample {number} of {len(samples)}\n\n"
      f"- problem: {sample.problem.index}\n"
      f"- reward: {float(verdict.reward):g}\n"
      f"- status: {verdict.status}\n"
      f"- stop reason: {stop_reason.name.lower()}\n"
      f"- completion length: {int(sample.num_tokens)} tokens\n"
    )
    for message in sample.problem.messages:
      parts.append(f"### Prompt: {message['role']}\n")
      parts.append(_fenced(message["content"]))
    for number, message in enumerate(sample.earlier):
      parts.append(f"### Turn {number // 2 + 1}: {message['role']}\n")
      parts.append(_fenced(message["content"]))
    parts += ["### Completion\n", _fenced(sample.completion)]
    parts += ["### Feedback\n", _fenced(verdict.feedback)]
    parts += ["### Teacher's prompt\n"]
    if sample.teacher_prompt is None:
      parts.append("None: there is no teacher signal for this sample.\n")
    else:
      parts.append(_fenced(sample.teacher_prompt))
  return "\n".join(parts)


def _fenced(text: str) -> str:
  """Text as it is, in a fence longer than any run of backticks inside it."""
  if not text:
    return "(empty)\n"
  longest = max((len(run) for run in re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  end = "" if text.endswith("\n") else "\n"
  return f"{fence}text\n{text}{end}{fence}\n"
