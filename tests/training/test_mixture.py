"""Several data sets and environments in one run, which also refills groups."""

import dataclasses
import json
import shutil
import zlib

import numpy as np
import pytest

from distil_jax import config
from distil_jax.generation import engine
from distil_jax.objectives import losses
from distil_jax.training import checkpoints, evaluation, trainer
from distil_jax.training.logging import tables
from distil_jax.types import Problem, Status, TrainBatch, Verdict

STEPS = 4
NUM_PROBLEMS = 8


@dataclasses.dataclass
class Judge:
  """Makes problems, and rewards by a check sum of the text."""

  name: str

  def problem(self, row, index=0):
    raise NotImplementedError("these problems come from no file")

  def generate(self, index, split):
    text = f"{self.name} {split} {index}"
    return Problem(index, ({"role": "user", "content": text},), self.name)

  def demonstration(self, index, teacher_prompt):
    raise NotImplementedError("nothing is learned from demonstrations")

  def judge(self, problem, completion):
    # Each judge sees the problems of its own data set only.
    assert problem.source == problem.answer == self.name
    reward = zlib.crc32(completion.encode()) % 2
    status = Status.CORRECT if reward else Status.WRONG
    return Verdict(float(reward), "", status)


def data_set(name, **others):
  return {
    "data": {"num_train": 40, "num_evaluation": 4},
    "environment": {"kind": f"{__name__}:Judge", "name": name},
    **others,
  }


def settings(directory, name):
  return config.parse(
    {
      "model": {
        "directory": str(directory / "model"),
        "create": {
          "vocab_size": 300,
          "width": 16,
          "num_layers": 1,
          "num_heads": 2,
          "num_kv_heads": 2,
          "head_size": 8,
          "mlp_size": 16,
        },
        "remat": "none",
      },
      "mixture": {
        "left": data_set(
          "left", weight=3, loss_weight=0.5, max_completion_length=3
        ),
        "right": data_set(
          "right", evaluation={"num_samples": 1, "pass_at": [1]}
        ),
        "aside": data_set("aside", weight=0, max_completion_length=2),
      },
      "rollout": {
        "num_problems": NUM_PROBLEMS,
        "group_size": 2,
        "max_prompt_length": 32,
        "max_completion_length": 6,
        "refill": {"max_rounds": 2},
      },
      "objective": {"kind": "grpo"},
      "teacher": {"parameters": "frozen"},
      "optimizer": {"learning_rate": 1e-2},
      "train": {"num_steps": STEPS, "run_directory": str(directory / name)},
      "evaluation": {"num_samples": 2, "pass_at": [1, 2], "num_problems": 8},
      "checkpoint": {"every": 2},
      "logging": {"tensorboard": False, "token_values": False},
    }
  )


