"""Writes fixtures of pytest, which the sandbox lacks, as calls of functions."""

import ast
from collections.abc import Mapping, Sequence


def take(body: Sequence[ast.stmt]) -> dict[str, ast.FunctionDef]:
  """Returns the fixtures of pytest by name, and makes them plain functions."""
  found = {}
  for node in body:
    if not isinstance(node, ast.FunctionDef):
      continue
    kept = [
      x
      for x in node.decorator_list
      if not ast.unparse(x).partition("(")[0].endswith("fixture")
    ]
    if len(kept) < len(node.decorator_list):
      node.decorator_list = kept
      found[node.name] = node
  return found


def value(
  name: str, fixtures: Mapping[str, ast.FunctionDef], above: Sequence[str] = ()
) -> str:
  """Returns Python that makes the value of a fixture, anew in each test."""
  if name in above or name not in fixtures:
    raise ValueError(
      f"the tests use the fixture {name}, which is not known here; write its "
      "values into them"
    )
  function = fixtures[name]
  needed = [x.arg for x in function.args.args]
  passed = ", ".join(
    f"{x}={value(x, fixtures, [*above, name])}" for x in needed
  )
  is_generator = any(isinstance(x, ast.Yield) for x in ast.walk(function))
  text = f"{name}({passed})"
  return f"next({text})" if is_generator else text
