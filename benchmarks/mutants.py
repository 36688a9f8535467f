"""Counts the faults in the comparison of answers that the tables notice.

  python -m benchmarks.mutants

Each mutant is one change to the source of `envs/math_answers`: another operator
or constant, a condition turned round. It is killed if a line of the tables of
right and wrong answers (tests/envs/test_math_variants.py) gets the opposite
verdict, if it raises, or if it takes too long. Algebra takes no part, as with
`environment.symbolic=false`, nor do the lines that need it: some mutants live
here which the tests kill.
"""

import argparse
import ast
import collections
import copy
import pathlib
import signal
import types
from collections.abc import Iterator

from benchmarks import machine
from distil_jax.envs.math_answers import (
  compare,
  dates,
  notation,
  number_words,
  quantities,
  spelling,
  units,
)
from tests.envs import test_math_variants as tables

_MODULES = (compare, dates, notation, number_words, quantities, spelling, units)
_OTHER = {
  ast.Eq: ast.NotEq,
  ast.NotEq: ast.Eq,
  ast.Lt: ast.LtE,
  ast.LtE: ast.Lt,
  ast.Gt: ast.GtE,
  ast.GtE: ast.Gt,
  ast.In: ast.NotIn,
  ast.NotIn: ast.In,
  ast.Is: ast.IsNot,
  ast.IsNot: ast.Is,
  ast.And: ast.Or,
  ast.Or: ast.And,
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Div,
  ast.Div: ast.Mult,
}
_SECONDS = 20
# Gold, answer, and if it is right.
Cases = list[tuple[str, str, bool]]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--every", type=int, default=1, help="of the mutants")
  parser.add_argument("--show", action="store_true", help="those that live")
  arguments = parser.parse_args()
  cases = decided()
  print(machine.description())
  print(f"{len(cases)} lines that need no algebra\n")
  print("| file | mutants | killed |")
  print("|---|---|---|")
  totals = collections.Counter()
  for module in _MODULES:
    counts = count(module, cases, arguments.every, shows=arguments.show)
    print(_line(module.__name__.rpartition(".")[2], counts), flush=True)
    totals += counts
  print(_line("all", totals))


def count(
  module: types.ModuleType, cases: Cases, every: int = 1, *, shows: bool = False
) -> collections.Counter:
  """Returns the number of mutants of a module, and of those that are killed.

  Args:
    module: one of `envs/math_answers`, which is as before afterwards.
    cases: see `decided`.
    every: takes each so-and-so-many-th mutant.
    shows: prints the place of each mutant that lives.
  """
  source = pathlib.Path(str(module.__file__)).read_text(encoding="utf-8")
  counts = collections.Counter()
  signal.signal(signal.SIGALRM, _too_long)
  for place, tree in list(_mutants(source))[::every]:
    is_killed = _is_killed(module, tree, cases)
    counts["mutants"] += 1
    counts["killed"] += is_killed
    if shows and not is_killed:
      print(f"{module.__name__}:{place}")
  _load(module, ast.parse(source))
  return counts


def _line(name: str, counts: collections.Counter) -> str:
  share = counts["killed"] / max(1, counts["mutants"])
  return f"| {name} | {counts['mutants']} | {share:.0%} |"


def decided() -> Cases:
  """Returns gold, answer and verdict of the lines that need no algebra."""
  found = []
  for table, is_right in ((tables.RIGHT, True), (tables.WRONG, False)):
    for line in table.strip().splitlines():
      gold, _, answer = line.partition(" → ")
      if _is_right(gold, answer) is is_right:
        found.append((gold, answer, is_right))
  return found


def _is_right(gold: str, answer: str) -> bool:
  return compare.compare(gold, answer, compare.no_algebra) is True


def _mutants(source: str) -> Iterator[tuple[int, ast.Module]]:
  """Yields the line of each change, and the module with it."""
  tree = ast.parse(source)
  for place, node in enumerate(ast.walk(tree)):
    if _changed(copy.deepcopy(node)):
      mutant = copy.deepcopy(tree)
      for other, found in enumerate(ast.walk(mutant)):
        if other == place:
          _changed(found)
          break
      yield getattr(node, "lineno", 0), ast.fix_missing_locations(mutant)


def _changed(node: ast.AST) -> bool:
  """Changes a node, and returns True if there was something to change."""
  if isinstance(node, ast.Compare) and type(node.ops[0]) in _OTHER:
    node.ops[0] = _OTHER[type(node.ops[0])]()
  elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in _OTHER:
    node.op = _OTHER[type(node.op)]()
  elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
    node.value = not node.value
  elif isinstance(node, ast.Constant) and isinstance(node.value, int):
    node.value += 1
  elif isinstance(node, ast.If | ast.IfExp):
    node.test = ast.UnaryOp(ast.Not(), node.test)
  else:
    return False
  return True


def _load(module: types.ModuleType, tree: ast.Module) -> None:
  exec(compile(tree, str(module.__file__), "exec"), vars(module))


def _is_killed(
  module: types.ModuleType, tree: ast.Module, cases: Cases
) -> bool:
  signal.alarm(_SECONDS)
  try:
    _load(module, tree)
    return any(
      _is_right(gold, answer) is not is_right
      for gold, answer, is_right in cases
    )
  except Exception:
    return True
  finally:
    signal.alarm(0)


def _too_long(*_) -> None:
  raise TimeoutError


if __name__ == "__main__":
  main()
