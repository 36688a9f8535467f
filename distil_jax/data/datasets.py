"""Reads data as rows and as problems.

A row that cannot be used is an error that names file, line and field; with
`malformed="skip"` it is skipped and counted.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from distil_jax.config.data import DataSource, HubDatasetConfig
from distil_jax.data import data_files, hub_datasets
from distil_jax.data.data_files import DataError
from distil_jax.envs import conversations
from distil_jax.types import Problem

Malformed = Literal["error", "skip"]
# Fields that may be other than texts, where the environment reads them.
_ANY_TYPE = ("answer",)


@dataclasses.dataclass(frozen=True)
class Row:
  """Holds a row of a data file.

  Attributes:
    place: the file and the number of the row in it, from 1, for messages. In a
      file with one object per line it is the number of the line.
    index: identity of the row in all that is read, from 0. It does not depend
      on which rows are skipped.
    fields: the row's fields by our names.
  """

  place: str
  index: int
  fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rows:
  """Holds the rows that were read.

  Attributes:
    rows: in the order of the files.
    num_skipped: number of malformed rows that were left out.
  """

  rows: list[Row]
  num_skipped: int


def read_rows(
  source: DataSource | pathlib.Path,
  *,
  fields: Mapping[str, str],
  malformed: Malformed,
  required: Sequence[str] = ("prompt", "answer"),
) -> Rows:
  """Reads the rows of data files, or of a data set of the Hub.

  A row is malformed if it is not a valid JSON object, if one of the required
  fields is missing, blank or not a string (`answer` may have another type), if
  its prompt is a list but no conversation, or if a string in it is not valid
  Unicode. Blank lines do not count as rows.

  Args:
    source: paths, see `data_files`, or a data set of the Hub.
    fields: our name of a field -> its name in the row, if they differ. A name
      with points leads into nested fields, if there is no field of that name.
    malformed: `error` stops at the first malformed row, `skip` counts them.
    required: our names of the fields that every row must have.

  Raises:
    DataError: a file is missing, unreadable or of an unknown kind; there is no
      usable row; no row has a field that `fields` names; or a row is malformed
      and `malformed` is `error`.
  """
  rows, names, found, num_skipped = [], set(), set(), 0
  for place, index, read in _raw_rows(source):
    try:
      raw = read()
      names |= raw.keys()
      found |= {ours for ours, theirs in fields.items() if _has(raw, theirs)}
      row = conversations.as_texts(_rename(raw, fields))
      _check(row, fields, required)
    except ValueError as error:
      if malformed == "error":
        raise DataError(f"{place}: {error}") from error
      num_skipped += 1
    else:
      rows.append(Row(place, index, row))
  # Otherwise a misspelt name of an optional field would go unnoticed.
  for ours, theirs in fields.items():
    if names and ours not in found:
      raise DataError(
        f"{named(source)}: {ours!r} is to be read from {theirs!r}, but no row "
        f"has that field{_nearest(theirs, names)}"
      )
  if not rows:
    skipped = f"; {num_skipped} malformed rows were skipped"
    raise DataError(
      f"{named(source)} holds no rows{skipped if num_skipped else ''}"
    )
  return Rows(rows=rows, num_skipped=num_skipped)


class Routing(Protocol):
  """Gives each problem its teacher, see `teacher_routing.TeacherRouting`."""

  @property
  def key(self) -> str: ...
  def assign(self, problem: Problem, value: Any, place: str) -> Problem: ...


def load_problems(
  source: DataSource | pathlib.Path,
  to_problem: Callable[[dict[str, Any], int], Problem],
  *,
  fields: Mapping[str, str],
  malformed: Malformed,
  limit: int | None = None,
  required: Sequence[str] = ("prompt", "answer"),
  routing: Routing | None = None,
) -> tuple[list[Problem], int]:
  """Reads data as problems.

  All rows are checked even if only the first ones are returned.

  Args:
    source: see `read_rows`.
    to_problem: row, index -> problem; a ValueError marks the row as malformed.
    fields: see `read_rows`.
    malformed: see `read_rows`.
    limit: the largest number of problems, from the start.
    required: see `read_rows`.
    routing: gives each problem its teacher; None if there are not several.

  Returns:
    The problems in the order of the files, and the number of skipped rows.

  Raises:
    DataError: see `read_rows`; `to_problem` raised anything else; or a row
      names no teacher that there is, which is never skipped.
    ValueError: the limit is not positive.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit={limit} must be positive, or None for all")
  data = read_rows(
    source, fields=fields, malformed=malformed, required=required
  )
  problems, num_skipped = [], data.num_skipped
  for row in data.rows:
    try:
      problem = to_problem(row.fields, row.index)
    except ValueError as error:
      if malformed == "error":
        raise DataError(f"{row.place}: {error}") from error
      num_skipped += 1
      continue
    except Exception as error:
      raise DataError(
        f"{row.place}: the environment raised "
        f"{type(error).__name__}: {error}; for a row that it cannot read it "
        "should raise a ValueError"
      ) from error
    if routing is not None:
      value = _lookup(row.fields, routing.key)
      named_teacher = None if value is _MISSING else value
      problem = routing.assign(problem, named_teacher, row.place)
    problems.append(problem)
  if not problems:
    raise DataError(
      f"{named(source)} holds no usable rows; {num_skipped} malformed rows "
      "were skipped"
    )
  return problems[:limit], num_skipped


def _raw_rows(
  source: DataSource | pathlib.Path,
) -> Iterator[tuple[str, int, Callable[[], dict[str, Any]]]]:
  """Yields place and index of each row, and a function that parses it."""
  if isinstance(source, HubDatasetConfig):
    rows = data_files.number_rows(hub_datasets.read(source))
    for number, read in rows:
      yield f"{hub_datasets.named(source)}, row {number}", number - 1, read
    return
  before = 0
  for path in data_files.find(source):
    unit, rows = data_files.read(path)
    number = 0
    for number, read in rows:
      yield f"{path}, {unit} {number}", before + number - 1, read
    before += number


def named(source: DataSource | pathlib.Path) -> str:
  """Returns what messages call the source."""
  if isinstance(source, HubDatasetConfig):
    return hub_datasets.named(source)
  return ", ".join(source) if isinstance(source, tuple) else str(source)


_MISSING = object()


def _lookup(raw: Mapping[str, Any], name: str) -> Any:
  """Returns a field, or one inside others whose names are joined by points."""
  if name in raw:
    return raw[name]
  value: Any = raw
  for part in name.split("."):
    if isinstance(value, Mapping) and part in value:
      value = value[part]
    elif (
      isinstance(value, list) and part.isdecimal() and int(part) < len(value)
    ):
      value = value[int(part)]
    else:
      return _MISSING
  return value


def _has(raw: Mapping[str, Any], name: str) -> bool:
  return _lookup(raw, name) is not _MISSING


def _rename(raw: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
  kept = {name: value for name, value in raw.items() if name not in fields}
  renamed = {
    ours: _lookup(raw, theirs)
    for ours, theirs in fields.items()
    if _has(raw, theirs)
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
    if name in _ANY_TYPE and not isinstance(value, str):
      continue
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
  if near:
    return f"; did you mean {near[0]!r}?"
  return f"; it has {', '.join(map('{!r:.80}'.format, sorted(known)))}"
