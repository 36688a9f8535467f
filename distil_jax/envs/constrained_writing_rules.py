"""Finds the rules that a sentence breaks, and says so in plain English.

There is no grammar here: what passes for a sentence is judged by its marks, its
first letter and its small words. The marks are read strictly, so that a list of
words, or several sentences, do not pass for one.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from distil_jax.envs import completion_text

# A sentence is shorter; longer texts are not searched, which bounds the time.
MAX_CHARACTERS = 1000
# Fewest different words beside the required ones, and how many of them must be
# function words: lists of words have fewer.
NUM_OTHERS = 3
NUM_FUNCTION_WORDS = 2
# A word may stand in a sentence this often, unless it is a function word.
MAX_REPEATS = 2
_FUNCTION_WORDS_TEXT = """
  a about above across after again against all along already also although
  always am among an and another any anyone anything are around as at away be
  because been before behind being below beneath beside between beyond both but
  by can cannot could did do does down during each either else even ever every
  everyone everything few for from had has have he her here hers him himself
  his how however i if in inside into is it its itself just like many may me
  might mine more most much must my near neither never no nobody nor not nothing
  now of off often on once one only onto or other our ours out outside over own
  people perhaps quite shall she should since so some someone something soon
  still such than that the their theirs them then there these they this those
  though through throughout to together too toward towards under until up upon
  us very was we were what when where which while who whom whose why will with
  within without would yet you your yours
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())
# Function words that may stand twice in a row: "I know that that is true."
_DOUBLES = frozenset(("had", "that", "very"))
_TOKEN = re.compile(r"[^\W_]+(?:['’‐‑-][^\W_]+)*")
_MARK = re.compile(r"[.!?…]+")
_ENDED = re.compile(r"[.!?…][\"”'’)]*\Z")
_CLOSING = "\"”'’)]"
_ABBREVIATIONS = frozenset(("mr", "mrs", "ms", "dr", "st", "prof", "vs", "etc"))
_QUOTES = {'"': '"', "“": "”", "'": "'", "‘": "’"}
_ABOUT_ITSELF = ("word", "words", "sentence", "sentences")


@dataclasses.dataclass(frozen=True)
class Rules:
  """The rules of one problem, besides that it is one sentence.

  Attributes:
    words: must stand in the sentence, as whole words.
    in_order: True if they must in this order.
    ends_with_word: True if the last of them must be the sentence's last word.
    forbidden_letter: may not stand in it, small or capital; None for none.
    length: fewest and most words of the sentence; None for any number.
  """

  words: tuple[str, ...]
  in_order: bool = False
  ends_with_word: bool = False
  forbidden_letter: str | None = None
  length: tuple[int, int] | None = None

  def names(self) -> list[str]:
    """Returns a name for each rule that a sentence can break."""
    found = [f"word:{word}" for word in self.words]
    found += ["order"] * self.in_order
    found += ["ending"] * self.ends_with_word
    found += ["letter"] * (self.forbidden_letter is not None)
    found += ["length"] * (self.length is not None)
    return found


def read_sentence(completion: str) -> tuple[str, str]:
  """Returns the sentence of a completion, and what is wrong with its frame.

  Thoughts that are closed, asterisks of emphasis, and quotation marks around
  the whole of it are taken off. If that leaves words on one line, the fault is
  empty; else the sentence is.
  """
  text = completion_text.without_thought(completion).replace("*", "").strip()
  if not text:
    if "<think>" in completion:
      return "", "The thought is never closed, so no sentence follows it."
    return "", "There is no sentence."
  if len(text) > MAX_CHARACTERS:
    return "", f"The text has {len(text)} characters; write one sentence."
  if len(text.splitlines()) > 1:
    return "", "There are several lines; write the sentence and nothing else."
  if _QUOTES.get(text[0]) == text[-1] and not _quote_within(text):
    text = text[1:-1].strip()
  if not words_of(text):
    return "", "There is no sentence."
  return text, ""


def form_faults(sentence: str, required: Sequence[str]) -> Iterator[str]:
  """Yields what keeps a text from being one sentence."""
  tokens = words_of(sentence)
  if num := sum(1 for _ in _ends_within(sentence)):
    yield f"There are {num + 1} sentences; write exactly one."
  if not _ENDED.search(sentence):
    yield (
      "The sentence is not finished: it must end with a full stop, a question "
      "mark or an exclamation mark."
    )
  start = sentence.lstrip("\"“'‘(")
  if not (start[:1].isupper() or start[:1].isdigit()):
    yield "The sentence must begin with a capital letter."
  for token in _ABOUT_ITSELF:
    if token in tokens and token not in required:
      yield (
        f'The sentence speaks of "{token}"; use the words to say something '
        "about the topic."
      )
      break
  others = set(tokens) - set(required)
  if len(others) < NUM_OTHERS or (
    len(others & FUNCTION_WORDS) < NUM_FUNCTION_WORDS
  ):
    yield "This is a list of words, not a sentence."
  yield from _repeat_faults(tokens)


