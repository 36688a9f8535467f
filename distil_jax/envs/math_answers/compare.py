"""Compares answers that are numbers, quantities, words, or lists of them.

What needs algebra is left to the caller.
"""

import re
from collections.abc import Callable, Sequence

from distil_jax.envs.math_answers import (
  dates,
  labels,
  notation,
  number_words,
  quantities,
)
from distil_jax.envs.math_answers import spelling as math_spelling
from distil_jax.envs.math_answers import units as math_units

# Compares two formulas: `algebra(gold, answer)`.
Algebra = Callable[[str, str], bool | None]
_LETTERS = re.compile(r"[A-Za-z]+(?:[ '’-][A-Za-z]+)*")
_ASSIGNED = re.compile(
  r"([A-Za-z](?:_\{?\w{1,3}\}?)?(?:\([^()=]{1,20}\))?|[A-Z]{2,3}) ?= ?"
)
_AND = re.compile(
  r"\s*(?:,|;|\\text\s*\{\s*,?\s*(?:and|or)\s*\})\s*(?:and|or)?(?![A-Za-z])"
  r"|\s+(?:and|or)\s+",
  re.IGNORECASE,
)
# `4 \\text{ apples and } 6 \\text{ pears}` are two.
_AND_AT_END = re.compile(r"\\text\s*\{([^{}]*?\w[^{}]*?)\b(and|or)\s*\}")
_TWO_NUMBERS = re.compile(r"(?<![\d^_])[\d.]+ +[\d.]*\d")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_CONJUNCTION = re.compile(r"\b(?:and|or)\b", re.IGNORECASE)
# Ways to say that nothing solves an equation.
_NOTHING = "no solution"
_EMPTY = frozenset(["\\emptyset", "\\varnothing", "\\{\\}", "\\{ \\}"])
_NO_SOLUTION = frozenset(
  [
    "no solution",
    "no solutions",
    "no real solution",
    "no real solutions",
    "empty set",
    "the empty set",
    "none",
  ]
)
# Other words for one thing.
_SYNONYMS = {
  "all real numbers": "(-\\infty,\\infty)",
  "all reals": "(-\\infty,\\infty)",
  "infinity": "\\infty",
  "positive infinity": "\\infty",
  "negative infinity": "-\\infty",
  "-infinity": "-\\infty",
  "dne": "does not exist",
  "infinitely many": "infinitely many solutions",
}
_TURNED = re.compile(r"([^=]*\d[^=]*)=\s*([A-Za-z])")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_BRACKETS = "([\\"
_OPEN, _CLOSE = "([{", ")]}"


def compare(gold: str, answer: str, algebra: Algebra) -> bool | None:
  """Compares two answers.

  Args:
    gold: The right answer.
    answer: Another one.
    algebra: Compares what is no plain value; its None is passed on.
  """
  return _compare(
    math_spelling.plain(gold), math_spelling.plain(answer), algebra
  )


def no_algebra(gold: str, answer: str) -> None:
  """Leaves formulas undecided."""
  del gold, answer


def items(text: str) -> list[str]:
  """Splits a list at commas, `and` and `or` outside of brackets.

  Braces around a set are removed; a number such as `1,200` is one item.
  """
  text = _AND_AT_END.sub(r"\\text{\1} \2 ", math_spelling.plain(text))
  if (
    text.startswith("\\{")
    and text.endswith("\\}")
    and (text.find("\\}") == len(text) - 2)
  ):
    text = text[2:-2].strip()
  if quantities.NUMBER.fullmatch(text):
    return [text]
  found, start, depth, place = [], 0, 0, 0
  while place < len(text):
    sign = text[place]
    depth += (sign in _OPEN) - (sign in _CLOSE)
    split = _AND.match(text, place) if depth == 0 else None
    if split is None or not split[0] or _is_thousands(text, start, split):
      place += 1
      continue
    found.append(text[start:place].strip())
    place = start = split.end()
  found.append(text[start:].strip())
  return [item for item in found if item]


def has_decimal_comma(answer: str) -> bool:
  """Returns True for `3,14`, which is read as the values 3 and 14."""
  text = math_spelling.plain(answer)
  is_number = quantities.NUMBER.fullmatch(text) is not None
  return not is_number and _DECIMAL_COMMA.fullmatch(text) is not None


