"""Measures the layout of the package: `python -m tests.measures`.

Prints each figure beside its limit and fails if one is exceeded. The suite
runs the same checks.
"""

import ast
import collections
import functools
import graphlib
import pathlib
import re
import sys

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "distil_jax"
# Figure, limit, and the unit that a reader needs.
LIMITS = {
  "names at the top of the package": 13,
  "floors of rooms": 8,
  "arrows between rooms": 60,
  "files in the longest import chain": 12,
  "lines of the longest file": 400,
  "functions with more than 8 parameters": 5,
  "lines of the longest function": 80,
  "docstrings that are no sentence": 0,
}
# First words that make a fragment of the first line of a docstring.
_FRAGMENT = re.compile(r"(Of|What|Whether|How|Where|The same)\b")


@functools.cache
def modules() -> dict[str, pathlib.Path]:
  """Returns the files of the package by the full names of their modules."""
  found = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found[".".join(parts).removesuffix(".__init__")] = path
  return found


@functools.cache
def tree_of(name: str) -> ast.Module:
  return ast.parse(modules()[name].read_text(encoding="utf-8"))


@functools.cache
def imports(name: str) -> frozenset[str]:
  """Returns full names of everything that a module imports anywhere."""
  names = set()
  for node in ast.walk(tree_of(name)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{name}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return frozenset(names)


@functools.cache
def first_imports(name: str) -> frozenset[str]:
  """Returns what a module imports as soon as it is imported itself."""
  names = set()
  nodes: list[ast.AST] = list(tree_of(name).body)
  for node in nodes:  # grows
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      nodes += ast.iter_child_nodes(node)
  return frozenset(names)


def owner(name: str) -> str | None:
  """Returns the module of this package behind an imported name, or None."""
  while name and name not in modules():
    name = name.rpartition(".")[0]
  return name or None


@functools.cache
def own_imports(name: str) -> frozenset[str]:
  found = {owner(target) for target in imports(name)}
  return frozenset(x for x in found if x not in (None, "distil_jax", name))


def room_of(name: str) -> str:
  """Returns the room of a module: a folder, or a file at the top."""
  return ".".join(name.split(".")[:2])


def graph_of_rooms() -> dict[str, set[str]]:
  """Returns what each room imports; the package's face is left out."""
  graph = collections.defaultdict(set)
  for name in modules():
    if name == "distil_jax":
      continue
    room = room_of(name)
    graph[room] |= {room_of(target) for target in own_imports(name)} - {room}
  return dict(graph)


def graph_of_modules() -> dict[str, frozenset[str]]:
  """Returns what each module imports.

  A package's `__init__` is a module of its own: what it imports for its users
  is counted when somebody imports a name from it.
  """
  return {name: own_imports(name) for name in modules() if name != "distil_jax"}


def longest_chain(graph) -> list[str]:
  """Returns the longest path; raises CycleError if there is a cycle."""
  order = list(graphlib.TopologicalSorter(graph).static_order())
  best = {}
  for name in order:
    tails = [best[target] for target in graph.get(name, ()) if target in best]
    best[name] = [name, *max(tails, key=len, default=[])]
  return max(best.values(), key=len)


def num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  args = node.args
  named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
  return len([a for a in named if a.arg not in ("self", "cls")])


def functions():
  """Yields the module's name and the node of every function."""
  for name in modules():
    for node in ast.walk(tree_of(name)):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield name, node


def length_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
  body = node.body[1:] if ast.get_docstring(node) else node.body
  return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def fragments() -> list[str]:
  """Returns the docstrings whose first line is no sentence."""
  kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
  found = []
  for name in modules():
    for node in ast.walk(tree_of(name)):
      if not isinstance(node, kinds):
        continue
      first = (ast.get_docstring(node) or "").split("\n")[0]
      if _FRAGMENT.match(first):
        line = getattr(node, "lineno", 1)
        found.append(f"{name}:{line} {first}")
  return found


@functools.cache
def measure() -> dict[str, tuple[int, str]]:
  """Returns each figure, and what it was found at."""
  rooms = graph_of_rooms()
  chain = longest_chain(graph_of_modules())
  floors = longest_chain(rooms)
  top = sorted(
    p.name
    for p in PACKAGE.iterdir()
    if not p.name.startswith(("__", ".")) and p.name != "py.typed"
  )
  sizes = {
    name: len(path.read_text(encoding="utf-8").splitlines())
    for name, path in modules().items()
  }
  largest = max(sizes, key=lambda name: sizes[name])
  wide = [
    f"{name}.{node.name} ({num_parameters(node)})"
    for name, node in functions()
    if num_parameters(node) > 8
  ]
  longest = max(functions(), key=lambda item: length_of(item[1]))
  odd = fragments()
  return {
    "names at the top of the package": (len(top), ", ".join(top)),
    "floors of rooms": (len(floors), " > ".join(map(short, floors))),
    "arrows between rooms": (sum(map(len, rooms.values())), ""),
    "files in the longest import chain": (
      len(chain),
      " > ".join(map(short, chain)),
    ),
    "lines of the longest file": (sizes[largest], largest),
    "functions with more than 8 parameters": (len(wide), ", ".join(wide)),
    "lines of the longest function": (
      length_of(longest[1]),
      f"{longest[0]}.{longest[1].name}",
    ),
    "docstrings that are no sentence": (len(odd), "; ".join(odd[:5])),
  }


def short(name: str) -> str:
  return name.removeprefix("distil_jax.")


def main() -> int:
  """Prints the figures; returns 1 if one exceeds its limit."""
  status = 0
  for name, (figure, where) in measure().items():
    is_over = figure > LIMITS[name]
    status |= is_over
    mark = "  OVER" if is_over else ""
    print(f"{name}: {figure} (limit {LIMITS[name]}){mark}")
    if where:
      print(f"  {where}")
  return status


if __name__ == "__main__":
  sys.exit(main())
