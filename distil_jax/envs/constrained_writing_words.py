"""Holds the topics and the words of the environment constrained_writing.

Both are split by their place in these lists: every third belongs to the
evaluation split, whatever the seed, so that the splits share neither.
"""

from typing import Literal

HELD_OUT_ONE_IN = 3

TOPICS = (
  "the sea",
  "a cold winter",
  "a family dinner",
  "the first day of school",
  "a long journey",
  "music",
  "a busy market",
  "gardening",
  "a lost dog",
  "the night sky",
  "a summer holiday",
  "an old house",
  "friendship",
  "a football match",
  "a rainy afternoon",
  "cooking",
  "a birthday party",
  "the desert",
  "a small village",
  "a visit to the museum",
  "learning to swim",
  "a noisy city",
  "fishing",
  "a wedding",
  "spring",
  "an empty beach",
  "moving to another country",
  "a day at the farm",
  "painting",
  "a broken car",
  "camping",
  "the hospital",
  "a strange dream",
  "a morning walk",
  "the library",
  "a job interview",
  "a bicycle race",
  "a new neighbour",
  "sleeping well",
  "a power cut",
  "history",
  "a mountain hike",
  "the theatre",
  "saving money",
  "a thunderstorm",
  "growing up",
  "a train ride",
  "the future",
)

_WORDS_TEXT = """
  apple road river lamp chair window ladder bucket candle pencil basket mirror
  hammer carpet kettle pillow blanket button pocket ticket letter bottle spoon
  plate knife drum flute guitar piano whistle bell clock coin key lock rope
  chain wheel boat ship tractor helmet jacket shoe hat scarf glove umbrella tent
  flag map compass bridge tower castle fence gate roof chimney attic tunnel cave
  island forest meadow valley cliff stone sand feather leaf flower rose grass
  mushroom onion carrot potato pumpkin lemon peach cherry grape melon bread
  butter cheese honey sugar pepper soup cake pie tea coffee milk juice horse
  sheep goat rabbit mouse spider butterfly bee eagle owl duck swan turtle snake
  frog whale shark lion tiger bear wolf fox monkey elephant camel doctor teacher
  farmer baker sailor soldier painter dancer singer judge king queen pirate
  uncle cousin baby giant magic thunder rainbow shadow smoke fire snow ice mud
  star moon cloud wind
"""
WORDS = tuple(_WORDS_TEXT.split())


def topics_of(split: Literal["train", "evaluation"]) -> tuple[str, ...]:
  """Returns the topics of a split."""
  return _part(TOPICS, split)


def words_of(split: Literal["train", "evaluation"]) -> tuple[str, ...]:
  """Returns the words of a split."""
  return _part(WORDS, split)


def _part(entries: tuple[str, ...], split: str) -> tuple[str, ...]:
  return tuple(
    entry
    for place, entry in enumerate(entries)
    if (place % HELD_OUT_ONE_IN == HELD_OUT_ONE_IN - 1)
    == (split == "evaluation")
  )
