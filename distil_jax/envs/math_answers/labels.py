"""Tells labels of numbers apart that exclude each other, as red and blue do.

Other labels are not compared: `20 students` and `20 people` may be the same.
"""

import re

from distil_jax.envs.math_answers import spelling as math_spelling

# Of each line a thing is one at most; a slash joins words for one of them.
_LINES = """
red blue green yellow black white orange purple/violet pink brown gray/grey
north south east west northeast northwest southeast southwest
left right
up/upward/upwards/upstream down/downward/downwards/downstream
above below
ahead/forward/forwards behind/backward/backwards
earlier later
early late
before after
clockwise counterclockwise/anticlockwise
inside outside
profit/gain loss/losses
increase decrease
more less/fewer
older younger
taller/longer/higher shorter/lower
faster slower
heavier lighter
win/won loss/lost/lose tie/draw
head tail
odd even
boy/boys girl/girls
man/men woman/women
male female
son daughter
brother sister
husband wife
mother/mom father/dad
adult child/children
apple orange banana pear peach cherry/cherries lemon plum strawberry
cat dog cow horse pig sheep chicken duck goat rabbit
penny/pennies nickel dime
morning afternoon evening night
"""
# The place of each word: its line, and which thing of the line it names.
_PLACES: dict[str, list[tuple[int, int]]] = {}
for _line, _things in enumerate(_LINES.strip().splitlines()):
  for _thing, _words in enumerate(_things.split()):
    for _word in _words.split("/"):
      _PLACES.setdefault(_word, []).append((_line, _thing))


def are_opposed(gold: str, answer: str) -> bool:
  """Returns True if two answers name things that exclude each other."""
  mine, its = _named(gold), _named(answer)
  return any(
    mine[line].isdisjoint(its[line]) for line in mine.keys() & its.keys()
  )


def _named(text: str) -> dict[int, set[int]]:
  """Returns the things that a text names, by their lines."""
  found: dict[int, set[int]] = {}
  text = math_spelling.without_text_commands(text).lower()
  for word in re.findall(r"[a-z]+", text):
    for line, thing in _PLACES.get(word, _PLACES.get(word.rstrip("s"), [])):
      found.setdefault(line, set()).add(thing)
  return found