def lines(folder, name):
  """Returns all numbers but times and counts of what was compiled."""
  found = [json.loads(x) for x in (folder / name).read_text().splitlines()]
  return [
    {
      k: v
      for k, v in line.items()
      if not k.startswith(("time/", "memory/", "rollout/"))
    }
    for line in found
  ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("mixture")


@pytest.fixture(scope="module", autouse=True)
def one_width():
  """So that slots are not given up: each number of them is a program."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, "ladder", lambda width: [width])
    yield


@pytest.fixture(scope="module")
def whole(folder):
  """The folder of an uninterrupted run."""
  trainer.Trainer(settings(folder, "whole")).train()
  return folder / "whole"


def test_each_data_set_has_metrics_and_its_share(whole):
  for line in lines(whole, "metrics.jsonl"):
    counts = {name: line[f"problems/{name}"] for name in ("left", "right")}
    assert sum(counts.values()) == NUM_PROBLEMS
    for name in ("reward", "cut_off", "completion_length"):
      mean = sum(line[f"{name}/{x}"] * n for x, n in counts.items())
      assert mean / NUM_PROBLEMS == pytest.approx(line[name])
    assert line["completion_length/left"] <= 3
    assert "reward/aside" not in line
  assert any(
    line["completion_length/right"] > 3
    for line in lines(whole, "metrics.jsonl")
  )


def test_refilled_groups_are_counted_and_move_the_position(whole):
  found = lines(whole, "metrics.jsonl")
  refilled = [line["groups/refilled"] for line in found]
  assert all(n > 0 for n in refilled)
  assert all(
    line["groups/without_signal"] < NUM_PROBLEMS and line["advantage"] > 0
    for line in found
  )
  with checkpoints.Checkpoints(whole / "checkpoints") as saved:
    position = saved.notes(STEPS)["position"]
    half = saved.notes(2)["position"]
  assert position == STEPS * NUM_PROBLEMS + sum(refilled)
  assert half == 2 * NUM_PROBLEMS + sum(refilled[:2])


def test_each_set_is_evaluated_with_its_own_sampling(whole):
  for line in lines(whole, "evaluations.jsonl"):
    values = [line["left/avg@2"], line["right/avg@1"], line["aside/avg@2"]]
    assert line["avg@2"] == pytest.approx(np.mean(values))
    assert "pass@2" not in line  # one of the sets has a single sample
    assert line["aside/completion_length"] <= 2
    assert line["right/verdict/correct"] == line["right/avg@1"]


def test_a_resumed_run_repeats_the_uninterrupted_one(whole, folder):
  resumed = folder / "resumed"
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / "checkpoints" / str(STEPS))
  summary = trainer.Trainer(settings(folder, "resumed")).train()
  assert summary["steps"] == STEPS
  for name in ("metrics.jsonl", "evaluations.jsonl"):
    assert lines(resumed, name) == lines(whole, name)
  notes = []
  for run in (whole, resumed):
    with checkpoints.Checkpoints(run / "checkpoints") as saved:
      notes.append(saved.notes(STEPS)["position"])
  assert notes[0] == notes[1]


def test_another_weight_is_another_run_and_another_evaluation_is_not(
  whole, folder
):
  del whole  # there must be a checkpoint
  tree = settings(folder, "whole").model_dump()
  tree["mixture"]["left"]["weight"] = 1.0
  with pytest.raises(config.ConfigError, match=r"mixture\.left\.weight: 3"):
    trainer.Trainer(config.parse(tree)).train()
  tree["mixture"]["left"]["weight"] = 3.0
  tree["mixture"]["left"]["evaluation"] = None
  assert trainer.Trainer(config.parse(tree)).train()["steps"] == STEPS


def test_the_weight_of_a_sample_scales_its_part_of_the_loss_alone():
  ones = np.ones((2, 3), np.int32)
  batch = TrainBatch(
    **dict.fromkeys(
      (
        "prompt_ids",
        "prompt_mask",
        "teacher_prompt_ids",
        "teacher_prompt_mask",
        "completion_ids",
        "completion_mask",
        "old_log_probs",
      ),
      ones,
    ),
    sample_mask=ones[:, 0],
    rewards=ones[:, 0],
  )
  weighted = dataclasses.replace(
    batch, sample_weights=np.asarray([0.5, 2.0], np.float32)
  )
  for aggregation in ("token_mean", "sequence_mean"):
    plain, scaled = (
      losses.prepare(x, aggregation=aggregation).loss_weights
      for x in (batch, weighted)
    )
    np.testing.assert_allclose(scaled[0], 0.5 * plain[0])
    np.testing.assert_allclose(scaled[1], 2.0 * plain[1])


def test_problems_of_two_sets_have_samples_of_their_own():
  one, other = (Problem(3, (), "", source=name) for name in ("a", "b"))
  assert one.identity != other.identity
  assert Problem(3, (), "").identity == 3
  assert 0 <= one.identity < 2**32


def test_the_mean_counts_each_set_once():
  found = evaluation.mean_of_data_sets(
    {
      "a": {"avg@8": 0.5, "pass@1": 0.5, "pass@8": 0.9, "verdict/wrong": 0.5},
      "b": {"avg@2": 0.0, "pass@1": 0.0, "verdict/error": 1.0},
    },
    num_samples=4,
  )
  assert found == {
    "avg@4": 0.25,
    "pass@1": 0.25,
    "verdict/wrong": 0.25,
    "verdict/error": 0.5,
  }
  table = tables.evaluation_table({**found, "a/cut_off": 0.5})
  assert "a/cut off" in table
  assert "50.0 %" in table
