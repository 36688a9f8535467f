"""The whole loop in this process, sharded over eight devices."""

import jax
import pytest

from distil_jax import config, learner

TINY = {
  "vocab_size": 300,
  "width": 16,
  "num_layers": 2,
  "num_heads": 2,
  "num_kv_heads": 2,
  "head_size": 8,
  "mlp_size": 32,
}


def settings(tmp_path, num_steps):
  return config.parse(
    {
      "model": {"directory": str(tmp_path / "model"), "create": TINY},
      "data": {"num_train": 32, "num_evaluation": 4},
      "rollout": {
        "num_problems": 4,
        "group_size": 2,
        "max_prompt_length": 64,
        "max_completion_length": 8,
      },
      "teacher": {"max_prompt_length": 192},
      "objective": {"baseline": "leave_one_out"},
      "optimizer": {"warmup_steps": 1},
      "mesh": {"fsdp": 4, "tensor": 2},
      "train": {
        "num_steps": num_steps,
        "run_directory": str(tmp_path / f"run_{num_steps}"),
      },
      "evaluation": {"num_problems": 4},
      "logging": {"tensorboard": False},
    }
  )


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
    summary = learner.Learner(settings(tmp_path, num_steps)).train()
    assert summary["steps"] == num_steps
    counts[num_steps] = len(compilations)
  assert counts[2] > 0
  assert counts[5] == counts[2]
