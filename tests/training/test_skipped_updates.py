"""Updates that are not finite are skipped and kept, and can be replayed."""

import dataclasses
import json

import numpy as np
import pytest

from distil_jax import config
from distil_jax.cli import main
from distil_jax.generation import engine
from distil_jax.training import recorded_steps, skipped_updates, trainer
from distil_jax.training.teacher_guard import GuardState
from tests.training.test_trainer import TINY

FAILED = {"loss": float("nan"), "gradient_norm": float("inf")}


def settings(folder):
  return config.parse(
    {
      "model": {"directory": str(folder / "model"), "create": TINY},
      "data": {"num_train": 32, "num_evaluation": 4},
      "rollout": {
        "num_problems": 4,
        "group_size": 2,
        "max_prompt_length": 64,
        "max_completion_length": 8,
      },
      "objective": {"kind": "grpo"},
      "mesh": {"fsdp": 4, "tensor": 2},
      "evaluation": {"num_problems": 4, "num_samples": 1, "pass_at": [1]},
      "checkpoint": {"every": 2, "keep": 4},
      "logging": {"tensorboard": False, "kept_batches": 4},
      "train": {
        "num_steps": 6,
        "max_skipped_updates": 1,
        "run_directory": str(folder / "run"),
      },
    }
  )


def train(folder, bad_steps):
  """Trains, with rewards that are not numbers in some steps, from 1."""
  made = trainer.Trainer(settings(folder))
  update = made.update

  def poisoned(step, batch, guard):
    if step + 1 in bad_steps:
      rewards = np.full_like(batch.rewards, np.nan)
      batch = dataclasses.replace(batch, rewards=rewards)
    return update(step, batch, guard)

  made.update = poisoned
  return made.train()


def lines(folder):
  text = (folder / "run/metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_a_run_skips_stops_goes_on_and_is_replayed(
  tmp_path, monkeypatch, capsys
):
  # So that slots are not given up: each number of them is a program.
  monkeypatch.setattr(engine, "ladder", lambda width: [width])
  with pytest.raises(skipped_updates.TrainingError) as caught:
    train(tmp_path, (3, 5, 6))
  batches = tmp_path / "run/batches"
  for part in (
    "step 6: the loss is nan",
    "after 1 such steps whose updates were skipped",
    f"its batch is in {batches}/step_000006.0.failed.npz",
    f"distil-jax replay {tmp_path}/run 6",
  ):
    assert part in str(caught.value)
  said = capsys.readouterr().err
  assert "step 3: the loss is nan" in said
  assert "its update is skipped" in said
  assert "step 5 is saved" in said
  # The same command goes on, with good data, from the step that ended the run.
  assert train(tmp_path, ())["steps"] == 6
  assert "going on from step 5" in capsys.readouterr().err
  found = lines(tmp_path)
  assert [line["step"] for line in found] == [1, 2, 3, 4, 5, 6]
  counts = [line.get("updates_skipped") for line in found]
  assert counts == [None, None, 1, 1, 2, 2]
  is_gap = [line["loss"] is None for line in found]
  assert is_gap == [False, False, True, False, True, False]
  assert sorted(x.name for x in batches.iterdir()) == [
    "step_000003.0.failed.npz",
    "step_000004.0.npz",
    "step_000005.0.failed.npz",
    "step_000006.0.npz",
  ]
  # From the checkpoint of step 2, over the update that was skipped.
  assert main.main(["replay", str(tmp_path / "run"), "4"]) == 0
  said = capsys.readouterr().out
  assert "step 4, from the checkpoint of step 2: " in said
  assert repr(found[3]["gradient_norm"]) in said
  for step, text in ((2, "no batch of step 2; it has those of: 3, 4, 5, 6"),):
    assert main.main(["replay", str(tmp_path / "run"), str(step)]) == 1
    assert text in capsys.readouterr().err


def test_the_count_in_a_row_begins_anew_after_a_good_step(tmp_path):
  skipped = skipped_updates.SkippedUpdates(2, total=7)
  path = tmp_path / "batches/x.npz"
  for _ in range(2):
    skipped.failed(1, FAILED, path)
    skipped.failed(2, FAILED, path)
    skipped.passed()
  assert skipped.metrics() == {"updates_skipped": 11.0}
  assert skipped_updates.SkippedUpdates(2).metrics() == {}
  with pytest.raises(skipped_updates.TrainingError, match="max_skipped_upda"):
    skipped_updates.SkippedUpdates(0).failed(1, FAILED, path)


def record(folder, step, *, is_failed=False, num_kept=2, guard=None):
  batch = made_batch(step)
  return recorded_steps.save(
    folder,
    step,
    batch,
    guard,
    {"loss": 0.1, "cost": float("nan")},
    is_failed=is_failed,
    num_kept=num_kept,
  )


def made_batch(value):
  fields = dataclasses.fields(recorded_steps.TrainBatch)
  needed = [x.name for x in fields if x.default is dataclasses.MISSING]
  return recorded_steps.TrainBatch(
    **{name: np.full((2, 3), value) for name in needed}
  )


def test_records_come_back_bit_for_bit_and_old_ones_go(tmp_path):
  guard = GuardState(
    np.int32(3), np.float32(0.5), np.float32(0.25), np.asarray(True)
  )
  for step in (1, 2, 3):
    record(tmp_path, step, guard=guard)
  record(tmp_path, 4, is_failed=True)
  record(tmp_path, 5)
  assert recorded_steps.steps(tmp_path) == [4, 5]
  record(tmp_path, 4, guard=guard)  # the step was repeated, and passed
  # Step 5 was of the run before that.
  assert recorded_steps.steps(tmp_path) == [4]
  found = recorded_steps.read(tmp_path, 4)
  assert not found.is_failed
  assert found.metrics["loss"] == 0.1
  assert np.isnan(found.metrics["cost"])
  assert found.guard is not None
  assert (found.guard.num_looks, bool(found.guard.is_holding)) == (3, True)
  assert found.batch.teacher_index is None
  np.testing.assert_array_equal(found.batch.rewards, np.full((2, 3), 4))


def test_a_damaged_record_is_named(tmp_path):
  path = record(tmp_path, 1)
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(recorded_steps.RecordError, match="be read"):
    recorded_steps.read(tmp_path, 1)