def _compare(gold: str, answer: str, algebra: Algebra) -> bool | None:
  if gold == answer:
    return True
  gold, answer = _in_one_form(gold), _in_one_form(answer)
  named = _named_values(gold, answer) or _same_name(gold, answer)
  gold, answer = named or (gold, answer)
  for is_same in (
    dates.is_same_date,
    notation.is_same_time,
    notation.is_same_based,
    notation.is_same_ratio,
    _is_same_option,
  ):
    if (found := is_same(gold, answer)) is not None:
      return found
  gold, answer = _in_digits(*_without_options(gold, answer))
  a, b = quantities.quantity(gold), quantities.quantity(answer)
  if a is None or b is None:
    # `x = 5` is 5, but no `y = 5`.
    named = _ASSIGNED.match(gold), _ASSIGNED.match(answer)
    if named[0] and not named[1] and "=" not in answer:
      rest = gold[named[0].end() :]
      if "=" not in rest:
        return _compare(rest, answer, algebra)
    if named[1] and not named[0] and "=" not in gold:
      rest = answer[named[1].end() :]
      if "=" not in rest:
        return _compare(gold, rest, algebra)
  if a is not None and b is not None:
    return quantities.is_same_quantity(a, b) and not labels.are_opposed(
      gold, answer
    )
  words = _words(gold), _words(answer)
  if None not in words:
    return words[0] == words[1] or _is_product(gold, answer)
  return _compare_lists(gold, answer, a, algebra)


def _compare_lists(
  gold: str, answer: str, a: quantities.Quantity | None, algebra: Algebra
) -> bool | None:
  wanted, found = _both_signs(items(gold)), _both_signs(items(answer))
  # A number of four digits with a comma may be a list of two.
  if len(wanted) == 2 and len(found) == 1 and "," in answer:
    found = [x.strip() for x in answer.strip("\\{} ").split(",")]
  if len(wanted) == len(found) == 1:
    return _formulas(gold, answer, algebra)
  if len(wanted) != len(found):
    # Several values are not one number, but `1 \pm 2` are two values.
    if a is not None or all(map(quantities.quantity, [*wanted, *found])):
      return False
    return algebra(gold, answer)
  undecided = False
  labels = set(map(quantities.label, wanted))
  for one in wanted:
    for i, other in enumerate(found):
      # `5 red, 3 blue` is not `3 red, 5 blue`.
      mine, its = quantities.label(one), quantities.label(other)
      if len(labels) > 1 and mine and its in labels and mine != its:
        continue
      is_same = _compare(one, other, algebra)
      if is_same:
        del found[i]
        break
      undecided |= is_same is None
    else:
      return None if undecided else False
  return True


def _formulas(gold: str, answer: str, algebra: Algebra) -> bool | None:
  """Compares formulas by algebra, and their units here."""
  # Two numbers beside each other are no formula that has a value.
  if _TWO_NUMBERS.search(answer) and not _TWO_NUMBERS.search(gold):
    return False
  (gold, unit), (answer, other) = (
    quantities.with_unit(gold),
    quantities.with_unit(answer),
  )
  if unit and other:
    ratio = math_units.ratio(other, unit)
    if ratio is None:
      return False
    if ratio != 1:
      answer = rf"\frac{{{ratio.numerator}}}{{{ratio.denominator}}}({answer})"
  is_same = algebra(gold, answer)
  # An angle in degrees is the same one in radians.
  for degrees, other_one, at in ((gold, answer, unit), (answer, gold, other)):
    is_angle = at is not None and at.powers == (("degree", 1),)
    is_turned = "\\pi" in other_one and "\\pi" not in degrees
    if is_same is False and is_angle and is_turned:
      return algebra(rf"\frac{{({degrees})\pi}}{{180}}", other_one)
  return is_same


def _in_one_form(text: str) -> str:
  """Returns a text with its synonyms and turned equations in one form."""
  words = math_spelling.without_text_commands(text).lower()
  text = _SYNONYMS.get(words, text)
  turned = _TURNED.fullmatch(text)
  return notation.with_colons(f"{turned[2]}={turned[1]}" if turned else text)


