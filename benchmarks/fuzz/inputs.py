"""Makes inputs out of good ones: damaged bytes, and values of other types."""

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

# What readers are known to stumble over.
_PIECES = (
  b"\x00",
  b"\xff\xfe",
  b"\xef\xbb\xbf",
  b"\r",
  b"\n\n",
  b"\\ud800",
  b"NaN",
  b"-Infinity",
  b"1e999",
  b"9" * 5000,
  b"-1",
  b"null",
  b"true",
  b"''",
  b'"',
  b"{",
  b"[" * 3000,
  b"{}" * 50,
  b"{{ x.__class__ }}",
  b"{% for i in range(9) %}",
  b"{% endif %}",
  b"{{ 1 / 0 }}",
  b"{{ raise_exception('no') }}",
  b"!!python/object/apply:os.system [echo]",
  b"&a [*a]",
  b"? - :",
  b"1_000",
  b"0x10",
  b"2001-01-01",
  b"__proto__",
  b"../../..",
)
_VALUES: tuple[Any, ...] = (
  None,
  True,
  False,
  0,
  -1,
  1,
  2**31,
  2**63,
  2**64,
  -(2**70),
  10**400,
  0.5,
  -0.0,
  1e308,
  float("nan"),
  float("inf"),
  "",
  "0",
  "x" * 10_000,
  "\ud800",
  "\x00",
  "../x",
  [],
  {},
  [[]],
  [None],
  [0] * 100,
  {"": None},
  {"type": "function"},
)


def damaged(content: bytes, rng: random.Random) -> bytes:
  """Returns bytes with one to four pieces changed, cut off or put in."""
  for _ in range(rng.randint(1, 4)):
    at = rng.randrange(len(content) + 1)
    end = min(len(content), at + rng.choice((1, 2, 8, 64)))
    match rng.randrange(6):
      case 0:
        content = content[:at]
      case 1:
        content = content[:at] + content[end:]
      case 2:
        content = content[:at] + content[at:end] * 2 + content[end:]
      case 3:
        content = content[:at] + rng.choice(_PIECES) + content[at:]
      case 4:
        content = content[:at] + rng.choice(_PIECES) + content[end:]
      case _:
        flipped = bytes(x ^ (1 << rng.randrange(8)) for x in content[at:end])
        content = content[:at] + flipped + content[end:]
  return content


def retyped(tree: Any, rng: random.Random) -> Any:
  """Returns a JSON value with one or two values inside of another kind."""
  tree = copy.deepcopy(tree)
  for _ in range(rng.randint(1, 2)):
    places = list(_places(tree))
    if not places:
      return rng.choice(_VALUES)
    parent, key = rng.choice(places)
    match rng.randrange(4):
      case 0:
        del parent[key]
      case 1 if isinstance(parent, dict):
        parent[rng.choice((f"{key} ", "x", "", "__class__"))] = parent.pop(key)
      case 2:
        parent[key] = copy.deepcopy(parent[rng.choice(list(_keys(parent)))])
      case _:
        parent[key] = copy.deepcopy(rng.choice(_VALUES))
  return tree


def of_json(tree: Any, write: Callable[[Any], bytes] | None = None):
  """Returns a function of a generator: a value retyped, or its text damaged."""
  dump = write or as_json

  def make(rng: random.Random) -> bytes:
    if rng.random() < 0.6:
      return dump(retyped(tree, rng))
    return damaged(dump(tree), rng)

  return make


def of_texts(texts: Sequence[bytes]):
  """Returns a function of a generator: one of the texts, damaged."""
  return lambda rng: damaged(rng.choice(texts), rng)


def as_json(tree: Any) -> bytes:
  """Returns JSON, with NaN and halves of surrogate pairs as Python has them."""
  return json.dumps(tree).encode()


def _places(tree: Any):
  """Yields the container and key of each value inside."""
  for key in _keys(tree):
    yield tree, key
    yield from _places(tree[key])


def _keys(tree: Any):
  if isinstance(tree, dict):
    return list(tree)
  return range(len(tree)) if isinstance(tree, list) else ()
