"""Compares answers that are numbers, quantities, words, or lists of them.

What needs algebra is left to the caller.
"""

import re
from collections.abc import Callable

from distil_jax.envs.math_answers import quantities
from distil_jax.envs.math_answers import spelling as math_spelling
from distil_jax.envs.math_answers import units as math_units

# Compares two formulas: `algebra(gold, answer)`.
Algebra = Callable[[str, str], bool | None]
_LETTERS = re.compile(r"[A-Za-z]+(?:[ '’-][A-Za-z]+)*")
_ASSIGNED = re.compile(
  r"([A-Za-z](?:_\{?\w{1,3}\}?|\([a-z]\))?|[A-Z]{2,3}) ?= ?"
)
_AND = re.compile(
  r"\s*(?:,|;|\\text\s*\{\s*,?\s*(?:and|or)\s*\})\s*(?:and|or)?(?![A-Za-z])"
  r"|\s+(?:and|or)\s+",
  re.IGNORECASE,
)
_TWO_NUMBERS = re.compile(r"(?<![\d^_])[\d.]+ +[\d.]*\d")
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
  text = math_spelling.plain(text)
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


def _compare(gold: str, answer: str, algebra: Algebra) -> bool | None:
  if gold == answer:
    return True
  a, b = quantities.quantity(gold), quantities.quantity(answer)
  if a is None or b is None:
    # `x = 5` is 5, but no `y = 5`.
    named = _ASSIGNED.match(gold), _ASSIGNED.match(answer)
    if named[0] and not named[1]:
      return _compare(gold[named[0].end() :], answer, algebra)
    if named[1] and not named[0] and "=" not in gold:
      rest = answer[named[1].end() :]
      if "=" not in rest:
        return _compare(gold, rest, algebra)
  if a is not None and b is not None:
    return quantities.is_same_quantity(a, b)
  words = _words(gold), _words(answer)
  if None not in words:
    return words[0] == words[1] or _is_product(gold, answer)
  return _compare_lists(gold, answer, a, algebra)


def _compare_lists(
  gold: str, answer: str, a: quantities.Quantity | None, algebra: Algebra
) -> bool | None:
  wanted, found = items(gold), items(answer)
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
  for one in wanted:
    for i, other in enumerate(found):
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
