"""Reads and shortens the text of completions for feedback."""

import re

_THOUGHT = re.compile(r"<think>.*?(?:</think>\n*|\Z)", re.DOTALL)
_ENDED_THOUGHT = re.compile(r"\A.*</think>\n*", re.DOTALL)


def shortened(text: str, length: int = 40) -> str:
  """Returns at most `length` characters, marked if some are left out."""
  return text if len(text) <= length else f"{text[:length]}…"


def without_thought(text: str) -> str:
  """Returns a completion without its thoughts.

  A thought that is never closed reaches to the end. If the chat template opens
  the thought, the completion only closes it: all text before counts as thought.
  """
  return _ENDED_THOUGHT.sub("", _THOUGHT.sub("", text))


def without_open_thought(text: str) -> str:
  """Returns a completion up to a thought that is never closed."""
  start = text.find("<think>", text.rfind("</think>") + 1)
  return text if start < 0 else text[:start]


def shortened_inside(text: str, length: int, sign: str = "\n[…]\n") -> str:
  """Returns at most `length` characters: beginning, sign and end."""
  if len(text) <= length:
    return text
  half, rest = divmod(length - len(sign), 2)
  return text[: half + rest] + sign + text[len(text) - half :]


def last_tagged(text: str, name: str) -> str | None:
  """Returns the content of the last `<name>…</name>`, or None.

  If tags are nested, the innermost one counts; a tag that is never closed does
  not. Takes time linear in the length of the text.
  """
  opening, closing = f"<{name}>", f"</{name}>"
  last_close = text.rfind(closing)
  start = text.rfind(opening, 0, max(last_close, 0))
  if start < 0:
    return None
  start += len(opening)
  return text[start : text.find(closing, start)]


def last_answer(completion: str) -> str | None:
  """Returns the content of the last `<answer>…</answer>`, or None.

  What stands in a thought that is never closed is no answer.
  """
  return last_tagged(without_open_thought(completion), "answer")
