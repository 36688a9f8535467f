"""Compares what programs print and return with what is expected."""

import decimal
import math
import re
from typing import Any

_MAX_NUMBER = 100
_TOLERANCE = 1e-6
_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(
  r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,9})?|inf(?:inity)?)",
  re.ASCII | re.IGNORECASE,
)


def is_same_output(written: str, expected: str) -> bool:
  """Returns True if two outputs are the same, up to space and number format.

  Lines are compared without the space around each and blank lines at the end;
  a line that differs is compared word by word. Integers are the same digits;
  numbers with a point or an exponent are equal within 1e-6, relative or
  absolute, and equal to an integer only if they are exactly.
  """
  lines, wanted = (
    [line.split() for line in text.rstrip().splitlines()]
    for text in (written, expected)
  )
  return len(lines) == len(wanted) and all(
    len(a) == len(b) and all(map(_is_same_word, a, b))
    for a, b in zip(lines, wanted, strict=True)
  )


def is_same_value(value: Any, expected: Any) -> bool:
  """Returns True if two values of JSON are equal, floats within 1e-6."""
  if isinstance(value, list) and isinstance(expected, list):
    return len(value) == len(expected) and all(
      map(is_same_value, value, expected)
    )
  if isinstance(value, dict) and isinstance(expected, dict):
    return value.keys() == expected.keys() and all(
      is_same_value(value[key], expected[key]) for key in value
    )
  if isinstance(value, float) and isinstance(expected, float):
    return _is_close(value, expected)
  return value == expected


def _is_same_word(a: str, b: str) -> bool:
  if a == b:
    return True
  if max(len(a), len(b)) > _MAX_NUMBER:
    return False
  # `0101` is a row of digits, and no way to print 101.
  is_integer = [_INTEGER.fullmatch(x) is not None for x in (a, b)]
  if all(is_integer) or not all(_NUMBER.fullmatch(x) for x in (a, b)):
    return False
  if decimal.Decimal(a) == decimal.Decimal(b):
    return True
  x, y = float(a), float(b)
  # Numbers that no float holds are compared above.
  return not any(is_integer) and math.isfinite(x - y) and _is_close(x, y)


def _is_close(a: float, b: float) -> bool:
  if math.isnan(a) or math.isnan(b):
    return math.isnan(a) and math.isnan(b)
  return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
