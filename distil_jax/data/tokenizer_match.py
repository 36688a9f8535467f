"""Compares the tokenizers of two models that share token ids."""

from collections.abc import Sequence

from distil_jax.data.tokenizer import Tokenizer, TokenizerError
from distil_jax.types import Message

# Conversations whose prompts show how a template writes each role and thinks.
_CONVERSATIONS: Sequence[list[Message]] = (
  [{"role": "user", "content": "What is 1 + 1?"}],
  [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
  ],
  [
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "And 2 + 2?"},
  ],
)


def difference(student: Tokenizer, teacher: Tokenizer) -> str | None:
  """Returns where two tokenizers first differ; None if ids mean the same.

  They mean the same if every id stands for the same text in both vocabularies,
  the same tokens are special, and whatever ends the student's completion is an
  end for the teacher too. Padding is masked, so its token may differ.
  """
  ours, theirs = (
    {token: text for text, token in x.backend.get_vocab().items()}
    for x in (student, teacher)
  )
  for token in sorted(ours.keys() | theirs.keys()):
    one, other = ours.get(token), theirs.get(token)
    if one != other:
      return (
        f"id {token} is {_named(one)} for the student and {_named(other)} for "
        "the teacher"
      )
  special, teachers_special = _special(student), _special(teacher)
  for token in sorted(special ^ teachers_special):
    who = "student" if token in special else "teacher"
    return (
      f"id {token} ({ours[token]!r}) is a special token for the {who} alone"
    )
  for token in student.eos_ids:
    if token not in teacher.eos_ids:
      ends = ", ".join(f"{x} ({theirs.get(x)!r})" for x in teacher.eos_ids)
      return (
        f"id {token} ({ours.get(token)!r}) ends the student's completions, but "
        f"the teacher's end with {ends}"
      )
  return None


def is_template_shared(student: Tokenizer, teacher: Tokenizer) -> bool:
  """Returns True if both chat templates write the same conversations alike."""
  return all(
    _rendered(student, messages) == _rendered(teacher, messages)
    for messages in _CONVERSATIONS
  )


def _rendered(tokenizer: Tokenizer, messages: list[Message]):
  try:
    return tokenizer.encode_messages(messages)
  except TokenizerError:
    return None  # some templates know no system message


def _special(tokenizer: Tokenizer) -> set[int]:
  added = tokenizer.backend.added_tokens_decoder
  return {token for token, text in added.items() if text.special}


def _named(text: str | None) -> str:
  return "no token" if text is None else repr(text)
