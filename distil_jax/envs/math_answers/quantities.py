"""Reads numbers with a sign, a currency, a percent sign or a unit, exactly.

Numbers are fractions, so that no two of them are equal only because a float has
15 digits.
"""

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from distil_jax.envs.math_answers import spelling as math_spelling
from distil_jax.envs.math_answers import units as math_units

_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,1000})"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d{{0,1000}})?|\.\d{{1,1000}})"
_RATIO = (
  r"(?:\\frac\s*\{\s*(-?{n})\s*\}\s*\{\s*(-?{n})\s*\}"
  r"|\\frac\s*(\d)\s*(\d)(?!\d)|({n}) ?/ ?({n}))"
).replace("{n}", _INTEGER)
NUMBER = re.compile(_DECIMAL)
_SCIENTIFIC = re.compile(
  rf"({_DECIMAL})\s*(?:\\times|\\cdot|\*|x)\s*10\s*(?:\^|\*\*)\s*"
  r"(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))"
)
_POWER_OF_TEN = re.compile(r"10\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|(\d))")
_FRACTION = re.compile(_RATIO)
_MIXED = re.compile(rf"({_INTEGER})\s*(?: |(?=\\))\s*{_RATIO}")
_REPEATING = re.compile(
  r"(\d{0,40})\.(\d{0,40})(?:\\(?:overline|bar|dot)\s*\{?(\d{1,40}+)\}?+(?!\d*\\dot)"
  r"|\\dot\s*\{?(\d)\}?(\d{0,40})\\dot\s*\{?(\d)\}?"
  r"|\((\d{1,40})\)|(\d)\8{2,40}(?:\.\.\.|\\l?dots))\s*"
)
_SIGN = re.compile(r"[-+] ?")
_CURRENCY = re.compile(r"(?:\\?(\$)|([€£₹¥])|\\text\s*\{\s*(\\?\$)\s*\}) ?")
_CURRENCY_WORD = re.compile(r"(?:USD|US\\?\$|EUR|Rs\.?)\s*(?=[-\d.])")
_PERCENT = re.compile(
  r"\s*(?:\\?%|\b(?:percent|percentage|pct|per cent)\b)(?: points?)?\Z",
  re.IGNORECASE,
)
_MULTIPLES = {
  "dozen": 12,
  "hundred": 100,
  "thousand": 10**3,
  "million": 10**6,
  "billion": 10**9,
  "trillion": 10**12,
}
# Words after a number that change its value or are not about one number.
_NO_UNIT = re.compile(
  r"\b(?:or|and|plus|minus|times|over|divided|modulo|mod|to|by|through|until"
  r"|half|halves|thirds?|quarters?|fourths|fifths|tenths|hundredths|pi|sqrt"
  r"|roots?|sin|cos|tan|log|ln|exp|factorial|choose|base|point|not|no|negative"
  r"|infinity|inf|less|than|if|when|where|remainder|squared|cubed|about"
  r"|at|least|most|between|either|both|none)\b",
  re.IGNORECASE,
)
_ALIKE = 1000  # A decimal and what it rounds differ by one part in so many.
_LABEL = re.compile(r"[A-Za-z][A-Za-z ,.'’()/-]*")
_UNIT_SIGNS = re.compile(r"[A-Za-z°µΩ$¢€₹¥ ./*^{}\d\\-]+")
_SOME_UNIT = re.compile(
  r"(?:(?:square|sq\.?|cubic|cu\.?) )?units?\.?(?: ?\^ ?\{?\d\}?)?",
  re.IGNORECASE,
)
_PER = re.compile(
  r"\\frac ?\{ ?(\\?[A-Za-z][^{}\d]*(?:\{[^{}]*\})?) ?\}"
  r" ?\{ ?(\\?[A-Za-z][^{}\d]*(?:\{[^{}]*\})?) ?\}"
)
# `1 hour and 30 minutes`
_PART = re.compile(
  r"(\$?[\d.,]*\d) ?([A-Za-z]+\.?|['’\"]|'')(?:,? and |,? |\Z|(?<=['’]))",
  re.IGNORECASE,
)
_MARKS = {"'": "ft", "’": "ft", '"': "in", "''": "in"}
_FACTOR = re.compile(r"(?<![\d^{-])\d")


class Quantity(NamedTuple):
  """A number with what stands beside it.

  Attributes:
    value: The number itself, before a percent sign.
    unit: Its unit of measurement, if it has a known one.
    is_percent: True if a percent sign follows.
    is_decimal: True if it is written with a decimal point.
  """

  value: Fraction
  unit: math_units.Unit | None
  is_percent: bool
  is_decimal: bool


