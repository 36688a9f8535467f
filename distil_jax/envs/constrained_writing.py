"""Asks for one sentence with given words, and names each rule that it breaks.

  Write one sentence about the sea with the words lamp and road.

  At night a single lamp lit the road along the water.

How many words, and which rules beside them, are settings. Problems depend on
the seed, the index and the split alone; the splits share neither topics nor
words. That the sentence is about the topic, and that it is good English, is not
judged: no rule here can tell.
"""

import dataclasses
import random
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from distil_jax.config.environments import ConstrainedWritingConfig
from distil_jax.envs import constrained_writing_rules as rules_module
from distil_jax.envs import constrained_writing_words as word_lists
from distil_jax.envs import rows
from distil_jax.envs.constrained_writing_rules import Rules
from distil_jax.types import Demonstration, Message, Problem, Status, Verdict

# References, from which the first that keeps all rules is taken.
_REFERENCES = (
  "When people talk about {topic}, they always think of {words}.",
  "A story about {topic} often begins with {words}.",
  "For us, {topic} would be nothing without {words}.",
  "In my mind, {topic} has a lot to do with {words}.",
)
# Letters that may be forbidden: a rule on rarer ones would ask for nothing.
_LETTERS = "aeioutnshrdlcm"
_NUM_TRIES = 64


@dataclasses.dataclass(frozen=True)
class ConstrainedWriting:
  """Makes writing problems, judges sentences, has a reference for most.

  Attributes:
    config: The rules, the seed, and how much the verdict says.
  """

  config: ConstrainedWritingConfig = dataclasses.field(
    default_factory=ConstrainedWritingConfig
  )
  required_fields: ClassVar = ("topic",)

  def problem(self, row: Mapping[str, Any], index: int = 0) -> Problem:
    """Reads a row of a data file.

    Args:
      row: `topic`, a text; `words`, a list of different words; optionally
        `forbidden_letter`, `solution` and `system`, texts. The other rules are
        those of the config.
      index: Identity of the row within its data set.

    Raises:
      ValueError: A field is missing or malformed, or the solution breaks a
        rule.
    """
    topic = rows.text(row, "topic")
    if not (topic and topic.strip()):
      raise ValueError("the row has no topic")
    rules = self._rules(
      _read_words(row.get("words")),
      _read_letter(rows.text(row, "forbidden_letter")),
    )
    solution = rows.text(row, "solution") or None
    made = self._problem(index, topic.strip(), rules, solution)
    if solution and (fault := self.judge(made, solution).details["broken"]):
      raise ValueError(f"solution {solution!r} breaks the rules {fault}")
    if system := rows.text(row, "system"):
      message = {"role": "system", "content": system}
      made = dataclasses.replace(made, messages=(message, *made.messages))
    return made

  def generate(
    self, index: int, split: Literal["train", "evaluation"]
  ) -> Problem:
    """Makes a problem; the splits share neither topics nor words.

    Raises:
      ValueError: There is no such split.
    """
    if split not in ("train", "evaluation"):
      raise ValueError(f"split={split!r} must be 'train' or 'evaluation'")
    return self._draw(self._random(split, index), index, split)

  def demonstration(
    self, index: int, teacher_prompt: Callable[..., Sequence[Message]]
  ) -> Demonstration:
    """Returns the reference sentence of a problem that has one.

    Raises:
      ValueError: The rules leave none of the references of many problems.
    """
    rng = self._random("demonstration", index)
    for _ in range(_NUM_TRIES):
      problem = self._draw(rng, index, "train")
      if problem.solution is not None:
        return Demonstration(
          index=index,
          messages=tuple(teacher_prompt(problem)),
          solution=problem.solution,
        )
    raise ValueError(
      f"environment constrained_writing has no reference sentence that keeps "
      f"the rules of {self.config}; loosen length, or learn from rewards and "
      "feedback alone"
    )

  def judge(self, problem: Problem, completion: str) -> Verdict:
    """Judges a sentence by its form and by the rules of the problem.

    The reward is 1 if it is one sentence and keeps all rules, else 0. With
    `partial_credit` one sentence that breaks some of the rules has the share
    of them that it keeps.

    Returns:
      A verdict that is UNPARSABLE if the completion is not one sentence.
      Details: `broken`, the names of the broken rules; `num_words`, the words
      of the sentence.
    """
    rules = Rules(**problem.details["rules"])
    sentence, fault = rules_module.read_sentence(completion)
    form = [fault] if fault else []
    form = form or [*rules_module.form_faults(sentence, rules.words)]
    broken = rules_module.broken_rules(sentence, rules) if sentence else {}
    names = ["form"] * bool(form) + list(broken)
    details = {
      "broken": names,
      "num_words": len(rules_module.words_of(sentence)),
    }
    if not names:
      return Verdict(1.0, "", Status.CORRECT, details)
    reward = 0.0
    if self.config.partial_credit and not form:
      reward = 1.0 - len(broken) / len(rules.names())
    feedback = " ".join([*form, *broken.values()])
    return Verdict(
      reward,
      feedback if self.config.feedback else "",
      Status.UNPARSABLE if form else Status.WRONG,
      details,
    )

  def _random(self, stream: str, index: int) -> random.Random:
    # The seed is a string because a tuple would go through the salted `hash`.
    return random.Random(
      f"constrained_writing/{self.config.seed}/{stream}/{index}"
    )

  def _draw(
    self,
    rng: random.Random,
    index: int,
    split: Literal["train", "evaluation"],
  ) -> Problem:
    topic = rng.choice(word_lists.topics_of(split))
    count = rng.randint(*self.config.num_words)
    words = tuple(rng.sample(word_lists.words_of(split), count))
    letter = None
    if self.config.forbid_letter:
      # With many words, all frequent letters may be taken.
      letters = [c for c in _LETTERS if not any(c in word for word in words)]
      rest = [c for c in string.ascii_lowercase if c not in "".join(words)]
      letter = rng.choice(letters or rest)
    rules = self._rules(words, letter)
    references = [
      text.format(topic=topic, words=rules_module.listed(words, "the "))
      for text in rng.sample(_REFERENCES, len(_REFERENCES))
    ]
    made = self._problem(index, topic, rules, None)
    right = (r for r in references if self.judge(made, r).reward == 1.0)
    return dataclasses.replace(made, solution=next(right, None))

  def _rules(self, words: tuple[str, ...], letter: str | None) -> Rules:
    if letter and any(letter in word for word in words):
      raise ValueError(
        f"forbidden_letter={letter!r} stands in one of the words {list(words)}"
      )
    return Rules(
      words=words,
      in_order=self.config.in_order,
      ends_with_word=self.config.ends_with_word,
      forbidden_letter=letter,
      length=self.config.length,
    )

  def _problem(
    self, index: int, topic: str, rules: Rules, solution: str | None
  ) -> Problem:
    message = {"role": "user", "content": _question(topic, rules)}
    return Problem(
      index=index,
      messages=(message,),
      answer=rules_module.listed(rules.words),
      solution=solution,
      details={"topic": topic, "rules": dataclasses.asdict(rules)},
    )


