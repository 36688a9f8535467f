"""Reads answers whose signs are neither a number nor algebra.

These are times of the day, numbers in another base, ratios of several parts,
and options of a list of answers.
"""

import math
import re
from fractions import Fraction
from typing import NamedTuple

from distil_jax.envs.math_answers import number_words, quantities
from distil_jax.envs.math_answers import spelling as math_spelling

_TIME = re.compile(
  r"(\d{1,2})(?::(\d\d))?\s*(?:([ap])\.? ?m\.?|(o['’]clock))?",
  re.IGNORECASE,
)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)")
_TIMES = {"noon": (12, "p"), "midnight": (12, "a")}
_BASED = re.compile(
  r"\(?([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)? ?_ ?"
  r"(?:\{ ?(?:\\text ?\{)? ?(\w+) ?\}{0,2}|(\d))"
)
_DIGITS = re.compile(r"\(?([0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?)\)?")
_RATIO_SIGN = re.compile(r"\s*(?::|\\colon(?![A-Za-z]))\s*")
_TO = re.compile(r"(?<=\d) ?(?:\\text ?\{ ?to ?\}|to) ?(?=\d)")
_OPTION = re.compile(
  r"(?:\\text(?:bf|rm)? ?\{ ?\(([A-H])\)[ :.]*\}[ :.]*"
  r"|\(([A-H])\) (?![-+*/=^_])"
  r"|([A-H])[.):] )((?!(?:or|and)\b).+)"
)


class _Time(NamedTuple):
  """A time of the day, with its half if it says which one.

  Attributes:
    hour: as written.
    minute: 0 if none is written.
    half: `a`, `p`, or nothing.
    is_sure: False if the text may as well be a number or a ratio.
  """

  hour: int
  minute: int
  half: str
  is_sure: bool

  @property
  def hour_of_day(self) -> int:
    if not self.half:
      return self.hour
    return self.hour % 12 + 12 * (self.half == "p")


class Based(NamedTuple):
  """A number with its digits as written; no base means that none is."""

  digits: str
  base: int | None


def is_same_time(gold: str, answer: str) -> bool | None:
  """Compares times of the day, or returns None if neither is one.

  `3:30` is the same time as `3:30 PM`, and `15:30` is too. It is no ratio, for
  a ratio would be in lowest terms.
  """
  a, b = _time(gold), _time(answer)
  clock = _CLOCK.fullmatch(gold.strip())
  if a is not None and clock and _is_time(int(clock[1]), clock[2]):
    if b is None and (":" in answer or quantities.quantity(answer) is not None):
      return False
    a = a._replace(is_sure=True)
  if a is None or b is None or not (a.is_sure or b.is_sure):
    return None
  if a.minute != b.minute:
    return False
  is_known = (a.half and b.half) or max(a.hour, b.hour) > 12
  is_same_in_half = a.hour % 12 == b.hour % 12 and not is_known
  return a.hour_of_day == b.hour_of_day or is_same_in_half


def _time(text: str) -> _Time | None:
  text = math_spelling.without_text_commands(text).strip()
  if text.lower() in _TIMES:
    hour, half = _TIMES[text.lower()]
    return _Time(hour, 0, half, is_sure=True)
  found = _TIME.fullmatch(text)
  if found is None:
    return None
  hour, minute = int(found[1]), int(found[2] or 0)
  if hour > 24 or minute > 59:
    return None
  half = (found[3] or "").lower()
  return _Time(hour, minute, half, is_sure=bool(half or found[4]))


def _is_time(hour: int, minutes: str) -> bool:
  """Returns True if digits with a colon between them are hardly a ratio."""
  return minutes[0] == "0" or math.gcd(hour, int(minutes)) > 1


def is_same_based(gold: str, answer: str) -> bool | None:
  """Compares numbers in a base, or returns None if neither names one.

  Digits and bases must be the same: the base may be left out, but a number in
  another base is another answer even if its value is the same.
  """
  a, b = _based(gold), _based(answer)
  if a is None and b is None:
    return None
  a, b = a or _digits(gold), b or _digits(answer)
  if a is None or b is None:
    return None
  is_same_base = None in (a.base, b.base) or a.base == b.base
  return is_same_base and a.digits == b.digits


def _based(text: str) -> Based | None:
  found = _BASED.fullmatch(text)
  if found is None:
    return None
  name = found[2] or found[3]
  base = int(name if name.isdecimal() else number_words.value(name) or 0)
  digits = found[1].upper()
  # `x_1` and `a_n` are variables.
  is_number = any(x.isdecimal() for x in digits) or (
    len(digits) > 1 and found[1].isupper()
  )
  if not base or not 2 <= base <= 36 or not is_number:
    return None
  is_in_base = all(int(x, 36) < base for x in digits.replace(".", ""))
  return Based(digits, base) if is_in_base else None


def _digits(text: str) -> Based | None:
  found = _DIGITS.fullmatch(text.replace(" ", "").replace(",", ""))
  return found and Based(found[1].upper(), None)


def is_same_ratio(gold: str, answer: str) -> bool | None:
  """Compares ratios of three or more parts, or returns None if one is none."""
  a, b = _ratio(gold), _ratio(answer)
  if a is None or b is None or max(len(a), len(b)) < 3:
    return None
  return len(a) == len(b) and all(
    x * b[0] == y * a[0] for x, y in zip(a, b, strict=True)
  )


def _ratio(text: str) -> list[Fraction] | None:
  parts = [quantities.quantity(x) for x in _RATIO_SIGN.split(text)]
  values = [x.value for x in parts if x is not None and x.value > 0]
  return values if len(values) == len(parts) > 1 else None


def with_colons(text: str) -> str:
  """Returns `3 to 2` as `3:2`."""
  return _TO.sub(":", text)


def option(text: str) -> tuple[str, str] | None:
  """Returns letter and text of an option such as `(C) 12`, or None."""
  found = _OPTION.fullmatch(text)
  if found is None:
    return None
  return found[1] or found[2] or found[3], found[4].strip()
