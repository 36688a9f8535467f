"""Reads dates in words, such as `June 20th`."""

import re
from typing import NamedTuple

from distil_jax.envs.math_answers import spelling as math_spelling

_NAMES = [
  *("january", "february", "march", "april", "may", "june", "july", "august"),
  *("september", "october", "november", "december"),
]
_DAYS = [
  *("monday", "tuesday", "wednesday", "thursday", "friday"),
  *("saturday", "sunday"),
]
_MONTH = r"(?P<month{n}>[A-Za-z]{3,9})\.?"
# The sign of an ordinal may be raised: `20^{th}`.
_DAY = r"(?P<day{n}>\d{1,2}) ?(?:\^ ?)?(?:\{ ?)?(?:st|nd|rd|th)?(?: ?\})?"
_MONTH_FIRST = f"{_MONTH} {_DAY}".replace("{n}", "1")
_DAY_FIRST = f"(?:the )?{_DAY} (?:day )?(?:of )?{_MONTH}".replace("{n}", "2")
_DATE = re.compile(
  rf"(?:on )?(?:(?P<weekday>(?!the)[A-Za-z]{{3,9}})\.?,? )?"
  rf"(?:{_MONTH_FIRST}|{_DAY_FIRST})(?:,? (?P<year>\d{{4}}))?",
  re.IGNORECASE,
)


class _Date(NamedTuple):
  """A day of a year; a year or a weekday that is not named is None."""

  month: int
  day: int
  year: int | None
  weekday: int | None


def is_same_date(gold: str, answer: str) -> bool | None:
  """Compares dates, or returns None if one of the texts is none.

  An answer may add a year or a weekday, but not leave out the year.
  """
  a, b = _date(gold), _date(answer)
  if a is None or b is None:
    return None
  return (
    a[:2] == b[:2]
    and a.year in (None, b.year)
    and (None in (a.weekday, b.weekday) or a.weekday == b.weekday)
  )


def _date(text: str) -> _Date | None:
  text = math_spelling.without_text_commands(text).strip()
  found = _DATE.fullmatch(re.sub(r"\s+", " ", text))
  if found is None:
    return None
  month = _number(found["month1"] or found["month2"], _NAMES)
  day = int(found["day1"] or found["day2"])
  if month is None or not 1 <= day <= 31:
    return None
  year = int(found["year"]) if found["year"] else None
  if not found["weekday"]:
    return _Date(month, day, year, None)
  weekday = _number(found["weekday"], _DAYS)
  return None if weekday is None else _Date(month, day, year, weekday)


def _number(name: str, names: list[str]) -> int | None:
  """Returns the number of a month or weekday, from 1, or None."""
  name = name.lower()
  for number, full in enumerate(names, 1):
    if name == full or (len(name) in (3, 4) and full.startswith(name)):
      return number
  return None
