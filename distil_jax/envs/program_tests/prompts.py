"""Asks for programs: says what the tests call, or that they read input."""

import ast
import builtins
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.envs import rows
from distil_jax.envs.program_tests.row_layouts import Asserts, Case

_BLOCK = "Answer with a Python program in a ```python block."
_FUNCTION = (
  "Complete this function. Answer with the whole program, imports and helping "
  "functions included, in a ```python block."
)
_SCRIPT = (
  f"{_BLOCK} It reads standard input and writes the answer to standard output."
)
_STARTER = f"{_BLOCK} Begin with:"
# A longer example would be more than the problem itself.
_MAX_EXAMPLE = 300


def fenced(code: str) -> str:
  """Returns the code as a block of Markdown."""
  return f"```python\n{code.strip(chr(10))}\n```"


def question(
  row: Mapping[str, Any],
  tests: Sequence[Case | Asserts],
  instruction: str | None,
) -> str:
  """Returns the prompt of a row with an instruction.

  Args:
    row: Its `prompt`, and perhaps `starter_code` or `entry_point`.
    tests: What `code_tests` reads from the row.
    instruction: Text for all rows; None chooses one that suits this one.
  """
  prompt = rows.text(row, "prompt") or ""
  starter = rows.text(row, "starter_code")
  if instruction is not None:
    return f"{prompt}\n\n{instruction}" if instruction else prompt
  if starter and starter.strip():
    return f"{prompt}\n\n{_STARTER}\n\n{fenced(starter)}"
  if rows.text(row, "entry_point"):
    return f"{_FUNCTION}\n\n{fenced(prompt)}"
  first = tests[0]
  if isinstance(first, Asserts):
    return f"{prompt}\n\n{_asked_by_assertions(first)}"
  if first.function is not None:
    return f"{prompt}\n\n{_asked_by_call(first)}"
  return f"{prompt}\n\n{_SCRIPT}"


def _asked_by_call(test: Case) -> str:
  owner, _, method = (test.function or "").rpartition(".")
  what = f"a function `{method}`"
  if owner:
    what = f"a class `{owner}` with a method `{method}`"
  asked = f"{_BLOCK} It defines {what}, which is called"
  arguments = ", ".join(x for x in test.input.split("\n") if x.strip())
  does = "changes its argument to" if test.changes_argument else "returns"
  example = f"`{method}({arguments})` {does} `{test.output.strip()}`"
  if test.is_hidden or len(example) > _MAX_EXAMPLE:
    count = len(test.arguments)
    return f"{asked} with {count} argument{'s' if count != 1 else ''}."
  return f"{asked}, and reads no input. For example, {example}."


def _asked_by_assertions(test: Asserts) -> str:
  names, first = _called(test)
  if not names:
    return _BLOCK
  named = " and ".join(f"`{name}`" for name in names)
  asked = f"{_BLOCK} It defines {named}, which the tests call"
  if test.is_hidden or not first or len(first) > _MAX_EXAMPLE:
    return f"{asked}."
  return f"{asked}, for example:\n\n{fenced(first)}"


def _called(test: Asserts) -> tuple[list[str], str]:
  """Returns the names that tests take from the program, and an assertion."""
  try:
    tree, prelude = ast.parse(test.source), ast.parse(test.prelude)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return [], ""
  bound = {
    name
    for part in (tree, prelude)
    for x in ast.walk(part)
    for name in _binds(x)
  }
  bound |= set(dir(builtins)) - set(test.names)
  called = [
    (node.lineno, node.col_offset, node.id)
    for node in ast.walk(tree)
    if isinstance(node, ast.Name)
    and isinstance(node.ctx, ast.Load)
    and node.id not in bound
  ]
  names = list(dict.fromkeys(name for *_, name in sorted(called)))
  first = next((x for x in ast.walk(tree) if isinstance(x, ast.Assert)), None)
  text = ast.get_source_segment(test.source, first) if first else None
  return names, text or ""


def _binds(node: ast.AST) -> list[str]:
  """Returns the names that a node defines."""
  if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
    return [node.id]
  if isinstance(node, ast.FunctionDef | ast.ClassDef):
    return [node.name]
  if isinstance(node, ast.arg):
    return [node.arg]
  if isinstance(node, ast.alias):
    return [(node.asname or node.name).partition(".")[0]]
  if isinstance(node, ast.ExceptHandler) and node.name:
    return [node.name]
  return []
