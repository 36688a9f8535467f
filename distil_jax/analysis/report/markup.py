"""Puts any text into HTML safely: completions hold whatever a model writes."""

import html
import json
import re
import statistics
from collections.abc import Sequence
from typing import Any

# They would turn or hide the text around them.
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
  """Returns a text whose control characters can be seen and do nothing.

  Line breaks and tabs stay. Right-to-left letters stay too: only the signs that
  would turn the direction of what follows are named in their place.
  """
  text = _CONTROLS.sub(_picture, text.replace("\r\n", "\n"))
  return _DIRECTIONS.sub(lambda m: f"⟨U+{ord(m[0]):04X}⟩", text)


def escape(text: Any) -> str:
  """Returns a text for an element or a quoted attribute."""
  return html.escape(visible(str(text)))


def to_json(value: Any) -> str:
  """Returns JSON that can stand inside a `script` element.

  It is plain ASCII without `<`, `>` and `&`, so that no text in it can end the
  element or begin another.
  """
  text = json.dumps(value, allow_nan=False, separators=(",", ":"))
  for sign in "<>&":
    text = text.replace(sign, f"\\u{ord(sign):04x}")
  return text


def number(value: float | None, digits: int = 3) -> str:
  """Returns a number to read, with so many digits that count."""
  if value is None:
    return "–"
  if value == 0:
    return "0"
  if abs(value) >= 10**digits:
    return f"{value:,.0f}"
  return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
  """Returns a share as a percentage."""
  return "–" if value is None else f"{100 * value:.1f} %"


def mean(values: Sequence[float]) -> str:
  """Returns mean ± standard error in percent."""
  if len(values) < 2:
    return percent(values[0] if values else None)
  error = statistics.stdev(values) / len(values) ** 0.5
  return f"{100 * statistics.fmean(values):.1f} ± {100 * error:.1f} %"


def duration(seconds: float) -> str:
  """Returns a time to read, such as `2 h 5 min`."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  minutes, seconds = divmod(seconds, 60)
  if minutes < 60:
    return f"{minutes} min {seconds} s"
  return f"{minutes // 60} h {minutes % 60} min"


def _picture(match: re.Match[str]) -> str:
  code = ord(match[0])
  if code < 0x20:
    return chr(0x2400 + code)  # Unicode's pictures of control characters
  return "␡" if code == 0x7F else "\ufffd"
