"""Finds data files and reads their rows.

A file is JSON (one array, or one object per line), JSON Lines, CSV or parquet;
the first three may be compressed with gzip. A path may also be a folder or a
pattern such as `train-*.parquet`.
"""

import codecs
import collections
import csv
import glob
import gzip
import io
import json
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

TEXT_KINDS = (".json", ".jsonl", ".csv")
KINDS = (*TEXT_KINDS, *(f"{kind}.gz" for kind in TEXT_KINDS), ".parquet")
_MAGIC = "*?["


class DataError(ValueError):
  """The error of data that cannot be used; it names place and cure."""


# Each row is parsed by its own call, so that a bad one fails alone.
RawRows = Iterator[tuple[int, Callable[[], dict[str, Any]]]]


def find(sources: str | pathlib.Path | Sequence[str]) -> list[pathlib.Path]:
  """Returns the data files that paths, folders and patterns name, in order.

  The files of a folder or a pattern are sorted by name, so that every process
  reads the same rows in the same order. Of a folder only the data files count,
  not those in folders below it.

  Raises:
    DataError: a folder or a pattern has no data file, or a file is named twice.
  """
  if isinstance(sources, (str, pathlib.Path)):
    sources = [str(sources)]
  found = [path for source in sources for path in _find_one(str(source))]
  # `data/a.jsonl` and `data/../data/a.jsonl` are one file.
  counts = collections.Counter(path.resolve() for path in found)
  twice = [
    str(path) for path in dict.fromkeys(found) if counts[path.resolve()] > 1
  ]
  if twice:
    raise DataError(
      f"{', '.join(twice)} would be read twice; name each file once"
    )
  return found


def _find_one(source: str) -> list[pathlib.Path]:
  path = pathlib.Path(source)
  if path.is_dir():
    # Hidden files, such as `._train.parquet` of macOS, are no data.
    inside = sorted(
      p
      for p in path.iterdir()
      if p.is_file() and kind_of(p) and not p.name.startswith(".")
    )
    if not inside:
      raise DataError(
        f"the folder {path} holds no data file ({', '.join(KINDS)})"
      )
    return inside
  if path.exists() or not any(sign in source for sign in _MAGIC):
    return [path]
  matches = sorted(pathlib.Path(p) for p in glob.glob(source, recursive=True))
  if not matches:
    raise DataError(
      f"no file matches the pattern {pathlib.Path(source).absolute()}"
    )
  return matches


def kind_of(path: pathlib.Path) -> str | None:
  """Returns the ending of a data file's name, in lower case, or None."""
  name = path.name.lower()
  # The longest first: `.json.gz` does not end in `.json`.
  return next((kind for kind in KINDS[::-1] if name.endswith(kind)), None)


def read(path: pathlib.Path) -> tuple[str, RawRows]:
  """Returns the unit of the row numbers, and the rows with their numbers.

  Args:
    path: a data file. A `.json` file that does not begin with `[` has one
      object per line.

  Returns:
    `line` or `row`; and for each row its number, from 1, and a function that
    returns the row or raises a ValueError.

  Raises:
    DataError: the file is missing, unreadable or of an unknown kind.
  """
  if not path.exists():
    raise DataError(f"there is no data file {path.absolute()}")
  if not path.is_file():
    raise DataError(f"{path} is not a file; name one of the files in it")
  kind = kind_of(path)
  if kind is None:
    raise DataError(
      f"{path}: data files are {', '.join(KINDS)}, not {path.suffix!r}"
    )
  if kind == ".parquet":
    return "row", number_rows(_read_parquet(path))
  content = _content(path, is_compressed=kind.endswith(".gz"))
  if kind.startswith(".csv"):
    return "row", _csv_rows(path, content)
  if not kind.startswith(".jsonl") and content.lstrip()[:1] == b"[":
    return "row", number_rows(_read_array(path, content))
  # Only a line feed ends a line: `splitlines` would also split at characters
  # that can be inside a JSON string.
  lines = enumerate(content.split(b"\n"), start=1)
  return "line", (
    (number, lambda line=line: _object(_parse(line)))
    for number, line in lines
    if line.strip()
  )


def _content(path: pathlib.Path, *, is_compressed: bool) -> bytes:
  try:
    content = path.read_bytes()
    if is_compressed:
      content = gzip.decompress(content)
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(f"{path} cannot be read: {error}") from error
  # Some editors put a byte order mark in front of UTF-8.
  return content.removeprefix(codecs.BOM_UTF8)


def number_rows(values: Iterable[Any]) -> RawRows:
  """Returns rows that are read already, numbered from 1."""
  return (
    (number, lambda value=value: _object(value))
    for number, value in enumerate(values, start=1)
  )


def _csv_rows(path: pathlib.Path, content: bytes) -> RawRows:
  """Returns the rows of a table whose first row names the columns."""
  try:
    text = content.decode("utf-8")
  except UnicodeDecodeError as error:
    raise DataError(
      f"{path}: not valid UTF-8: {error}; save the file in this encoding"
    ) from error
  # A cell may be as long as a text; the default limit is 131,072 characters.
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
  try:
    table = list(csv.reader(io.StringIO(text, newline=""), strict=True))
  except csv.Error as error:
    raise DataError(f"{path} cannot be read as CSV: {error}") from error
  names, *rows = table or [[]]
  if len(set(names)) < len(names):
    raise DataError(f"{path}: two columns have the same name: {names}")
  if len(names) == 1 and any(sign in names[0] for sign in ";\t|"):
    raise DataError(
      f"{path} has one column, {names[0]!r}; separate columns with commas"
    )

  def row(cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
      raise ValueError(
        f"has {len(cells)} cells, but the first row names {len(names)} columns"
      )
    return dict(zip(names, cells, strict=True))

  return (
    (number, lambda cells=cells: row(cells))
    for number, cells in enumerate(rows, start=1)
    if cells
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
    # A table of its own: folders named `key=value` add no column.
    return pyarrow.parquet.ParquetFile(path).read().to_pylist()
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
