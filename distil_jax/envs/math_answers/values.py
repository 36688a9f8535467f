"""Checks formulas that an algebra system calls equal, at full precision.

It calls numbers equal that agree to 15 digits after the point, so any two small
ones. Imported by functions of `worker` alone, as sympy is no part of the base
install.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy
from sympy.core.relational import Relational

_DIGITS = 50
# Formulas that are equal agree in all digits; one in decimals is rounded.
_EXACT = sympy.Float("1e-30", _DIGITS)
_ROUNDED = sympy.Rational(1, 1000)
_LISTS = sympy.Tuple, sympy.FiniteSet, sympy.Interval
# Values of variables that no formula is likely to single out.
_POINTS = (Fraction(17, 13), Fraction(41, 19))


def is_close(gold: Any, answer: Any) -> bool:
  """Returns False if two formulas differ although algebra calls them equal.

  What cannot be evaluated is taken as equal.
  """
  try:
    return _is_close(gold, answer)
  except (TypeError, ValueError, AttributeError, ArithmeticError):
    return True


def is_same_set(gold: Any, answer: Any) -> bool:
  """Returns True if two results of `as_set` are equal and there are any."""
  return gold is not None and answer is not None and bool(gold == answer)


def as_set(parts: Sequence[Any], is_all: bool) -> Any:
  """Returns the real numbers that inequalities or intervals describe, or None.

  Args:
    parts: Inequalities of one variable, or one set.
    is_all: All of them hold, not only one.
  """
  if len(parts) == 1 and isinstance(parts[0], sympy.Set):
    return parts[0]
  try:
    sets = [_solutions(part) for part in parts]
  except (TypeError, ValueError, AttributeError, NotImplementedError):
    return None
  if not sets or None in sets:
    return None
  return (sympy.Intersection if is_all else sympy.Union)(*sets)


def _is_close(gold: Any, answer: Any) -> bool:
  if gold == answer or isinstance(gold, str) or isinstance(answer, str):
    return True
  if isinstance(answer, Relational) and not isinstance(gold, Relational):
    answer = answer.rhs if isinstance(answer, sympy.Eq) else answer
  if isinstance(gold, Relational) and not isinstance(answer, Relational):
    gold = gold.rhs if isinstance(gold, sympy.Eq) else gold
  if isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr):
    return _is_close_number(gold, answer)
  if isinstance(gold, sympy.MatrixBase) and isinstance(
    answer, sympy.MatrixBase
  ):
    return all(map(_is_close, gold.flat(), answer.flat()))
  if isinstance(gold, _LISTS) or isinstance(answer, _LISTS):
    a, b = _elements(gold), _elements(answer)
    if type(gold) is type(answer) and not isinstance(gold, sympy.FiniteSet):
      return len(a) == len(b) and all(map(_is_close, a, b))
    return all(any(_is_close(x, y) for y in b) for x in a)
  if isinstance(gold, Relational) and isinstance(answer, Relational):
    sets = as_set([gold], True), as_set([answer], True)
    is_rounded = gold.atoms(sympy.Float) | answer.atoms(sympy.Float)
    return bool(is_rounded) or None in sets or is_same_set(*sets)
  return True


def _elements(value: Any) -> tuple[Any, ...]:
  if isinstance(value, sympy.Interval):
    return value.start, value.end
  return value.args if isinstance(value, _LISTS) else (value,)


def _is_close_number(gold: Any, answer: Any) -> bool:
  is_rounded = bool((gold + answer).atoms(sympy.Float))
  symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
  if not symbols and not is_rounded:
    exact = [x.doit() for x in (gold, answer)]
    if all(x.is_Rational for x in exact):
      # A percent sign is kept by the algebra, and may be left out.
      return (
        exact[0] == exact[1]
        or bool(exact[0] == 100 * exact[1])
        or bool(100 * exact[0] == exact[1])
      )
  for point in _POINTS:
    values = {
      symbol: sympy.Rational(point.numerator + i, point.denominator)
      for i, symbol in enumerate(symbols)
    }
    a, b = (sympy.N(x.subs(values), _DIGITS) for x in (gold, answer))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
      continue
    largest = max(abs(a), abs(b))
    if abs(a - b) > largest * (_ROUNDED if is_rounded else _EXACT):
      return False
  return True


def _solutions(value: Any) -> Any:
  """Returns the solutions of an inequality, or of a chain of them, or None."""
  parts = getattr(value, "_unsorted_args", None) or [value]
  is_known = all(
    isinstance(x, Relational) and not isinstance(x, sympy.Eq) for x in parts
  )
  if not is_known or len(value.free_symbols) != 1:
    return None
  return sympy.Intersection(*(part.as_set() for part in parts))
