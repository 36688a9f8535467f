"""Reads units of measurement, to tell `5 cm` from `5 m`."""

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
  """A product of powers of base units.

  Attributes:
    factor: Size in base units.
    powers: Pairs of a base unit and its exponent, sorted; none for a number.
  """

  factor: Fraction
  powers: tuple[tuple[str, int], ...]


# Base unit, and then the size in it and all spellings of each unit.
_TABLE: dict[str, dict[str, str]] = {
  "m": {
    "1": "m meter metre",
    "1/10": "dm decimeter decimetre",
    "1/100": "cm centimeter centimetre",
    "1/1000": "mm millimeter millimetre",
    "1/1000000": "µm micrometer micrometre micron",
    "1/1000000000": "nm nanometer nanometre",
    "1000": "km kilometer kilometre",
    "0.0254": "in inch inches",
    "0.3048": "ft foot feet",
    "0.9144": "yd yard",
    "1609.344": "mi mile",
  },
  "g": {
    "1": "g gram gramme gm",
    "1/1000": "mg milligram",
    "1000": "kg kilogram kilo",
    "1000000": "ton tonne",
    "453.59237": "lb lbs pound",
    "28.349523125": "oz ounce",
  },
  "s": {
    "1": "s sec second",
    "1/1000": "ms millisecond",
    "60": "min minute",
    "3600": "h hr hour",
    "86400": "day",
    "604800": "week",
  },
  "month": {"1": "month", "12": "yr year"},
  "usd": {"1": "usd dollar buck $", "1/100": "cent ¢", "1/10": "dime"},
  "eur": {"1": "eur euro €"},
  "inr": {"1": "rs rupee ₹"},
  "jpy": {"1": "yen jpy ¥"},
  "gallon": {
    "1": "gal gallon",
    "1/4": "quart qt",
    "1/8": "pint",
    "1/16": "cup",
  },
  "degree": {"1": "deg degree °"},
  "celsius": {"1": "°C C celsius"},
  "fahrenheit": {"1": "°F F fahrenheit"},
  "kelvin": {"1": "K kelvin"},
  "radian": {"1": "rad radian"},
  "newton": {"1": "N newton"},
  "joule": {"1": "J joule", "1000": "kJ kilojoule"},
  "watt": {"1": "W watt", "1000": "kW kilowatt"},
  "volt": {"1": "V volt"},
  "ampere": {"1": "A amp ampere"},
  "ohm": {"1": "Ω ohm"},
  "hertz": {"1": "Hz hertz"},
  "mole": {"1": "mol mole"},
  "acre": {"1": "acre"},
}
_COMPOUND = {
  "mph": "mi/h",
  "kmh": "km/h",
  "kmph": "km/h",
  "kph": "km/h",
  "cc": "cm^3",
  **dict.fromkeys(("l", "L", "liter", "litre"), "dm^3"),
  **dict.fromkeys(("ml", "mL", "milliliter", "millilitre"), "cm^3"),
  **dict.fromkeys(("ha", "hectare"), "10000*m^2"),
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_RAISED = {"squared": 2, "cubed": 3}
_UNITS = {
  spelling: Unit(Fraction(factor), ((base, 1),))
  for base, sizes in _TABLE.items()
  for factor, spellings in sizes.items()
  for spelling in spellings.split()
}
_TOKEN = re.compile(
  r"\s*(?:(°[CF]?|[$¢€₹¥]|[A-Za-zµΩ]+)\.?|\^\{?(-?\d)\}?|([/*]|\\cdot)"
  r"|(\d{1,9}))\s*"
)
_ONE = Unit(Fraction(1), ())
_DEGREE = ("degree", 1)
_TEMPERATURES = (("celsius", 1), ("fahrenheit", 1))


def read(text: str) -> Unit | None:
  """Returns the unit that a text names, or None if it names none.

  Args:
    text: Names with powers, such as `cm^2`, `km/h` or `dollars per hour`.
  """
  product, last = _ONE, None
  sign, ahead, place = 1, 1, 0
  while place < len(text):
    token = _TOKEN.match(text, place)
    if token is None:
      return None
    place = token.end()
    name, power, operator, number = token.groups()
    if name in _RAISED:
      power = str(_RAISED[name])
    if power is not None:
      if last is None:
        return None
      # One power of it is in the product already.
      product, last = _times(product, last, int(power) - 1), None
    elif operator or name == "per":
      sign = 1 if operator in ("*", "\\cdot") else -1
    elif name in _POWERS:
      ahead = _POWERS[name]
    else:
      found = _named(name) if name else Unit(Fraction(number), ())
      if found is None:
        return None
      last = _times(_ONE, found, sign * ahead)
      product, ahead = _times(product, last, 1), 1
  if any(scale in product.powers for scale in _TEMPERATURES):
    rest = tuple(x for x in product.powers if x != _DEGREE)
    product = Unit(product.factor, rest)
  return None if product == _ONE and last is None else product


def ratio(a: Unit, b: Unit) -> Fraction | None:
  """Returns the size of `a` in units of `b`, or None if they do not compare."""
  if a.powers == b.powers:
    return a.factor / b.factor
  # Degrees may leave out the scale of a temperature.
  both = {a.powers, b.powers}
  if (_DEGREE,) in both and any((scale,) in both for scale in _TEMPERATURES):
    return Fraction(1)
  return None


def _times(product: Unit, unit: Unit, exponent: int) -> Unit:
  """Returns the product times a power of a unit."""
  powers = Counter(dict(product.powers))
  for base, n in unit.powers:
    powers[base] += n * exponent
  return Unit(
    product.factor * unit.factor**exponent,
    tuple(sorted((base, n) for base, n in powers.items() if n)),
  )


def _named(name: str) -> Unit | None:
  # Letters keep their case: `M` is no metre.
  words = [name] if len(name) == 1 else [name, name.lower()]
  words += [word[:-1] for word in words if len(word) > 2 and word[-1] == "s"]
  for word in words:
    if word in _COMPOUND:
      return read(_COMPOUND[word])
    if word in _UNITS:
      return _UNITS[word]
  return None
