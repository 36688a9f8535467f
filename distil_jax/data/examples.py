"""Shows worked examples before a problem, as earlier turns of a conversation.

Student and teacher read them, for every form of the teacher's prompt begins
with the problem's messages.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from distil_jax.config.data import DataConfig
from distil_jax.data import datasets
from distil_jax.data.data_files import DataError
from distil_jax.envs import conversations
from distil_jax.types import Demonstration, Message, Problem

T = TypeVar("T", Problem, Demonstration)


def load(section: DataConfig) -> list[Message]:
  """Returns the turns of all examples of a config section, in order.

  Raises:
    DataError: a file is missing or has a row that is no example.
  """
  if not isinstance(section.examples, str):
    pairs = [(x.prompt, x.completion) for x in section.examples]
    return [turn for pair in pairs for turn in _turns(*pair)]
  turns = []
  rows = datasets.read_rows(
    section.examples,
    fields={},
    malformed="error",
    required=("prompt", "completion"),
  ).rows
  for row in rows:
    # An example is one question and its answer.
    if row.fields.get("system") or conversations.earlier(row.fields):
      raise DataError(
        f"{row.place}: the prompt of an example must be one question, and the "
        "system's message that of the problems"
      )
    turns += _turns(row.fields["prompt"], row.fields["completion"])
  return turns


def place(item: T, turns: Sequence[Message]) -> T:
  """Returns a problem or a demonstration that shows examples first.

  They stand before all of its messages but a first one of the system.
  """
  messages = item.messages
  start = 1 if messages and messages[0]["role"] == "system" else 0
  shown = (*messages[:start], *turns, *messages[start:])
  return dataclasses.replace(item, messages=shown)


def _turns(prompt: str, completion: str) -> tuple[Message, Message]:
  return (
    {"role": "user", "content": prompt},
    {"role": "assistant", "content": completion},
  )
