"""Finds modules that tests import and the sandbox does not have."""

import ast
from collections.abc import Sequence
from typing import Any

from distil_jax.envs.program_tests.row_layouts import Asserts, Case

CURE = (
  "If a module is missing, name its package in sandbox.packages, such as "
  "sandbox.packages=numpy."
)


def check(tests: Sequence[Case | Asserts], sandbox: Any) -> None:
  """Refuses tests that cannot run because a module is missing.

  Args:
    tests: Tests of a row.
    sandbox: A sandbox; one on another machine does not say what it has.

  Raises:
    ValueError: Names the module and the setting.
  """
  can_import = getattr(sandbox, "can_import", None)
  if can_import is None:
    return
  for test in tests:
    texts = [test.source, test.prelude] if isinstance(test, Asserts) else []
    texts += [] if isinstance(test, Asserts) else [test.checker]
    for name in (name for text in texts for name in _imported(text)):
      if not can_import(name):
        raise ValueError(
          f"the tests import {name}, which the sandbox does not have; set "
          f"sandbox.packages={name}, or data.malformed_rows=skip to leave such "
          "rows out"
        )


def _imported(source: str) -> list[str]:
  """Returns the modules that a source cannot do without."""
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return []
  # Those in a `try` or a function may not be needed.
  found = []
  for node in tree.body:
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      found.append(node.module)
  return [name.partition(".")[0] for name in found]
