"""Problems from files, and the order in which a run meets them.

A data file is JSON (one array, or one object a line), JSON Lines or parquet. A
row that cannot be used is an error that names file, line and field; or, where
the run says so, it is skipped and counted.
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
  """Data that cannot be used; the message names the place and the cure."""


@dataclasses.dataclass(frozen=True)
class Rows:
  """What a data file holds.

  Attributes:
    rows: number of the row in its file, from 1, and its fields by our names. In
      a file with one object a line the number is that of the line.
    num_skipped: malformed rows that were left out.
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

  A row is malformed if it is not valid JSON or no object, if one of the
  required fields is missing, blank or no string, or if a string in it is no
  valid Unicode text. Blank lines do not count as rows.

  Args:
    path: a `.json`, `.jsonl` or `.parquet` file. A `.json` file that does not
      begin with `[` has one object a line.
    fields: our name of a field -> its name in the file, where they differ.
    malformed: `error` stops at the first malformed row, `skip` counts them.
    required: our names of the fields that every row must have.

  Raises:
    DataError: the file is missing, unreadable, of an unknown kind or without a
      usable row; no row has one of the fields that `fields` names; or a row is
      malformed and `malformed` is `error`.
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
  # A misspelt name of an optional field would otherwise go unnoticed.
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

  The whole file is checked, also where only its beginning is wanted.

  Args:
    path: see `read_rows`.
    to_problem: row, index -> problem; a ValueError marks the row as malformed.
      The index is the row's number in the file less one, so that a problem
      keeps it whatever else is skipped.
    fields: see `read_rows`.
    malformed: see `read_rows`.
    limit: at most so many problems, the first ones of the file.
    required: see `read_rows`.

  Returns:
    The problems in the order of the file, and how many rows were skipped.

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
        f"{type(error).__name__}: {error}; of a row that it cannot read it "
        "should say so by a ValueError"
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
  """Shuffles the items anew in each epoch and deals them out in batches.

  The epochs follow each other in one long sequence, which is cut into global
  batches of `batch_size * process_count` items. Process i takes the i-th part
  of each, `batch_size` items in a row. So:

  * within an epoch every item comes once, at one process;
  * a batch may reach from one epoch into the next, and holds an item twice
    where it does or where there are fewer items than it takes;
  * a global batch holds the same items, in the same order, however many
    processes share it;
  * all processes have equally many batches. What is left of the last epoch and
    does not fill a global batch is left out.

  The items are not copied. The position is one number, of global batches, the
  same in every process: with `start` any number of processes goes on where any
  other number of them stopped.

  Args:
    items: anything but None.
    batch_size: items in a batch of one process.
    seed: of the order, 0 to 2^32 - 1. Epoch e of seed s is ordered like epoch 0
      of seed s + e.
    num_epochs: None goes on for ever.
    start: global batches that have been seen.
    process_index: which process this is, from 0.
    process_count: how many processes share the items.

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
  sequence = grain.MapDataset.source(items).shuffle(seed).repeat(num_epochs)
  global_size = batch_size * process_count
  whole = sequence.batch(global_size, drop_remainder=True, batch_fn=list)
  if not len(whole):
    raise DataError(
      f"{len(items)} items in {num_epochs} epochs do not fill a batch of "
      f"{batch_size} at each of {process_count} processes; take a smaller "
      "batch, more items or more epochs"
    )
  mine = slice(process_index * batch_size, (process_index + 1) * batch_size)
  share = whole[start:].map(lambda batch: batch[mine])
  # The items are in memory: reading ahead in threads would only cost.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(share.to_iter_dataset(options))


# A row that has not been looked at yet, so that one bad row is one failure.
_RawRows = Iterator[tuple[int, Callable[[], dict[str, Any]]]]


def _raw_rows(path: pathlib.Path) -> tuple[str, _RawRows]:
  """What a row is called in messages, and the rows with their numbers."""
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
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
  except OSError as error:
    raise DataError(f"{path} cannot be read: {error}") from error
  if kind == ".json" and content.lstrip()[:1] == b"[":
    return "row", _number(_read_array(path, content))
  # Only a line feed ends a line: `splitlines` would also cut at characters that
  # may stand inside a JSON string.
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
    import pyarrow  # an extra, needed here only
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
      raise ValueError(
        f"field {label} is {'null' if name in row else 'missing'}"
        f"{'' if name in row else _nearest(fields.get(name, name), row)}"
      )
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
  # JSON escapes can spell half a surrogate pair, which no tokenizer takes.
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise ValueError(f"field {name!r} is no valid Unicode: {error}") from error


def _nearest(name: str, known: Mapping[str, Any] | set[str]) -> str:
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else f"; it has {sorted(known)}"