def quantity(text: str) -> Quantity | None:
  """Reads a number with a unit, a currency or a label, or returns None.

  Args:
    text: What `math_spelling.plain` returns.
  """
  head, unit = _without_currency(text)
  percent = _PERCENT.search(math_spelling.without_text_commands(head))
  if percent:
    head = math_spelling.without_text_commands(head)[: percent.start()]
  number = _longest_number(head)
  if number is None:
    return None
  if (found := _compound(head)) is not None:
    return found
  value, is_decimal, end = number
  rest = head[end:].strip()
  if rest.startswith("\\$") or rest == "$":
    unit, rest = math_units.read("$"), rest.lstrip("\\$")
  if rest:
    read = _label(rest, has_space=head[end : end + 1] in (" ", "\\"))
    if read is None or percent:
      return None
    multiple, named = read
    value, unit = value * multiple, named or unit
  return Quantity(value, unit, bool(percent), is_decimal)


def is_same_quantity(gold: Quantity, answer: Quantity) -> bool:
  value = answer.value
  if gold.unit and answer.unit:
    ratio = math_units.ratio(answer.unit, gold.unit)
    if ratio is None:
      return False
    value *= ratio
  if gold.is_percent == answer.is_percent:
    return _is_same_number(gold, answer._replace(value=value))
  hundredth = Fraction(1, 100)
  if gold.is_percent:
    spellings = gold.value, gold.value * hundredth
    return any(
      _is_same_number(gold._replace(value=x), answer) for x in spellings
    )
  # Below one, a percent sign makes a number another one: 0.5 is no 0.5 %.
  spellings = [value * hundredth]
  if abs(value) >= 1 or not value:
    spellings.append(value)
  return any(_is_same_number(gold, answer._replace(value=x)) for x in spellings)


def _is_same_number(gold: Quantity, answer: Quantity) -> bool:
  a, b = gold.value, answer.value
  if a == b:
    return True
  # A decimal can only round a fraction such as 1/3.
  for decimal, other, exact in ((gold, answer, b), (answer, gold, a)):
    if decimal.is_decimal and not other.is_decimal and not _terminates(exact):
      return rounds_to(a, b)
  return False


def rounds_to(a: Fraction, b: Fraction) -> bool:
  """Returns True if two numbers are equal to six places, and nearly so."""
  largest = max(abs(a), abs(b))
  return round(a, 6) == round(b, 6) and abs(a - b) * _ALIKE <= largest


def _terminates(value: Fraction) -> bool:
  rest = value.denominator
  for prime in (2, 5):
    while rest % prime == 0:
      rest //= prime
  return rest == 1


def _longest_number(text: str) -> tuple[Fraction, bool, int] | None:
  """Returns a number at the beginning, if it has a point, and its end."""
  sign = _SIGN.match(text)
  start = sign.end() if sign else 0
  factor = -1 if sign and sign[0][0] == "-" else 1
  currency = _CURRENCY.match(text, start)
  start = currency.end() if currency else start
  for read in (_repeating, _scientific, _mixed, _fraction, _decimal):
    found = read(text, start)
    if found is not None:
      value, is_decimal, end = found
      return factor * value, is_decimal, end
  return None


def _repeating(text: str, start: int) -> tuple[Fraction, bool, int] | None:
  found = _REPEATING.match(text, start)
  if found is None:
    return None
  whole, digits = found[1] or "0", found[2]
  dotted = f"{found[4]}{found[5]}{found[6]}" if found[4] else None
  period = found[3] or dotted or found[7] or found[8]
  shift = 10 ** len(digits)
  value = Fraction(int(whole + digits), shift)
  value += Fraction(int(period), shift * (10 ** len(period) - 1))
  return value, False, found.end()


def _scientific(text: str, start: int) -> tuple[Fraction, bool, int] | None:
  found = _SCIENTIFIC.match(text, start)
  if found is not None:
    value = _value(found[1]) * Fraction(10) ** int(found[2] or found[3])
    return value, "." in found[1], found.end()
  found = _POWER_OF_TEN.match(text, start)
  if found is None:
    return None
  return Fraction(10) ** int(found[1] or found[2]), False, found.end()


def _mixed(text: str, start: int) -> tuple[Fraction, bool, int] | None:
  found = _MIXED.match(text, start)
  part = found and _ratio(found.groups()[1:])
  # 2 3/2 is no mixed number, but a product or a mistake.
  if not found or part is None or not 0 < part < 1:
    return None
  return _value(found[1]) + part, False, found.end()


def _fraction(text: str, start: int) -> tuple[Fraction, bool, int] | None:
  found = _FRACTION.match(text, start)
  value = found and _ratio(found.groups())
  return None if found is None or value is None else (value, False, found.end())


