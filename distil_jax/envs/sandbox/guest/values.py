"""Converts plain values to JSON and back, keeping their types.

Values that a program returns must be told apart by type ([1] is not (1,)), and
must not have behaviour of their own, such as an `__eq__` that is always true.
So only values of Python's plain types pass, and only their content.
"""

import base64
import collections
import decimal
import fractions
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 100
# Items that are read from an iterator, which may have no end.
_MAX_ITEMS = 1000
_NO_ENCODING = (TypeError, ValueError, LookupError)
_NO_ENCODING += (ArithmeticError, RecursionError)


class PlainError(ValueError):
  """Means that a value is not plain, or that this is no encoding of one."""


def encode(value: Any, depth: int = 0) -> list[Any]:
  """Returns the JSON of a plain value.

  Raises:
    PlainError: The value or a part of it is not plain, or is nested too deep.
  """
  if depth > MAX_DEPTH:
    raise PlainError("a value nested too deep")
  if value is None:
    return ["none"]
  # A bool is an int too, so it is asked for first.
  if isinstance(value, bool):
    return ["bool", bool(value)]
  if isinstance(value, int):
    # Python limits the number of decimal digits, but not of hexadecimal ones.
    return ["int", hex(int(value))]
  # Hexadecimal is exact, and has a form for infinity, which JSON lacks.
  if isinstance(value, float):
    return ["float", float(value).hex()]
  if isinstance(value, complex):
    return ["complex", value.real.hex(), value.imag.hex()]
  if isinstance(value, str):
    # `str` may return an object of a subclass, `join` never does.
    return ["str", "".join(value)]
  if isinstance(value, bytes | bytearray):
    kind = "bytes" if isinstance(value, bytes) else "bytearray"
    return [kind, base64.b64encode(bytes(value)).decode()]
  if isinstance(value, decimal.Decimal | fractions.Fraction):
    return [type(value).__name__.lower(), str(value)]
  if isinstance(value, range):
    return ["range", [hex(x) for x in (value.start, value.stop, value.step)]]
  if isinstance(value, Iterator):
    # One item more than is kept tells `_items` that the end was not reached.
    items = list(itertools.islice(value, _MAX_ITEMS + 1))
    return ["iterator", [encode(x, depth + 1) for x in items]]
  for kind, collection in _COLLECTIONS.items():
    if isinstance(value, collection):
      return [kind, [encode(x, depth + 1) for x in value]]
  if isinstance(value, dict):
    items = [[encode(x, depth + 1) for x in pair] for pair in value.items()]
    return ["dict", items]
  # By name, because numpy may not be installed.
  if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
    return encode(value.tolist(), depth + 1)
  raise PlainError(f"a {type(value).__name__}, which is no plain value")


def decode(encoded: Any) -> Any:
  """Returns the value; for a program's values only within the sandbox.

  Sets and dictionaries of numbers with equal hashes take for ever to build.

  Raises:
    PlainError: This is no encoding.
  """
  try:
    kind, *parts = encoded
    if kind in _COLLECTIONS:
      return _COLLECTIONS[kind](decode(x) for x in parts[0])
    if kind == "dict":
      return {decode(key): decode(value) for key, value in parts[0]}
    if kind == "iterator":
      return _items([decode(x) for x in parts[0]])
    return _ATOMS[kind](*parts)
  except _NO_ENCODING:
    raise PlainError("no encoding of a value") from None


def as_json(encoded: Any, depth: int = 0) -> Any:
  """Returns the value as JSON has it: tuples are lists, keys are strings.

  It is safe outside the sandbox: it builds no sets, and only dictionaries whose
  keys are strings.

  Raises:
    PlainError: JSON has no such value, or this is no encoding.
  """
  if depth > MAX_DEPTH:
    raise PlainError("a value nested too deep")
  try:
    kind, *parts = encoded
    if kind in ("list", "tuple"):
      return [as_json(x, depth + 1) for x in parts[0]]
    if kind == "dict":
      items = [(_key(k), as_json(v, depth + 1)) for k, v in parts[0]]
      if len(found := dict(items)) < len(items):
        raise PlainError("two keys that are one in JSON")
      return found
    if kind in ("none", "bool", "int", "float", "str"):
      return _ATOMS[kind](*parts)
    if kind in _COLLECTIONS or kind in _ATOMS or kind == "iterator":
      article = "an" if kind[0] in "aeiou" else "a"
      raise PlainError(f"{article} {kind}, which JSON does not know")
  except PlainError:
    raise
  except _NO_ENCODING:
    pass
  raise PlainError("no encoding of a value")


def _items(items: list[Any]) -> Iterator[Any]:
  yield from items[:_MAX_ITEMS]
  if len(items) > _MAX_ITEMS:
    # A test fails only if it reads that far.
    raise PlainError(f"an iterator, read past {_MAX_ITEMS} items")


def _key(encoded: Any) -> str:
  """Returns a key as JSON writes it: files have turned numbers into texts."""
  kind, *parts = encoded
  if kind not in ("str", "int", "float", "bool", "none"):
    raise PlainError("a key that is no text")
  key = _ATOMS[kind](*parts)
  return key if kind == "str" else json.dumps(key)


def _bool(value: Any) -> bool:
  if not isinstance(value, bool):
    raise ValueError(value)
  return value


def _str(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(value)
  return value


def _float(text: str) -> float:
  value = float.fromhex(text)
  # One object, because lists find what they contain equal if it is the same.
  return math.nan if math.isnan(value) else value


_COLLECTIONS = {
  "list": list,
  "tuple": tuple,
  "set": set,
  "frozenset": frozenset,
  "deque": collections.deque,
}
_ATOMS = {
  "none": lambda: None,
  "bool": _bool,
  "int": lambda text: int(text, 16),
  "float": _float,
  "complex": lambda a, b: complex(_float(a), _float(b)),
  "str": _str,
  "bytes": base64.b64decode,
  "bytearray": lambda text: bytearray(base64.b64decode(text)),
  "decimal": decimal.Decimal,
  "fraction": fractions.Fraction,
  "range": lambda numbers: range(*(int(x, 16) for x in numbers)),
}
