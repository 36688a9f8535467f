"""Reads data files and puts their rows into batches.

A data file is JSON (one array, or one object per line), JSON Lines or parquet.
A row that cannot be used is an error that names file, line and field; with
`malformed="skip"` it is skipped and counted.
"""

import codecs
import dataclasses
import difflib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import grain

from distil_jax.types import Problem

T = TypeVar("T")
Malformed = Literal["error", "skip"]


class DataError(ValueError):
  """The error of data that cannot be used; it names place and cure."""


@dataclasses.dataclass(frozen=True)
class Rows:
  """Holds the rows of a data file.

  Attributes:
    rows: number of the row in its file, from 1, and its fields by our names. In
      a file with one object per line it is the number of the line.
    num_skipped: number of malformed rows that were left out.
    unit: what the numbers count, `line` or `row`.
  """

  rows: list[tuple[int, dict[str, Any]]]
  num_skipped: int
  unit: str


def read_rows(
  path: str | pathlib.Path,
  *,
  fields: Mapping[str, str],
  malformed: Malformed,
  required: Sequence[str] = ("prompt", "answer"),
) -> Rows:
  """Reads the rows of a data file.

  A row is malformed if it is not a valid JSON object, if one of the required
  fields is missing, blank or not a string, or if a string in it is not valid
  Unicode. Blank lines do not count as rows.

  Args:
    path: a `.json`, `.jsonl` or `.parquet` file. A `.json` file that does not
      begin with `[` has one object per line.
    fields: our name of a field -> its name in the file, if they differ.
    malformed: `error` stops at the first malformed row, `skip` counts them.
    required: our names of the fields that every row must have.

  Raises:
    DataError: the file is missing, unreadable, of an unknown kind or without a
      usable row; no row has a field that `fields` names; or a row is malformed
      and `malformed` is `error`.
  """
  path = pathlib.Path(path)
  unit, raw_rows = _raw_rows(path)
  rows, names, num_skipped = [], set(), 0
  for number, read in raw_rows:
    try:
      raw = read()
      names |= raw.keys()
      row = _rename(raw, fields)
      _check(row, fields, required)
    except ValueError as error:
      if malformed == "error":
        raise DataError(f"{path}, {unit} {number}: {error}") from error
      num_skipped += 1
    else:
      rows.append((number, row))
  # Otherwise a misspelt name of an optional field would go unnoticed.
  for ours, theirs in fields.items():
    if names and theirs not in names:
      raise DataError(
        f"{path}: {ours!r} is to be read from {theirs!r}, but no row has that "
        f"field{_nearest(theirs, names)}"
      )
  if not rows:
    skipped = f"; {num_skipped} malformed rows were skipped"
    raise DataError(f"{path} holds no rows{skipped if num_skipped else ''}")
  return Rows(rows=rows, num_skipped=num_skipped, unit=unit)