def broken_rules(sentence: str, rules: Rules) -> dict[str, str]:
  """Returns what is wrong for each broken rule, by the rule's name."""
  tokens = words_of(sentence)
  found = {
    f"word:{word}": fault
    for word in rules.words
    if (fault := _word_fault(word, tokens, sentence))
  }
  places = [tokens.index(word) for word in rules.words if word in tokens]
  # Words that are missing break the order too; otherwise leaving one out would
  # cost no more than misplacing it.
  if rules.in_order and (
    len(places) < len(rules.words) or places != sorted(places)
  ):
    found["order"] = f"The order of the words must be {listed(rules.words)}."
  last = rules.words[-1]
  if rules.ends_with_word and tokens[-1:] != [last]:
    found["ending"] = f'The last word must be "{last}".'
  letter = rules.forbidden_letter
  if letter and letter in sentence.casefold():
    token = next((t for t in tokens if letter in t), "")
    where = f': it is in "{completion_text.shortened(token)}"' if token else ""
    found["letter"] = f'The letter "{letter}" is not allowed{where}.'
  if rules.length and not rules.length[0] <= len(tokens) <= rules.length[1]:
    found["length"] = (
      f"The sentence has {len(tokens)} words; it must have "
      f"{length_text(rules.length)}."
    )
  return found


def words_of(sentence: str) -> list[str]:
  """Returns the words in small letters; "rain-soaked" and "it's" are one."""
  return [token.casefold() for token in _TOKEN.findall(sentence)]


def listed(words: Sequence[str], article: str = "") -> str:
  """Returns "a, b and c"."""
  words = [f"{article}{word}" for word in words]
  if len(words) == 1:
    return words[0]
  return f"{', '.join(words[:-1])} and {words[-1]}"


def length_text(length: tuple[int, int]) -> str:
  """Returns "between 8 and 12 words", or "exactly 8 words"."""
  fewest, most = length
  if fewest == most:
    return f"exactly {fewest} words"
  return f"between {fewest} and {most} words"


def _word_fault(word: str, tokens: Sequence[str], sentence: str) -> str:
  if word not in tokens:
    close = next((t for t in tokens if word in t), None)
    shown = close and completion_text.shortened(close)
    hint = f' ("{shown}" is another word)' if shown else ""
    return f'The word "{word}" is missing{hint}.'
  # A word that stands in quotation marks is mentioned, not used.
  quoted = re.compile(rf"[\"“'‘]{re.escape(word)}[.,!?]?[\"”'’]", re.IGNORECASE)
  if len(quoted.findall(sentence)) == tokens.count(word):
    return f'The word "{word}" is in quotation marks; use it without them.'
  return ""


def _repeat_faults(tokens: Sequence[str]) -> Iterator[str]:
  for token, following in itertools.pairwise(tokens):
    if token == following and token not in _DOUBLES:
      shown = completion_text.shortened(token)
      yield f'The word "{shown}" is written twice in a row.'
      return
  for token, count in Counter(tokens).items():
    if count > MAX_REPEATS and token not in FUNCTION_WORDS:
      shown = completion_text.shortened(token)
      yield f'The word "{shown}" is written {count} times.'
      return


def _ends_within(sentence: str) -> Iterator[int]:
  """Yields the places of marks that end a sentence before the text ends."""
  for match in _MARK.finditer(sentence):
    before, rest = sentence[: match.start()], sentence[match.end() :]
    if not rest.strip(_CLOSING + " "):
      return
    if match[0] == "." and _is_within_word(before, rest):
      continue
    # Speech goes on in the sentence around it: "Run!" said the boy.
    if match[0] in "!?" and re.match(rf"[{re.escape(_CLOSING)}] [a-z]", rest):
      continue
    yield match.start()


def _is_within_word(before: str, rest: str) -> bool:
  """Returns True for the full stops of "3.5", "Mr. Hall" and "e.g."."""
  if before[-1:].isdigit() and rest[:1].isdigit():
    return True
  token = re.search(r"[^\W_]*\Z", before)
  word = token[0].casefold() if token else ""
  return word in _ABBREVIATIONS or (
    len(word) == 1 and word not in "i1234567890"
  )


def _quote_within(text: str) -> bool:
  """Returns True if its quotation marks are not one pair around all of it."""
  return text[0] in text[1:-1] or text[-1] in text[1:-1]
