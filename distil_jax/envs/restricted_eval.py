"""Restricts the `eval` of scorers to literals and mathematics.

Some scorers of reasoning_gym pass an answer to `eval`, directly or through
sympy, which would run it as a program. With this module they only read
literals and mathematical expressions; and while an answer is scored, the
process cannot write files, start processes or open connections. This is no
sandbox: it closes the ways that these scorers open.
"""

import ast
import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

# Modules that pass an answer to `eval` although it should be a list.
_LIST_MODULES = (
  "reasoning_gym.algorithmic.binary_matrix",
  "reasoning_gym.algorithmic.spiral_matrix",
  "reasoning_gym.algorithmic.string_insertion",
  "reasoning_gym.games.n_queens",
)
_ALLOWED_NODES = (
  ast.Expression,
  ast.BinOp,
  ast.UnaryOp,
  ast.operator,
  ast.unaryop,
  ast.Call,
  ast.Name,
  ast.Load,
  ast.Constant,
  ast.Tuple,
)
# Plain functions that may be called; all others must be classes of expressions.
_FUNCTIONS = ("abs", "cbrt", "root", "sqrt")
# Imports list folders, which changes nothing.
_HARMLESS = frozenset(
  ("os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.getxattr")
)
_REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# An audit hook cannot be removed, so it acts only while this is positive.
_depth = 0


def install() -> None:
  """Replaces the scorers' `eval`; called once in a process that scores."""
  for name in _LIST_MODULES:
    vars(importlib.import_module(name))["eval"] = ast.literal_eval
  parser = importlib.import_module("sympy.parsing.sympy_parser")
  vars(parser)["eval_expr"] = _evaluated
  # A scorer that imports late would otherwise write, which is refused.
  sys.dont_write_bytecode = True
  sys.addaudithook(_audit)


@contextlib.contextmanager
def confined() -> Iterator[None]:
  """Refuses writing, starting processes and connecting within the block."""
  global _depth
  _depth += 1
  try:
    yield
  finally:
    _depth -= 1


def _audit(event: str, args: tuple[Any, ...]) -> None:
  if not _depth or event in _HARMLESS:
    return
  # Reading stays allowed: imports need it.
  is_writing = event == "open" and bool(args[2] and args[2] & _WRITING)
  if is_writing or event.startswith(_REFUSED):
    raise PermissionError(f"{event} while an answer is scored")


def _evaluated(
  code: str, local_dict: dict[str, Any], global_dict: dict[str, Any]
) -> Any:
  """Replaces sympy's `eval_expr`; evaluates nothing but mathematics."""
  tree = ast.parse(code.strip(), mode="eval")
  for node in ast.walk(tree):
    if not isinstance(node, _ALLOWED_NODES):
      raise ValueError(f"{type(node).__name__} is no mathematics")
    if isinstance(node, ast.Call) and not _is_mathematics(
      node.func, {**global_dict, **local_dict}
    ):
      raise ValueError(f"{ast.unparse(node.func)} is no mathematics")
  # What was checked is what runs: the tree, and not the text once more.
  return eval(compile(tree, "<answer>", "eval"), global_dict, local_dict)


def _is_mathematics(function: ast.expr, names: Mapping[str, Any]) -> bool:
  from sympy import Basic, Function

  if isinstance(function, ast.Call):  # Function('f')(x)
    called = function.func
    return isinstance(called, ast.Name) and names.get(called.id) is Function
  if not isinstance(function, ast.Name):
    return False
  found = names.get(function.id)
  is_class = isinstance(found, type) and issubclass(found, Basic)
  return is_class or function.id in _FUNCTIONS
