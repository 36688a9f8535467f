"""Has a chat template of our own, and checks those of others."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2

from distil_jax.types import Message

# ChatML: each turn is `<|im_start|>role`, a line feed, the content,
# `<|im_end|>` and a line feed.
CHATML = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] -}}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# What a template computes can fail as any program can.
FAILURES = (
  jinja2.TemplateError,
  SyntaxError,
  ArithmeticError,
  TypeError,
  LookupError,
  RuntimeError,
  AttributeError,
  ValueError,
  MemoryError,
)
# A setting of many families that the config sets for all.
_COMMON = "enable_thinking"
_CODE = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_NAME = re.compile(r"(?<![\w.'\"])[a-z_]\w*")
_CURE = "correct chat_template.jinja, or take the model's instruct version"


def marker_fault(
  render: Callable[[Sequence[Message], bool], str | None],
) -> str | None:
  """Returns what a template does not do at the assistant's turn, or None.

  Args:
    render: `(messages, is_open) -> text`, with the marker of the assistant's
      turn at the end if `is_open`; None if the template refuses the messages.
  """
  question = {"role": "user", "content": "content-of-question-"}
  answer = "content-of-answer-"
  prompt, closed = render([question], True), render([question], False)
  # A prompt that is longer with a marker ends with one.
  if prompt is None or closed is None or prompt != closed:
    return None
  by_assistant, by_user = (
    (
      render([question, {"role": role, "content": answer}], False) or ""
    ).partition(answer)
    for role in ("assistant", "user")
  )
  before, is_shown, _ = by_assistant
  if not is_shown:
    return None
  if by_user[1] and by_user[0] == before:
    return (
      "the chat template writes an assistant's turn as it writes a user's, "
      f"without a marker; {_CURE}"
    )
  # Some templates close each user's turn in a way that opens the assistant's.
  if not prompt.startswith(before.rstrip()):
    return (
      "the chat template ignores add_generation_prompt: a prompt does not end "
      f"with {before.removeprefix(prompt)!r}, with which it begins an "
      f"assistant's turn; {_CURE}"
    )
  return None


def unread_setting(template: Any, settings: Mapping[str, Any]) -> str | None:
  """Returns which setting a template never reads, or None.

  Args:
    template: Jinja source, or several of them by name.
    settings: What the config gives to the template.
  """
  sources = (
    list(template.values()) if isinstance(template, dict) else [template]
  )
  code = " ".join(
    piece for source in sources for piece in _CODE.findall(str(source))
  )
  read = set(_NAME.findall(code)) | {_COMMON}
  for name in settings:
    if name not in read:
      near = difflib.get_close_matches(name, sorted(read), 1)
      hint = f"; did you mean {near[0]!r}?" if near else "; remove it"
      return (
        f"chat_template_kwargs sets {name}, which the chat template never "
        f"reads{hint}"
      )
  return None
