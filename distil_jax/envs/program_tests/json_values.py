"""Decodes the JSON of tests, which may be packed or have huge integers."""

import base64
import binascii
import io
import json
import pickle
import zlib
from typing import Any

# Python refuses to read integers of more than 4300 digits at once.
_MAX_DIGITS = 4000
_MAX_UNPACKED = 256 << 20


def decoded(text: str) -> Any:
  """Decodes JSON with integers of any length, which Python refuses to read."""
  return json.loads(text, parse_int=_integer)


def _integer(digits: str) -> int:
  if len(digits) <= _MAX_DIGITS:
    return int(digits)
  sign = -1 if digits[0] == "-" else 1
  found, digits = 0, digits.lstrip("-")
  for start in range(0, len(digits), _MAX_DIGITS):
    piece = digits[start : start + _MAX_DIGITS]
    found = found * 10 ** len(piece) + int(piece)
  return sign * found


def read(value: Any, field: str) -> Any:
  """Decodes JSON text, also if it is packed as in LiveCodeBench."""
  if not isinstance(value, str):
    return value
  if not value.strip():
    return None
  try:
    return decoded(value)
  except ValueError:
    pass
  try:
    return decoded(_unpacked(value))
  except (ValueError, binascii.Error, zlib.error, pickle.UnpicklingError):
    raise ValueError(f"{field} is no JSON") from None


class _TextOnly(pickle.Unpickler):
  """Unpickles texts alone, because other objects could run programs."""

  def find_class(self, module_name: str, global_name: str) -> Any:
    raise pickle.UnpicklingError(f"{module_name}.{global_name} is no text")


def _unpacked(text: str) -> str:
  unpacker = zlib.decompressobj()
  # A few bytes can unpack to more than fits into memory.
  data = unpacker.decompress(
    # Without validation other characters would be skipped silently.
    base64.b64decode(text, validate=True),
    _MAX_UNPACKED,
  )
  if unpacker.unconsumed_tail:
    raise ValueError("too long")
  found = _TextOnly(io.BytesIO(data)).load()
  if not isinstance(found, str):
    raise ValueError("no text")
  return found
