"""The plan of the code base: who may import whom, and how large it may get."""

import re
import sys

import pytest

import distil_jax
from distil_jax.objectives import build
from tests import measures
from tests.paths import ROOT

# From the lowest floor up; a room imports rooms that stand before it.
FLOORS = (
  ("types", "config", "models", "ops", "distributed"),
  ("objectives", "envs"),
  ("data",),
  ("generation",),
  ("training",),
  ("planning", "analysis"),
  ("cli",),
  ("__main__",),
)
# Parts that depend on their arguments alone: no files, clock or global keys.
PURE = (
  "ops",
  "models",
  "objectives",
  "generation",
  "training.train_step",
  "training.train_state",
  "training.optimizers",
  "training.low_precision",
  "training.parameter_groups",
)
READS_FILES = ("models.hf_", "generation.policy")
# An objective's file reads its own section of a config.
READS_SECTIONS = {
  f"distil_jax.objectives.{name}" for name in ("build", *build.OBJECTIVES)
}
IMPURE = {"os", "time", "random", "pathlib", "sys", "transformers"}


# What pip calls otherwise than Python.
IMPORTED_AS = {
  "orbax-checkpoint": "orbax",
  "pyyaml": "yaml",
}
# Imported by functions that first look for the extra that these need.
NEED_AN_EXTRA = {"distil_jax.envs.math_answers.values"}


def of_room(room):
  prefix = f"distil_jax.{room}"
  names = [
    n for n in measures.modules() if n == prefix or n.startswith(f"{prefix}.")
  ]
  assert names, f"no modules in {prefix}"
  return names


def tops(name):
  return {found.split(".")[0] for found in measures.imports(name)}


def test_imports_run_downwards():
  floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
  for name in measures.modules():
    if name == "distil_jax":
      continue  # the face of the package imports what it shows
    room = name.split(".")[1]
    for target in measures.own_imports(name):
      other = target.split(".")[1]
      assert other == room or floor[other] < floor[room], f"{name}: {target}"


@pytest.mark.parametrize("part", PURE)
def test_pure_parts_touch_neither_disk_nor_clock(part):
  for name in of_room(part):
    if not name.removeprefix("distil_jax.").startswith(READS_FILES):
      assert not tops(name) & IMPURE, name


@pytest.mark.parametrize("part", [p for p in PURE if p != "generation"])
def test_pure_parts_know_no_config(part):
  for name in of_room(part):
    read = {
      target
      for target in measures.own_imports(name)
      if target.startswith("distil_jax.config")
    }
    if name in READS_SECTIONS:
      read -= {"distil_jax.config.objectives", "distil_jax.config.teacher"}
    assert not read, name


def test_environments_use_no_jax():
  for name in of_room("envs"):
    assert not tops(name) & {"jax", "jaxlib", "flax", "optax"}, name


def test_the_sandbox_needs_nothing_of_the_rest():
  guest = set(of_room("envs.sandbox.guest"))
  sandbox = set(of_room("envs.sandbox"))
  for name in sandbox:
    reach = guest if name in guest else sandbox
    assert measures.own_imports(name) <= reach, name
    assert tops(name) <= {*sys.stdlib_module_names, "distil_jax"}, name


def test_the_package_is_imported_without_any_extra():
  text = (ROOT / "setup.py").read_text(encoding="utf-8")
  required = text[text.index("install_requires") : text.index("extras_require")]
  names = set(re.findall(r'f?"([\w-]+)[>={]', required))
  assert {"jax", "pyyaml", "httpx2"} <= names
  base = {IMPORTED_AS.get(name, name) for name in names}
  for name in measures.modules():
    first = measures.first_imports(name)
    if name not in NEED_AN_EXTRA:
      roots = {found.split(".")[0] for found in first}
      others = roots - base - sys.stdlib_module_names - {"distil_jax"}
      assert not others, name
    assert not NEED_AN_EXTRA & {measures.owner(x) for x in first}, name


def test_the_face_of_the_package_imports_each_name_that_it_shows():
  assert set(distil_jax.__all__) <= set(dir(distil_jax))
  for name in distil_jax.__all__:
    assert getattr(distil_jax, name).__name__ == name
  with pytest.raises(AttributeError, match="no attribute 'generat'"):
    _ = distil_jax.generat  # pyright: ignore[reportAttributeAccessIssue]


def test_theory_imports_ops_at_most():
  allowed = set(of_room("analysis.theory")) | set(of_room("ops"))
  for name in of_room("analysis.theory"):
    assert measures.own_imports(name) <= allowed, name


@pytest.mark.parametrize("figure", measures.LIMITS)
def test_the_layout_stays_within_its_limits(figure):
  found, where = measures.measure()[figure]
  assert found <= measures.LIMITS[figure], where


def test_imports_have_no_cycle():
  measures.longest_chain(measures.graph_of_modules())