def _question(topic: str, rules: Rules) -> str:
  *others, last = rules.words
  noun = "words" if others else "word"
  listed = rules_module.listed(rules.words)
  parts = [f"Write one sentence about {topic} with the {noun} {listed}."]
  if rules.in_order and others:
    parts.append("Use the words in this order.")
  if rules.ends_with_word:
    parts.append(f'The last word of the sentence must be "{last}".')
  if rules.forbidden_letter:
    parts.append(f'Do not use the letter "{rules.forbidden_letter}".')
  if rules.length:
    length = rules_module.length_text(rules.length)
    parts.append(f"The sentence must have {length}.")
  return " ".join(parts)


def _read_words(value: Any) -> tuple[str, ...]:
  is_list = isinstance(value, Sequence) and not isinstance(value, str)
  if not is_list or not value:
    raise ValueError(f"words must be a list of words, got {value!r}")
  words = []
  for word in value:
    if not isinstance(word, str) or rules_module.words_of(word) != [word]:
      raise ValueError(
        f"words has {word!r}, which is no single word in small letters"
      )
    words.append(word)
  if len(set(words)) < len(words):
    raise ValueError(f"words names a word twice: {words}")
  return tuple(words)


def _read_letter(value: str | None) -> str | None:
  if not value:
    return None
  if len(value) != 1 or not value.isalpha() or value != value.casefold():
    raise ValueError(
      f"forbidden_letter={value!r} must be one small letter, such as 'e'"
    )
  return value
