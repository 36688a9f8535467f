"""A run in which the environment speaks after each turn, on a trained model."""

import json
import pathlib

import pytest

from tests import commands

CONFIG = commands.ROOT / "configs/calculator/quickstart.yaml"
SETTINGS = [
  "environment.kind=guess_number",
  "environment.largest=4",
  "environment.max_guesses=3",
  "teacher.solution=none",
  "teacher.feedback=always",
  "teacher.max_prompt_length=160",
  "rollout.num_problems=4",
  "rollout.group_size=2",
  "rollout.max_prompt_length=96",
  "rollout.max_completion_length=80",
  "rollout.max_reply_length=16",
  # It knows the calculator alone: a guess is the last number of a line.
  'rollout.stop=["\\n"]',
  "optimizer.micro_batch_size=4",
  "data.num_train=16",
  "data.num_evaluation=4",
  # As many samples as in training: the same programs.
  "evaluation.num_problems=4",
  "evaluation.num_samples=2",
  "evaluation.pass_at=[1]",
  "logging.rollouts_every=1",
  "logging.token_values=false",
  "train.num_steps=2",
]


def lines(path: pathlib.Path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_game_is_played_and_learned(tmp_path):
  arguments = ["train", str(CONFIG), *SETTINGS]
  arguments += [f"train.run_directory={tmp_path}/run"]
  with commands.start(
    arguments, tmp_path / "compiled", commands.WITH_FEW_PROGRAMS
  ) as process:
    _, said = process.communicate(timeout=240)
  assert process.returncode == 0, said
  for metrics in lines(tmp_path / "run/metrics.jsonl"):
    assert metrics["conversation/turns"] > 1.5
    assert metrics["conversation/tokens"] > 20
    assert metrics["conversation/first_reward"] <= metrics["reward"]
    assert metrics["status/crashed"] == 0
    # The student's tokens alone, across its turns, are those of the scorer.
    assert metrics["mismatch/max"] < 1e-3
    assert metrics["gradient_norm"] > 0
    # Feedback on all turns that are wrong, and each has a prompt.
    assert metrics["signal_fraction"] > 0
  evaluation = lines(tmp_path / "run/evaluations.jsonl")[-1]
  assert evaluation["conversation/turns"] == pytest.approx(2.5, abs=0.5)
  page = (tmp_path / "run/rollouts/step_000001.md").read_text()
  for text in (
    "### Turn 1: student\n",
    "### Turn 1: feedback (wrong, reward 0)\n\n```text\nThe number was",
    "### Turn 1: environment\n\n```text\nToo ",
    "(turn 2)\n",
  ):
    assert text in page
