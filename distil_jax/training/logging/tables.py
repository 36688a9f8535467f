"""Formats metrics as tables for the terminal."""

import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# The name of a share, perhaps behind that of a data set.
_SHARE = re.compile(r"(^|/)(cut_off$|avg@|pass@|verdict/)")


class ReportError(ValueError):
  """The error of a report that cannot be written or read."""


def comparison_table(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> str:
  """Formats two evaluations side by side.

  Accuracies (`avg@k`, `pass@k`) and shares are in percent, their change in
  percentage points.

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
    if plain(name, old) is not None and plain(name, new) is not None:
      points = " points" if _is_share(name) else ""
      change = f"{_scaled(name, new) - _scaled(name, old):+.1f}{points}"
    rows.append((_title(name), _cell(name, old), _cell(name, new), change))
  return aligned(rows)


def evaluation_table(values: Mapping[str, Any]) -> str:
  """Formats one evaluation, one number per line; see `comparison_table`."""
  return aligned(
    [
      (_title(name), _cell(name, value))
      for name, value in values.items()
      if name != "step"
    ]
  )


def _is_share(name: str) -> bool:
  return _SHARE.search(name) is not None


def _title(name: str) -> str:
  return name.replace("verdict/", "").replace("_", " ")


def _scaled(name: str, value: Any) -> float:
  return float(value) * (100 if _is_share(name) else 1)


def _cell(name: str, value: Any) -> str:
  if plain(name, value) is None:
    return "-"
  return f"{_scaled(name, value):.1f}{' %' if _is_share(name) else ''}"


def aligned(rows: Sequence[tuple[str, ...]], left: Collection[int] = ()) -> str:
  """Aligns the cells of rows; all but the first column to the right.

  Args:
    rows: of equal length.
    left: numbers of further columns that are aligned to the left.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.ljust(width) if i in (0, *left) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append("  ".join(cells).rstrip())
  return "\n".join(lines)


def format_number(name: str, value: Any) -> int | float | None:
  """Returns a number as JSON has it.

  Integers stay integers; NaN and infinity become None.

  Raises:
    ReportError: the value is not a single number.
  """
  try:
    # Integers of NumPy and JAX too, but not a float that happens to be whole.
    return operator.index(value)
  except TypeError:
    pass  # not an integer
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise ReportError(f"{name} must be one number, got {value!r}") from error
  return number if math.isfinite(number) else None


def plain(name: str, value: Any) -> Any:
  """Returns nested mappings with their numbers as JSON has them."""
  if isinstance(value, Mapping):
    return {key: plain(f"{name}.{key}", item) for key, item in value.items()}
  is_plain = value is None or isinstance(value, str | bool)
  return value if is_plain else format_number(name, value)
