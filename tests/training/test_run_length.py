"""Whichever ends a run, its steps or its epochs, the schedule knows it."""

import re

import numpy as np
import pytest

from distil_jax import config
from distil_jax.data import problems
from distil_jax.training.setup import run_length, steps

LINEAR = {"kind": "adamw", "schedule": "linear", "learning_rate": 1.0}


def made(num_steps, num_epochs, optimizer=LINEAR):
  """A run of eight problems a step, of twenty problems."""
  settings = config.parse(
    {
      "rollout": {"num_problems": 8},
      "data": {"num_epochs": num_epochs},
      "optimizer": optimizer,
      "train": {"num_steps": num_steps},
    }
  )
  data = problems.Data(
    train={"": list(range(20))}, evaluation={}, num_skipped=0, num_dropped=0
  )
  return settings, data


@pytest.mark.parametrize(
  ("num_steps", "num_epochs", "expected", "said"),
  [
    (100, None, 100, None),
    # Sixty problems fill seven batches.
    (100, 3, 7, "num_epochs ends the run after step 7, before train.num_steps"),
    (5, 3, 5, "train.num_steps=5 ends the run; .* until step 7"),
  ],
)
def test_the_rate_falls_until_the_end(num_steps, num_epochs, expected, said):
  settings, data = made(num_steps, num_epochs)
  found = run_length.find_num_steps(settings, data)
  assert found == expected
  text = run_length.describe(settings, data)
  if said is None:
    assert text is None
  else:
    assert re.search(said, text)
  params = {"norm": np.zeros(1)}
  _, schedule = steps.build_optimizer(settings, params, found)
  assert float(schedule(found)) == 0
  assert float(schedule(found - 1)) == pytest.approx(1 / found)


def test_a_fall_that_is_longer_than_the_epochs_is_refused():
  wsd = {**LINEAR, "schedule": "wsd", "decay_steps": 8}
  settings, data = made(100, 3, wsd)
  with pytest.raises(config.ConfigError, match=r"num_epochs.*decay_steps=8"):
    run_length.find_num_steps(settings, data)