def _decimal(text: str, start: int) -> tuple[Fraction, bool, int] | None:
  found = NUMBER.match(text, start)
  return found and (_value(found[0]), "." in found[0], found.end())


def _ratio(groups: Sequence[str | None]) -> Fraction | None:
  above, below = (x for x in groups if x is not None)
  divisor = _value(below)
  return _value(above) / divisor if divisor else None


def _value(digits: str) -> Fraction:
  return Fraction(digits.replace(",", "").replace(" ", "").rstrip("."))


def _without_currency(text: str) -> tuple[str, math_units.Unit | None]:
  """Removes a currency in front; its sign may stand before or after."""
  text = _CURRENCY_WORD.sub("", text, count=1)
  sign = _SIGN.match(text)
  start = sign.end() if sign else 0
  found = _CURRENCY.match(text, start)
  if found is None:
    return text, None
  name = (found[1] or found[2] or found[3]).lstrip("\\")
  return text[:start] + text[found.end() :], math_units.read(name)


def _label(
  rest: str, *, has_space: bool
) -> tuple[int, math_units.Unit | None] | None:
  """Reads what follows a number: a factor and a unit, or None if neither."""
  is_text = math_spelling.is_text(rest)
  rest = _PER.sub(r"\1 / \2", rest)
  words = math_spelling.without_text_commands(rest)
  if has_space and words[:1] == "(" and words[-1:] == ")":
    words = words[1:-1].strip()
  if _SOME_UNIT.fullmatch(words):
    return 1, None
  first, _, others = words.partition(" ")
  multiple = _MULTIPLES.get(first.lower().removesuffix("s"), 1)
  if multiple > 1:
    words = others.strip()
    if not words:
      return multiple, None
  is_unit = _UNIT_SIGNS.fullmatch(words) and not _FACTOR.search(words)
  unit = math_units.read(words) if is_unit else None
  if unit is not None:
    return multiple, unit
  named = re.findall(r"[A-Za-z]+", words)
  if not _LABEL.fullmatch(words) or _NO_UNIT.search(words):
    return None
  # Letters may be variables, unless they are a word.
  if is_text or (has_space and len(named[0]) > 2 and _has_vowel(named[0])):
    return multiple, None
  return None


def _compound(text: str) -> Quantity | None:
  """Reads a quantity in several units, each smaller than the one before it."""
  text = math_spelling.without_text_commands(text)
  parts: list[Quantity] = []
  place = 0
  while found := _PART.match(text, place):
    name = found[2].rstrip(".")
    unit = math_units.read(_MARKS.get(name, name))
    number = _longest_number(found[1])
    if unit is None or number is None or number[2] < len(found[1]):
      return None
    parts.append(Quantity(number[0], unit, False, number[1]))
    place = found.end()
  if len(parts) < 2 or place < len(text):
    return None
  first, total = parts[0], parts[0].value
  for large, small in itertools.pairwise(parts):
    size = _size(small, large)
    if size is None or size >= 1:
      return None
    total += small.value * (_size(small, first) or 0)
  return first._replace(value=total)


def _size(part: Quantity, other: Quantity) -> Fraction | None:
  """Returns the unit of a part in units of another one."""
  if part.unit is None or other.unit is None:
    return None
  return math_units.ratio(part.unit, other.unit)


def label(text: str) -> str:
  """Returns the words after a number, as `red` in `5 red`, or nothing."""
  words = re.findall(
    r"[a-z]+", math_spelling.without_text_commands(text).lower()
  )
  return " ".join(word.removesuffix("s") for word in words)


def _has_vowel(word: str) -> bool:
  return not set(word.lower()).isdisjoint("aeiouy")


def with_unit(text: str) -> tuple[str, math_units.Unit | None]:
  """Splits a formula from a unit or label at its end."""
  found = re.search(
    r"(?<=[\w)}\]])\s*(?:(\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}"
    r"(?:\s*(?:\^\s*\{?-?\d\}?|/\s*\\(?:text|mathrm)\s*\{[^{}]*\}))*)"
    r"|°|\s([A-Za-z]{2,}(?:\^\{?\d\}?)?))\Z",
    text,
  )
  if found is None:
    return text, None
  words = math_spelling.without_text_commands(found[0]).replace(" ^", "^")
  unit = math_units.read(words)
  is_label = _LABEL.fullmatch(words) and not _NO_UNIT.search(words)
  is_label = found[1] and (is_label or _SOME_UNIT.fullmatch(words))
  if unit is None and not is_label:
    return text, None
  return text[: found.start()].strip(), unit
