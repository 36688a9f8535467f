"""The plan of the house: who may import whom."""

import ast
import graphlib
import pathlib
import sys

import pytest

import distil_jax

PACKAGE = pathlib.Path(distil_jax.__file__).parent
FILES = {
  ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
  for path in PACKAGE.rglob("*.py")
}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}
ROOMS = ("ops", "models", "envs", "io")
PURE = (
  "rollout",
  "journals",
  "scoring",
  "experts",
  "objectives",
  "losses",
  "guard",
  "update",
)


def imports(path):
  """Full names of everything that a file imports, wherever it does so."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def ours(name):
  """The module of this package that an imported name stands for, or None."""
  while name and name not in MODULES:
    name = name.rpartition(".")[0]
  return name or None


def our_imports(path):
  return {ours(name) for name in imports(path)} - {None}


def of_room(room):
  prefix = f"distil_jax.{room}"
  names = [n for n in MODULES if n == prefix or n.startswith(prefix + ".")]
  assert names, f"no modules in {prefix}"
  return names


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_no_other_room(room):
  allowed = set(of_room(room))
  if room != "ops":
    allowed.add("distil_jax.records")
  if room == "envs":  # what judges programs runs them
    allowed |= set(of_room("sandbox"))
  for name in of_room(room):
    assert our_imports(MODULES[name]) <= allowed, name


@pytest.mark.parametrize("station", PURE)
def test_pure_stations_touch_neither_disk_nor_clock(station):
  forbidden = {"os", "time", "random", "pathlib", "io", "sys", "transformers"}
  for module in of_room(station):
    for name in our_imports(MODULES[module]):
      assert name.split(".")[1] in (
        "records",
        "ops",
        "models",
        *PURE,
      ), f"{module} imports {name}"
    tops = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not tops & forbidden, module


@pytest.mark.parametrize("room", ["ops", "models"])
def test_pure_rooms_touch_neither_disk_nor_clock(room):
  for name in of_room(room):
    tops = {found.split(".")[0] for found in imports(MODULES[name])}
    assert not tops & {"os", "time", "random", "pathlib", "sys"}, name


def test_the_sandbox_needs_nothing_of_the_rest():
  inside = set(of_room("sandbox.inside"))
  allowed = set(of_room("sandbox"))
  for name in allowed:
    reach = inside if name in inside else allowed
    assert our_imports(MODULES[name]) <= reach, name
    tops = {found.split(".")[0] for found in imports(MODULES[name])}
    assert tops <= {*sys.stdlib_module_names, "distil_jax"}, name


def test_theory_imports_ops_at_most():
  allowed = set(of_room("theory")) | set(of_room("ops"))
  for name in of_room("theory"):
    assert our_imports(MODULES[name]) <= allowed, name


def test_planning_counts_without_knowing_what_runs():
  allowed = (*of_room("planning"), "distil_jax.models.architecture")
  for name in of_room("planning"):
    if not name.endswith(".templates"):
      assert our_imports(MODULES[name]) <= set(allowed), name


def test_environments_use_no_jax():
  for name in of_room("envs"):
    tops = {found.split(".")[0] for found in imports(MODULES[name])}
    assert not tops & {"jax", "jaxlib", "flax", "optax"}, name


def test_config_stays_with_the_conductors():
  conductors = {
    "learner",
    "assembly",
    "sources",
    "recipe",
    "bookkeeping",
    "plan",
    "arrangements",
    "main",
  }
  # The schema itself, and a conductor in several files.
  rooms = of_room("config") + of_room("comparison")
  for name, path in MODULES.items():
    if name.split(".")[-1] not in conductors and name not in rooms:
      assert not our_imports(path) & set(of_room("config")), name


def test_imports_have_no_cycle():
  # The package itself is the face: it imports, and is not imported.
  graph = {
    name: our_imports(path) - {"distil_jax"}
    for name, path in MODULES.items()
    if name != "distil_jax"
  }
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
