"""The Python tool in a real sandbox."""

import pytest

from distil_jax.config import PythonToolConfig
from distil_jax.envs import completion_text as envs_text
from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs import tools
from distil_jax.envs.python_tool import PythonTool, last_block
from distil_jax.types import Problem
from tests import cpu_time

PROBLEM = Problem(index=0, messages=(), answer="")


@pytest.fixture(scope="module")
def tool():
  with sandboxes.make(num_processes=1) as sandbox:
    yield PythonTool(PythonToolConfig(seconds=0.5, max_characters=200), sandbox)


def turn(source):
  return f"Let me see.\n```python\n{source}\n```\nThat will tell."


def ask(tool, *sources):
  """What is shown after the last of several blocks."""
  turns = [turn(source) for source in sources]
  return tool(PROBLEM, turns, [""] * (len(turns) - 1))


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("no block", None),
    ("```\nprint(1)\n```", None),
    ("```json\n{}\n```", None),
    ("`python`", None),
    ("```python\nnot closed", None),
    ("```python\na\n```", "a\n"),
    ("```python\n```", ""),
    ("```py\na\n```\n```Python3\nb\n```\nc", "b\n"),
    ("1. do\n  ```python\n  a\n  ```", "a\n"),
    ("<think>\n```python\na\n```\n</think>\nIt is 42.", None),
    ("<think>\n```python\na\n```\nIt is 42.", None),
    ("```python\na\n```\n</think>\nIt is 42.", None),
    ("```python\na\n```\n</think>\n~~~py3\nb\n~~~", "b\n"),
    ("```python\ns = '```'\n```", "s = '```'\n"),
    ("```\ntext\n```\n```python\na\n```", "a\n"),
  ],
)
def test_the_last_closed_block_of_python(text, expected):
  assert last_block(text) == expected


def test_blocks_that_are_never_closed_are_soon_read():
  with cpu_time.at_most(2):
    assert last_block("```py\n" * 50_000) is None


def test_a_turn_without_a_block_is_not_answered(tool):
  assert tool(PROBLEM, [turn("1"), "So it is 42."], ["x"]) is None


def test_what_is_printed_is_shown(tool):
  assert ask(tool, "print(6 * 7)\nprint('ä')") == "42\nä"
  assert ask(tool, "6 * 7") == "(nothing was printed)"


def test_variables_stay_and_earlier_output_does_not(tool):
  assert ask(tool, "x = 2\nprint('old')", "x *= 3", "print(x)") == "6"


@pytest.mark.parametrize(
  "source",
  [
    "sys.stdout.buffer.write(b'old')",
    "os.write(sys.stdout.fileno(), b'old')",
    "sys.stderr.reconfigure(line_buffering=True)",
    "print('old', file=sys.__stdout__)",
    "sys.stdout = open(os.devnull)",
  ],
)
def test_earlier_blocks_find_the_streams_that_they_had(tool, source):
  earlier = f"import os, sys\n{source}\nx = 3"
  assert ask(tool, earlier, "print(x)") == "3"


def test_an_earlier_error_happens_again_in_silence(tool):
  sources = ("x = 1\nraise ValueError('old')", "import sys\nsys.exit(3)")
  assert ask(tool, *sources, "print(x)") == "1"
  assert ask(tool, "def (", "print('here')") == "here"


def test_blocks_cannot_break_out_of_their_place(tool):
  nasty = "s = '''\"\"\"{newest} \\\\'''\nprint(s)"
  assert ask(tool, nasty, nasty) == '"""{newest} \\'
  assert ask(tool, "from __future__ import annotations\nprint(1)") == "1"


def test_an_error_is_shown_by_its_last_lines(tool):
  shown = ask(tool, "print('before')\ndef f():\n  return 1 / 0\nf()")
  lines = shown.split("\n")
  assert lines[0] == "before"
  assert lines[-1] == "ZeroDivisionError: division by zero"
  assert '  File "<block>", line 3, in f' in lines
  assert "return 1 / 0" in shown
  assert "<string>" not in shown
  assert "exec(" not in shown


def test_wrong_syntax_is_shown_with_its_line(tool):
  shown = ask(tool, "x = 1\ndef f(:\n  pass")
  assert shown.endswith("SyntaxError: invalid syntax")
  assert "line 2" in shown


def test_what_does_not_end_is_stopped(tool):
  shown = ask(tool, "print('begun', flush=True)\nwhile True: pass")
  assert shown == "begun\n(stopped after 0.5 s)"
  assert ask(tool, "while True: print('x' * 10_000)").endswith("was printed)")
  assert "MemoryError" in ask(tool, "x = bytearray(1 << 33)")


def test_much_output_keeps_its_beginning_and_its_end(tool):
  shown = ask(tool, "for i in range(1000): print(i)")
  assert len(shown) == 200
  assert shown.startswith("0\n1\n")
  assert shown.endswith("\n998\n999")
  assert "\n[…]\n" in shown


@pytest.mark.parametrize("length", [5, 6, 99, 100])
def test_shortened_inside_is_as_long_as_it_may_be(length):
  text = "ab" * 50
  shown = envs_text.shortened_inside(text, length)
  assert len(shown) == length
  assert (shown == text) is (length == 100)


class TestMaking:
  def test_by_name(self):
    made = tools.make_tool("python", seconds=2.0)
    assert isinstance(made, PythonTool)
    assert made.config.seconds == 2.0

  def test_of_ones_own(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "def make(word):\n  return lambda *_: word\n"
    (tmp_path / "my_tool_of_words.py").write_text(source)
    made = tools.make_tool("my_tool_of_words:make", word="yes")
    assert made(PROBLEM, ["?"], []) == "yes"

  @pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
      ("pyton", {}, "unknown tool 'pyton'; did you mean 'python'"),
      ("python", {"second": 1}, "tool python has no setting 'second'; did you"),
      ("python", {"seconds": 0}, "tool python: seconds=0: .* greater than 0"),
      ("python", {"max_turns": 3}, "max_turns is a setting of `ToolPool`"),
      ("python", {"max_characters": 9}, "max_characters=9: .* greater than"),
      ("fractions:Fraction", {}, "made a Fraction, which cannot be called"),
    ],
  )
  def test_what_cannot_be_made(self, kind, settings, said):
    with pytest.raises(ValueError, match=said):
      tools.make_tool(kind, **settings)