def _named_values(gold: str, answer: str) -> tuple[str, str] | None:
  """Returns `x=1, y=2` as `(1, 2)` if only one of two answers has names."""
  names, values = zip(*map(_split_name, items(gold) or [""]), strict=True)
  # `x_1` and `x_2` are values of one variable, whose order counts in brackets.
  letters = {name[:1] for name in names}
  others, other_values = zip(
    *map(_split_name, items(answer) or [""]), strict=True
  )
  is_in_order = len(letters) == len(names) or answer[:1] in _BRACKETS
  if not any(others) and _are_different(names) and is_in_order:
    return f"({','.join(values)})", _in_brackets(answer)
  if not any(names) and _are_different(others) and gold[:1] in _BRACKETS:
    return gold, f"({','.join(other_values)})"
  return None


def _are_different(names: Sequence[str]) -> bool:
  return all(names) and len(set(names)) == len(names) > 1


def _split_name(text: str) -> tuple[str, str]:
  named = _ASSIGNED.match(text)
  return (named[1], text[named.end() :]) if named else ("", text)


def _in_brackets(text: str) -> str:
  return text if text[:1] in _BRACKETS else f"({text})"


def _is_same_option(gold: str, answer: str) -> bool | None:
  """Compares options such as `(C) 12` by letter, or returns None."""
  a, b = notation.option(gold), notation.option(answer)
  letters = _words(gold), _words(answer)
  if a and b:
    return a[0] == b[0]
  if a and letters[1] and len(letters[1]) == 1:
    return a[0] == letters[1]
  if b and letters[0] and len(letters[0]) == 1:
    return b[0] == letters[0]
  return None


def _without_options(gold: str, answer: str) -> tuple[str, str]:
  """Returns two answers, one of which may be an option, without its letter."""
  a, b = notation.option(gold), notation.option(answer)
  return (a[1] if a else gold), (b[1] if b else answer)


def _same_name(gold: str, answer: str) -> tuple[str, str] | None:
  """Returns the values of `f(2)=5` and `f(2)=6`, or None."""
  (name, value), (other, its_value) = _split_name(gold), _split_name(answer)
  if not name or not other or "=" in value + its_value:
    return None
  return (value, its_value) if name == other else None


def _in_digits(gold: str, answer: str) -> tuple[str, str]:
  """Returns two answers with numbers in words, if one is a number.

  Words alone are compared as words: `Two Brothers` is no number.
  """
  a, b = map(math_spelling.without_text_commands, (gold, answer))
  values = number_words.value(a), number_words.value(b)
  is_number = quantities.quantity(gold) is not None or values[0] is not None
  if is_number and quantities.quantity(answer) is None:
    answer = number_words.in_digits(b) or answer
  if values[0] is not None:
    gold = number_words.in_digits(a) or gold
  return gold, answer


def _both_signs(values: list[str]) -> list[str]:
  """Returns values with one `\\pm` as two values."""
  found: list[str] = []
  for text in values:
    is_one = len(_PLUS_MINUS.findall(text)) == 1
    found += (
      [_PLUS_MINUS.sub(sign, text) for sign in "+-"] if is_one else [text]
    )
  return found


def _words(text: str) -> str | None:
  """Returns an answer in words, in one spelling, or None."""
  if text in _EMPTY:
    return _NOTHING
  plain = math_spelling.without_text_commands(text)
  plain = plain.strip("()[] .\"'")
  if not _LETTERS.fullmatch(plain):
    return None
  if plain.lower() in _NO_SOLUTION:
    return _NOTHING
  if _CONJUNCTION.search(plain):
    return None
  # A letter is a variable, or an option, and its case counts.
  return plain if len(plain) == 1 else plain.lower()


def _is_product(gold: str, answer: str) -> bool:
  """Returns True if two rows of variables are the same in another order."""
  variables = "abcd", "kmnpqrstuvwxyz", "abxy"
  return any(
    sorted(gold) == sorted(answer)
    and 2 <= len(gold) <= 3
    and set(gold) <= set(names)
    for names in variables
  )


def _is_thousands(text: str, start: int, split: re.Match) -> bool:
  """Returns True if a comma is part of a number such as `1,200`."""
  if split[0] != ",":
    return False
  number = quantities.NUMBER.match(
    text, _number_start(text, start, split.start())
  )
  return number is not None and number.end() > split.start() + 1


def _number_start(text: str, start: int, end: int) -> int:
  while end > start and (text[end - 1].isdigit() or text[end - 1] == ","):
    end -= 1
  return end
