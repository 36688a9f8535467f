"""The whole loop in this process, sharded over eight devices."""

import json

import jax
import numpy as np
import pytest

from distil_jax import config
from distil_jax.training import run_checks, run_lock, trainer
from distil_jax.training.logging.monitors import MonitorStop

pytestmark = pytest.mark.usefixtures("one_width")
TINY = {
  "vocab_size": 300,
  "width": 16,
  "num_layers": 1,  # compiles sooner
  "num_heads": 2,
  "num_kv_heads": 2,
  "head_size": 8,
  "mlp_size": 32,
}


def settings(tmp_path, num_steps):
  return config.parse(
    {
      "model": {
        "directory": str(tmp_path / "model"),
        "create": TINY,
        "remat": "none",
      },
      "data": {"num_train": 32, "num_evaluation": 4},
      "rollout": {
        "num_problems": 4,
        "group_size": 2,
        "max_prompt_length": 64,
        "max_completion_length": 8,
      },
      "teacher": {"parameters": "ema", "max_prompt_length": 192},
      "objective": {"baseline": "leave_one_out"},
      "optimizer": {"warmup_steps": 1},
      "mesh": {"fsdp": 4, "tensor": 2},
      "train": {
        "num_steps": num_steps,
        "run_directory": str(tmp_path / f"run_{num_steps}"),
      },
      # As many samples as in training: the same programs.
      "evaluation": {"num_problems": 4, "num_samples": 2, "pass_at": [1]},
      "logging": {"tensorboard": False, "token_values": False},
    }
  )


def test_where_and_how_it_is_sampled_changes_nothing(tmp_path):
  """Few slots, a mesh of its own, sequences cut along time: the same run.

  And micro-batches by length, of two rows for each part of the batch.
  """

  def lines(changed, mesh=None, num_tokens=None):
    trial = settings(tmp_path, 2).model_dump()
    trial["rollout"] |= changed
    trial["mesh"] |= mesh or {}
    trial["optimizer"]["tokens_per_micro_batch"] = num_tokens
    directory = tmp_path / f"run_{len(changed)}_{len(mesh or {})}"
    trial["train"]["run_directory"] = str(directory)
    trainer.Trainer(config.parse(trial)).train()
    text = (directory / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]

  plain = lines({})
  mesh = {"data": 2, "fsdp": 2, "tensor": 2}
  changed = lines({"num_slots": 4, "mesh": mesh}, num_tokens=1000)
  along_time = lines({}, {"fsdp": 2, "context": 2})
  for before, *others in zip(plain, changed, along_time, strict=True):
    for name in ("loss", "reward", "completion_length", "gradient_norm"):
      for after in others:
        np.testing.assert_allclose(
          after[name], before[name], rtol=1e-4, atol=1e-7
        )
    for after in others:
      assert 0 < after["mismatch/mean"] < 1e-4
    assert (
      others[0]["rollout/cache_megabytes"] < before["rollout/cache_megabytes"]
    )


@pytest.mark.parametrize(
  ("mesh", "said"),
  [
    ({"data": 3}, "rollout.mesh"),
    ({"data": 8, "fsdp": 1}, "rollout.num_problems=4 is not a multiple of 8"),
    ({"context": 2}, "rollout.mesh.context=2: sampling"),
  ],
  ids=str,
)
def test_a_mesh_that_cannot_sample_is_refused(tmp_path, mesh, said):
  trial = settings(tmp_path, 2).model_dump()
  trial["rollout"]["mesh"] = mesh
  with pytest.raises(config.ConfigError, match=said):
    trainer.Trainer(config.parse(trial))


@pytest.mark.parametrize(
  ("length", "num_problems", "said"),
  [
    (7, 4, "max_completion_length=7 is not a multiple of mesh.context=2"),
    (8, 2, "=2 is not a multiple of 4, .*, mesh.fsdp=2, mesh.context=2"),
  ],
)
def test_sequences_that_cannot_be_cut_are_refused(
  tmp_path, length, num_problems, said
):
  trial = settings(tmp_path, 2).model_dump()
  trial["mesh"] |= {"fsdp": 2, "context": 2}
  trial["rollout"] |= {
    "max_completion_length": length,
    "num_problems": num_problems,
  }
  with pytest.raises(config.ConfigError, match=said):
    trainer.Trainer(config.parse(trial))


def test_a_folder_in_which_another_run_is_under_way_is_refused(tmp_path):
  trial = settings(tmp_path, 2)
  run = trainer.Trainer(trial)
  with (
    run_lock.held(trial.run_directory),
    pytest.raises(config.ConfigError, match="another run is under way"),
  ):
    run.train()
  # Not even an empty folder of checkpoints, which the other run might make.
  assert not list(trial.run_directory.iterdir())


