"""A run in which a tool always answers, through all stations."""

import json
import pathlib

import pytest

from tests import commands

CONFIG = commands.ROOT / "configs/calculator/quickstart.yaml"
# The model writes no Python; so what it writes is taken for some.
TOOL = """
from distil_jax.envs.tools import make_tool

BLOCKS = ["x = 20", "print(x + 1)"]


def make(name):
  python = make_tool("python", seconds=1.0)

  def tool(problem, turns, outputs):
    turns = [f"```python\\n{name} = 0; {b}\\n```" for b in BLOCKS[: len(turns)]]
    return python(problem, turns, outputs)

  return tool
"""
SETTINGS = [
  "tools.kind=always_python:make",
  "tools.name=unused",
  "tools.max_turns=3",
  "tools.max_output_tokens=24",
  "rollout.num_problems=2",
  "rollout.group_size=2",
  "rollout.max_completion_length=96",
  'rollout.stop=["\\n"]',  # of short turns there are few programs
  "optimizer.micro_batch_size=2",
  "data.num_train=16",
  "data.num_evaluation=2",
  # As many samples as in training: the same programs.
  "evaluation.num_problems=2",
  "evaluation.num_samples=2",
  "evaluation.pass_at=[1]",
  "logging.rollouts_every=1",
  "logging.token_values=false",
]


def lines(path: pathlib.Path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_with_a_tool_that_always_answers(tmp_path):
  (tmp_path / "always_python.py").write_text(TOOL)
  arguments = ["train", str(CONFIG), *SETTINGS, "train.num_steps=1"]
  arguments += [f"train.run_directory={tmp_path}/run"]
  with commands.start(
    arguments,
    tmp_path / "compiled",
    commands.WITH_FEW_PROGRAMS,
    directory=tmp_path,
  ) as process:
    _, said = process.communicate(timeout=240)
  assert process.returncode == 0, said
  said = said.replace(str(tmp_path), "").replace("tools/", "")
  assert "tool" not in said  # nothing has failed
  (metrics,) = lines(tmp_path / "run/metrics.jsonl")
  assert metrics["tools/turns"] == pytest.approx(3, abs=0.5)
  assert metrics["tools/calls"] == metrics["tools/turns"] - 1
  assert metrics["tools/failed"] == 0
  assert metrics["tools/tokens"] > 20
  # The student's tokens alone, across its turns, are those of the scorer.
  assert metrics["mismatch/max"] < 1e-3
  assert metrics["gradient_norm"] > 0
  evaluation = lines(tmp_path / "run/evaluations.jsonl")[-1]
  assert evaluation["tools/turns"] > 2
  page = (tmp_path / "run/rollouts/step_000001.md").read_text()
  assert "### Turn 1: student\n" in page
  assert "### Turn 1: tool\n\n```text\n(nothing was printed)\n```" in page
  assert "### Turn 2: tool\n\n```text\n21\n```" in page
