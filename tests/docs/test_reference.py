"""Checks that the reference pages say what the code does."""

import ast
import json
import re

import pytest

from distil_jax.training.logging import step_metrics
from distil_jax.training.rollouts import self_critique
from distil_jax.types import Status
from docs import generate
from tests import measures
from tests.docs import pages
from tests.paths import GOLDEN, ROOT

# Emitters whose names are literals there, for runs that the golden ones lack.
_EMITTERS = (
  "distil_jax.training.logging.speed_metrics",
  "distil_jax.training.logging.step_metrics",
  "distil_jax.training.trainer",
  "distil_jax.training.skipped_updates",
  "distil_jax.training.host_step",
  "distil_jax.training.rollouts.refill",
  "distil_jax.models.experts",
  "distil_jax.objectives.losses",
  "distil_jax.ops.sampler_mismatch",
)


@pytest.mark.parametrize("path", generate.pages(), ids=pages.name_of)
def test_generated_pages_are_up_to_date(path):
  text = path.read_text(encoding="utf-8")
  assert text == generate.pages()[path], "run `python -m docs.generate`"


def test_every_setting_is_described():
  text = generate.config_page()
  assert not re.findall(r"^\| `[^|]*` \|.*\|\s*\|$", text, re.MULTILINE)


def listed_metrics():
  text = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
  cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
  return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def golden_metrics():
  """Returns the metrics of one run of every objective, as recorded."""
  runs = json.loads((GOLDEN / "runs.json").read_text())["found"]
  lines = [
    line
    for run in runs.values()
    if isinstance(run, dict)
    for kind in ("metrics", "evaluations")
    for line in run.get(kind, ())
  ]
  names = {name for line in lines for name in line} - {"step"}
  return {re.sub(r"^(avg@|pass@)\d+$", "\\1", n) for n in names}


def literal_names():
  """Returns all texts in the modules that emit metrics."""
  found = set()
  for module in _EMITTERS:
    for node in ast.walk(measures.tree_of(module)):
      if isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.add(node.value)
      if isinstance(node, ast.keyword) and node.arg:
        found.add(node.arg)
  return found


def test_every_metric_is_listed_and_no_other():
  listed = listed_metrics()
  emitted = golden_metrics()
  emitted |= {f"status/{status}" for status in Status}
  emitted |= {f"verdict/{status}" for status in Status}
  kinds = set(self_critique.COUNTS) - {"tokens"} | {"length"}
  emitted |= {f"critique/{kind}" for kind in kinds}
  emitted |= {f"tools/{n}" for n in ("turns", "calls", "failed", "tokens")}
  emitted |= {f"conversation/{n}" for n in ("turns", "first_reward", "tokens")}
  emitted |= {f"{n}/NAME" for n in step_metrics.OF_DATA_SETS}
  # Names with a folder are metrics wherever they stand in an emitter.
  emitted |= {
    name
    for name in literal_names()
    if re.fullmatch(
      r"(experts|groups|memory|mismatch|rollout|signal|teacher|time|update)/\w+",
      name,
    )
  }
  # What follows stands for a number, or the name of one of several teachers.
  placeholder = r"^(avg@|pass@|teacher/\w+/)(G|k|NAME)$"
  normal = {re.sub(placeholder, r"\1", name) for name in listed}
  assert emitted <= normal, f"not listed: {sorted(emitted - normal)}"
  extra = normal - emitted
  # What only rare settings log must at least stand in an emitter.
  unknown = extra - literal_names()
  assert not unknown, f"listed, but not in the code: {sorted(unknown)}"


def test_messages_of_several_processes_are_the_code_s():
  text = (ROOT / "docs/guides/several_hosts.md").read_text(encoding="utf-8")
  messages = re.findall(r"^\| `([^`]+)` \|", text.split("## Messages")[1], re.M)
  assert len(messages) > 10
  strings = []
  for module in measures.modules():
    rooms = ("distributed", "generation", "training")
    if not module.startswith(tuple(f"distil_jax.{room}" for room in rooms)):
      continue
    for node in ast.walk(measures.tree_of(module)):
      if isinstance(node, ast.JoinedStr):
        parts = [getattr(part, "value", "") for part in node.values]
        strings.append(
          "\0".join(p if isinstance(p, str) else "" for p in parts)
        )
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        strings.append(node.value)
  for message in messages:
    if "JAX distributed service" in message:
      continue  # jax's own
    for piece in re.split(
      r"\.\.\.|\d+|HOST, pid P|SIGTERM|command, .*|data, .*|the content .*",
      message,
    ):
      piece = piece.strip(" :;()")
      if len(piece) > 8:
        assert any(piece in string for string in strings), piece


@pytest.mark.parametrize(
  ("walk", "most"), [("a setting, from", 12), ("a completion, from", 10)]
)
def test_a_walk_is_short(walk, most):
  page = ROOT / "docs/explanation/architecture.md"
  section = page.read_text(encoding="utf-8").split(f"## Walk: {walk}")[1]
  stops = re.findall(r"\.\./\.\./(distil_jax/[\w/.]+)", section.split("## ")[0])
  assert 5 <= len(stops) <= most
  assert len(set(stops)) == len(stops)
  assert all((ROOT / stop).is_file() for stop in stops)