def test_rewards_alone_teach_without_a_teacher(tmp_path, capsys):
  """GRPO in two mini-batches, with a reference; no teacher's prompt."""
  trial = settings(tmp_path, 2).model_dump()
  trial["objective"] = {"kind": "grpo", "kl_weight": 0.1}
  # Too short for any teacher's prompt: none is made.
  trial["teacher"] |= {"parameters": "frozen", "max_prompt_length": 1}
  trial["optimizer"]["mini_batch_size"] = 4
  trial["logging"]["mismatch_limit"] = 1e-12
  summary = trainer.Trainer(config.parse(trial)).train()
  assert summary["steps"] == 2
  text = (tmp_path / "run_2/metrics.jsonl").read_text().splitlines()
  metrics = json.loads(text[-1])
  for name in ("advantage", "importance", "reference_log_ratio", "loss"):
    assert np.isfinite(metrics[name]), name
  assert metrics["signal_fraction"] == 1
  assert "teacher/accuracy" not in metrics
  assert "teacher_entropy" not in metrics
  lines = list(map(json.loads, text))
  for line in lines:
    mean, largest = line["mismatch/mean"], line["mismatch/max"]
    assert 0 <= mean <= largest < 1e-4
    assert abs(line["mismatch/kl"]) < 1e-8
  # In a single step sampler and scorer may round alike.
  steps = [line["step"] for line in lines if line["mismatch/mean"] > 0]
  text = f"step {steps[0]}: the log-probabilities that the"
  assert text in capsys.readouterr().err


@pytest.mark.parametrize(
  ("changed", "is_warned"),
  [
    ({}, False),
    ({"rollout": {"temperature": 0.7}}, True),
    ({"rollout": {"top_k": 20}}, True),
    ({"rollout": {"top_p": 0.9}, "objective": {"kind": "grpo"}}, True),
    ({"rollout": {"top_p": 0.9}, "objective": {"kind": "sdpo"}}, False),
    (
      {
        "rollout": {"top_p": 0.9},
        "objective": {"future_weight": 0, "reward_weight": 0},
      },
      False,
    ),
    (
      {
        "rollout": {"top_p": 0.9},
        "objective": {"future_weight": 0, "reward_weight": 1},
      },
      True,
    ),
    ({"rollout": {"top_p": 0.9}, "objective": {"kind": "sft"}}, False),
  ],
)
def test_a_sampler_that_truncates_is_warned_of(changed, is_warned):
  found = run_checks.warnings(config.parse(changed))
  assert len(found) == is_warned
  assert all("rollout.temperature" in warning for warning in found)


@pytest.fixture
def compilations():
  """The programs that are compiled, one entry each."""
  events = []

  def listen(event, duration, **_):
    del duration
    if event == "/jax/core/compile/backend_compile_duration":
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


def test_further_steps_compile_nothing(tmp_path, compilations):
  counts = {}
  # The first run compiles, besides, what later ones find in jax's own caches.
  for num_steps in (1, 2, 5):
    compilations.clear()
    summary = trainer.Trainer(settings(tmp_path, num_steps)).train()
    assert summary["steps"] == num_steps
    counts[num_steps] = len(compilations)
    metrics = (tmp_path / f"run_{num_steps}/metrics.jsonl").read_text()
    of_steps = [
      line["time/compilations"]
      for line in map(json.loads, metrics.splitlines())
    ]
    assert of_steps[0] > 0
    assert sum(of_steps[1:]) == 0
    causes = summary["seconds_by_cause"]
    assert {"useful", "compile", "evaluation", "checkpoint"} <= set(causes)
    assert sum(causes.values()) == pytest.approx(summary["seconds"], abs=1)
  assert counts[2] > 0
  assert counts[5] == counts[2]


def test_a_monitor_stops_a_run_whose_last_step_is_saved(tmp_path, capsys):
  cfg = settings(tmp_path, 4)
  cfg = cfg.model_dump() | {
    "logging": {
      "tensorboard": False,
      "monitors": [
        {"metric": "completion_length", "below": 1000, "action": "stop"},
        {"metric": "rewrd", "below": 0},
      ],
    }
  }
  for step in (1, 2):  # it goes on, and stops again
    with pytest.raises(MonitorStop, match=f"step {step}: completion_length is"):
      trainer.Trainer(config.parse(cfg)).train()
    folder = tmp_path / "run_4"
    assert (folder / "checkpoints" / str(step)).is_dir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == step
  assert "did you mean reward?" in capsys.readouterr().err
