"""Reads numbers in words, such as `twenty-one` or `three quarters`."""

import re
from fractions import Fraction

_ONES_TEXT = """
  zero one two three four five six seven eight nine ten eleven twelve thirteen
  fourteen fifteen sixteen seventeen eighteen nineteen
"""
_TENS_TEXT = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: i for i, word in enumerate(_ONES_TEXT.split())}
_SMALL |= {word: 10 * i for i, word in enumerate(_TENS_TEXT.split(), 2)}
_LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {
  "half": 2,
  "halve": 2,
  "third": 3,
  "quarter": 4,
  "fourth": 4,
  "fifth": 5,
  "sixth": 6,
  "eighth": 8,
  "tenth": 10,
}
_SIGNS = ("minus", "negative")
_WORD = re.compile(r"[A-Za-z]+")
_BETWEEN = re.compile(r"[ -]+")
# No number in words that anybody writes is longer.
_MAX_WORDS = 30


def value(text: str) -> Fraction | None:
  """Returns the number that the whole of a text names in words, or None."""
  found = in_digits(text)
  if found is None:
    return None
  try:
    return Fraction(found)
  except ValueError:
    return None


def in_digits(text: str) -> str | None:
  """Returns a text that begins with a number in words with it in digits.

  `five apples` becomes `5 apples`; without a number, the result is None.
  """
  words, ends = _leading_words(text)
  for count in range(len(words), 0, -1):
    found = _number(words[:count])
    # `one twenty` is no 1 of something.
    is_cut = words[count : count + 1] and words[count] in (*_SMALL, *_PARTS)
    if found is not None and not is_cut:
      return f"{found}{text[ends[count - 1] :]}"
  return None


def _leading_words(text: str) -> tuple[list[str], list[int]]:
  """Returns the words at the beginning that may be of a number, and ends."""
  known = {*_SMALL, *_LARGE, *_PARTS, *_SIGNS, "hundred", "and", "a"}
  words: list[str] = []
  ends: list[int] = []
  place = 0
  while len(words) < _MAX_WORDS and (found := _WORD.match(text, place)):
    word = found[0].lower()
    word = word if word in known else word.removesuffix("s")
    if word not in known:
      break
    words.append(word)
    ends.append(found.end())
    space = _BETWEEN.match(text, found.end())
    if space is None:
      break
    place = space.end()
  return words, ends


def _number(words: list[str]) -> Fraction | None:
  if words[0] in _SIGNS:
    found = _number(words[1:]) if words[1:] else None
    return None if found is None else -found
  if words[-1] in _PARTS and "and" in words:
    # `two and a half`
    place = len(words) - 1 - words[::-1].index("and")
    whole, part = words[:place], words[place + 1 :]
    if not whole or not part:
      return None
    above, below = _integer(whole), _number(part)
    if above is None or below is None or not below < 1:
      return None
    return above + below
  if words[-1] in _PARTS:
    above = ["one"] if words[:-1] in ([], ["a"]) else words[:-1]
    found = _integer(above)
    return None if found is None else Fraction(found, _PARTS[words[-1]])
  found = _integer(words)
  return None if found is None else Fraction(found)


def _integer(words: list[str]) -> int | None:
  """Returns the value of `one hundred and twenty-one`, or None."""
  if words[-1] in ("and", "a") or words[0] in ("and", "hundred", *_LARGE):
    return None
  total = group = 0
  # Each word must be smaller than the ones before it: `twenty one`, and not
  # `one twenty`.
  limit, largest = 100, 10**12
  for place, word in enumerate(words):
    if word == "and":
      if limit != 100 or not (total or group):
        return None
    elif word == "a":
      if place or words[1:2] not in (["hundred"], *([x] for x in _LARGE)):
        return None
      group, limit = 1, 0
    elif word in _SMALL:
      number = _SMALL[word]
      if number >= limit or (not number and len(words) > 1):
        return None
      group += number
      limit = 10 if number >= 20 else 0
    elif word == "hundred":
      if not 0 < group < 10:
        return None
      group, limit = group * 100, 100
    elif word in _LARGE:
      if not group or _LARGE[word] >= largest:
        return None
      largest = _LARGE[word]
      total, group, limit = total + group * largest, 0, 100
    else:
      return None
  return total + group
