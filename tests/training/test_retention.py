import jax.numpy as jnp
import pytest

from distil_jax import config
from distil_jax.training import checkpoints, retention

ACCURACIES = {0: 0.99, 1: 0.1, 2: 0.6, 3: 0.5, 4: 0.2, 5: 0.6, 6: 0.3, 7: 0.9}


def saved_after(folder, steps, **settings):
  """Saves steps, the accuracy of each of which is known; returns the kept."""
  known = {}
  with checkpoints.Checkpoints(
    folder, accuracies=lambda: known, **settings
  ) as saved:
    for step in steps:
      # A new process knows what the run's reports say.
      known |= {s: x for s, x in ACCURACIES.items() if s <= step}
      saved.save(step, {"w": jnp.zeros(2)}, {})
  with checkpoints.Checkpoints(folder) as saved:
    return saved.steps


def test_last_every_and_best_are_kept(tmp_path):
  found = saved_after(tmp_path, [1, 2, 3, 4], keep=1, keep_every=3, keep_best=1)
  assert found == [2, 3, 4]
  # The best so far survives a new start, until a later one is as good.
  found = saved_after(tmp_path, [5], keep=1, keep_every=3, keep_best=2)
  assert found == [2, 3, 5]
  found = saved_after(tmp_path, [6, 7], keep=1, keep_every=3, keep_best=1)
  assert found == [3, 6, 7]


def test_only_the_last_are_kept_by_default(tmp_path):
  assert saved_after(tmp_path, [1, 2, 3], keep=2) == [2, 3]


def test_steps_are_ordered_by_accuracy():
  assert retention.by_accuracy([1, 2, 5, 8], ACCURACIES) == [5, 2, 1]


def test_a_run_without_evaluations_has_no_accuracies(tmp_path):
  assert retention.read_accuracies(tmp_path) == {}


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    (
      {"keep_every": 75},
      "keep_every=75 must be a multiple of checkpoint.every",
    ),
    ({"keep_best": 1}, "compares evaluations, but evaluation.every=0"),
  ],
)
def test_steps_that_are_never_saved_cannot_be_kept(settings, said):
  with pytest.raises(config.ConfigError, match=said):
    config.parse({"checkpoint": settings})


def test_evaluations_between_checkpoints_cannot_be_the_best():
  checkpoint, evaluation = {"keep_best": 1, "every": 50}, {"every": 20}
  with pytest.raises(config.ConfigError, match="every=20 must be a multiple"):
    config.parse({"checkpoint": checkpoint, "evaluation": evaluation})
  config.parse({"checkpoint": checkpoint, "evaluation": {"every": 100}})