def load_problems(
  path: str | pathlib.Path,
  to_problem: Callable[[dict[str, Any], int], Problem],
  *,
  fields: Mapping[str, str],
  malformed: Malformed,
  limit: int | None = None,
  required: Sequence[str] = ("prompt", "answer"),
) -> tuple[list[Problem], int]:
  """Reads a data file as problems.

  The whole file is checked even if only its first rows are returned.

  Args:
    path: see `read_rows`.
    to_problem: row, index -> problem; a ValueError marks the row as malformed.
      The index is the row's number in the file minus one, so that it does not
      depend on which rows are skipped.
    fields: see `read_rows`.
    malformed: see `read_rows`.
    limit: the largest number of problems, from the start of the file.
    required: see `read_rows`.

  Returns:
    The problems in the order of the file, and the number of skipped rows.

  Raises:
    DataError: see `read_rows`; or `to_problem` raised anything else.
    ValueError: the limit is not positive.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit={limit} must be positive, or None for all")
  data = read_rows(path, fields=fields, malformed=malformed, required=required)
  problems, num_skipped = [], data.num_skipped
  for number, row in data.rows:
    try:
      problems.append(to_problem(row, number - 1))
    except ValueError as error:
      if malformed == "error":
        raise DataError(f"{path}, {data.unit} {number}: {error}") from error
      num_skipped += 1
    except Exception as error:
      raise DataError(
        f"{path}, {data.unit} {number}: the environment raised "
        f"{type(error).__name__}: {error}; for a row that it cannot read it "
        "should raise a ValueError"
      ) from error
  if not problems:
    raise DataError(
      f"{path} holds no usable rows; {num_skipped} malformed rows were skipped"
    )
  return problems[:limit], num_skipped


def make_batches(
  items: Sequence[T],
  *,
  batch_size: int,
  seed: int,
  num_epochs: int | None,
  start: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator[list[T]]:
  """Shuffles the items in each epoch and distributes them in batches.

  The epochs form one long sequence, which is split into global batches of
  `batch_size * process_count` items. Process i takes the i-th part of each,
  `batch_size` consecutive items. Therefore:

  * within an epoch every item appears once, in one process;
  * a batch may extend from one epoch into the next. It can hold an item twice
    if it does, or if it is larger than the number of items;
  * a global batch holds the same items in the same order for any number of
    processes;
  * all processes have equally many batches. Items at the end of the last epoch
    that do not fill a global batch are left out.

  The items are not copied. The position is one number, that of global batches,
  and the same in every process: with `start`, any number of processes goes on
  where any other number of them stopped.

  Args:
    items: anything but None.
    batch_size: items in a batch of one process.
    seed: seed of the order, 0 to 2^32 - 1. Epoch e of seed s has the order of
      epoch 0 of seed s + e.
    num_epochs: None repeats without end.
    start: number of global batches that were used before.
    process_index: number of this process, from 0.
    process_count: number of processes that share the items.

  Raises:
    DataError: the items of all epochs do not fill one global batch.
    ValueError: an argument is out of its range.
  """
  if batch_size < 1:
    raise ValueError(f"batch_size={batch_size} must be positive")
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index} must be at least 0 and less than "
      f"process_count={process_count}"
    )
  if start < 0:
    raise ValueError(f"start={start} must not be negative")
  if len(items) == 0:
    raise DataError("there are no items to make batches of")
  # Shuffled before it is repeated: every epoch then has an order of its own,
  # and each item once.
  sequence = grain.MapDataset.source(items).shuffle(seed).repeat(num_epochs)
  global_size = batch_size * process_count
  # Cut into global batches first and into shares then, so that the items of a
  # batch do not depend on the number of processes.
  whole = sequence.batch(global_size, drop_remainder=True, batch_fn=list)
  if not len(whole):
    raise DataError(
      f"{len(items)} items in {num_epochs} epochs do not fill a batch of "
      f"{batch_size} at each of {process_count} processes; take a smaller "
      "batch, more items or more epochs"
    )
  mine = slice(process_index * batch_size, (process_index + 1) * batch_size)
  # A slice reads nothing, so that a resumed run begins at once.
  share = whole[start:].map(lambda batch: batch[mine])
  # The items are in memory, so that reading ahead in threads saves nothing.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(share.to_iter_dataset(options))


# Each row is parsed by its own call, so that a bad one fails alone.
_RawRows = Iterator[tuple[int, Callable[[], dict[str, Any]]]]


def _raw_rows(path: pathlib.Path) -> tuple[str, _RawRows]:
  """Returns the unit of the row numbers, and the rows with their numbers."""
  if not path.exists():
    raise DataError(f"there is no data file {path}")
  if not path.is_file():
    raise DataError(f"{path} is not a file; name one of the files in it")
  kind = path.suffix.lower()
  if kind == ".parquet":
    return "row", _number(_read_parquet(path))
  if kind not in (".json", ".jsonl"):
    raise DataError(
      f"{path}: data files are .json, .jsonl or .parquet, not {kind!r}"
    )
  try:
    # Some editors put a byte order mark in front of UTF-8.
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error}") from error
  if kind == ".json" and content.lstrip()[:1] == b"[":
    return "row", _number(_read_array(path, content))
  # Only a line feed ends a line: `splitlines` would also split at characters
  # that can be inside a JSON string.
  lines = enumerate(content.split(b"\n"), start=1)
  return "line", (
    (number, lambda line=line: _object(_parse(line)))
    for number, line in lines
    if line.strip()
  )


def _number(values: list[Any]) -> _RawRows:
  return (
    (number, lambda value=value: _object(value))
    for number, value in enumerate(values, start=1)
  )


def _read_array(path: pathlib.Path, content: bytes) -> list[Any]:
  try:
    return _parse(content)
  except ValueError as error:
    raise DataError(f"{path}: {error}") from error


def _read_parquet(path: pathlib.Path) -> list[dict[str, Any]]:
  try:
    import pyarrow  # an optional dependency that only parquet files need
    import pyarrow.parquet
  except ImportError as error:
    raise DataError(
      f"{path}: parquet files need pyarrow; pip install 'distil_jax[parquet]'"
    ) from error
  try:
    return pyarrow.parquet.read_table(path).to_pylist()
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _parse(content: bytes) -> Any:
  try:
    return json.loads(content.decode("utf-8"))
  except UnicodeDecodeError as error:
    raise ValueError(f"not valid UTF-8: {error}") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(f"not valid JSON: {error}") from error


def _object(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"expected a JSON object, got {type(value).__name__}")
  return value


def _rename(raw: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
  kept = {name: value for name, value in raw.items() if name not in fields}
  renamed = {
    ours: raw[theirs] for ours, theirs in fields.items() if theirs in raw
  }
  return kept | renamed


def _check(
  row: dict[str, Any], fields: Mapping[str, str], required: Sequence[str]
) -> None:
  for name in required:
    label = repr(name)
    if name in fields:
      label = f"{fields[name]!r} (read as {name!r})"
    value = row.get(name)
    if value is None:
      if name in row:
        raise ValueError(f"field {label} is null")
      near = _nearest(fields.get(name, name), row)
      other = (
        ""
        if name in fields
        else f" (data.fields={{{name}: NAME}} reads another field as it)"
      )
      raise ValueError(f"field {label} is missing{near}{other}")
    if not isinstance(value, str):
      raise ValueError(
        f"field {label} must be a string, got {type(value).__name__}"
      )
    if not value.strip():
      raise ValueError(f"field {label} is empty")
  for name, value in row.items():
    if isinstance(value, str):
      _check_text(name, value)


def _check_text(name: str, value: str) -> None:
  # A JSON escape can be half a surrogate pair, which no tokenizer accepts.
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise ValueError(f"field {name!r} is not valid Unicode: {error}") from error


def _nearest(name: str, known: Mapping[str, Any] | set[str]) -> str:
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; it has {sorted(known)}"
