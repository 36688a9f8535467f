"""Metrics of a step, and when a run warns of its sampler."""

import dataclasses

import numpy as np
import pytest

from distil_jax import config
from distil_jax.training.logging import step_metrics
from distil_jax.training.rollouts.experience import Experience
from distil_jax.types import (
  BatchStats,
  Problem,
  Rollout,
  Status,
  StopReason,
  Verdict,
)
from tests import networks


def spoken(limit, means):
  """Steps, counted from 1, at which there is a warning."""
  watch = step_metrics.MismatchWatch(limit)
  return [
    step
    for step, mean in enumerate(means, start=1)
    if watch.warning(step, {"mismatch/mean": mean, "mismatch/max": 9 * mean})
  ]


@pytest.mark.parametrize(
  ("means", "steps"),
  [
    ([0.01, 0.05, 0.05], []),
    ([0.01, 0.06, 0.06, 0.01, 0.11, 0.13, 0.2, 0.27], [2, 6, 8]),
    ([0.06, 5.0, 9.0, 11.0], [1, 2, 4]),
    ([float("nan"), float("nan"), 0.1, float("inf")], [1]),
  ],
)
def test_it_speaks_above_the_limit_and_at_each_doubling(means, steps):
  assert spoken(0.05, means) == steps


def test_without_a_limit_it_never_speaks():
  assert spoken(None, [0.1, 1e9, float("nan")]) == []


def test_demonstrations_are_not_spoken_of():
  assert step_metrics.MismatchWatch(0.05).warning(1, {"loss": 3.0}) is None


def test_it_says_what_where_and_what_to_do():
  text = step_metrics.MismatchWatch(0.05).warning(
    7, {"mismatch/mean": 0.0812, "mismatch/max": 1.234}
  )
  for part in (
    "step 7",
    "0.081 nats",
    "by 1.2 at most",
    "logging.mismatch_limit=0.05",
    "rollout.cache_dtype=float32",
    "model.compute_dtype=float32",
    "rollout.temperature",
  ):
    assert part in text


@pytest.mark.parametrize("limit", [0, -1, "soon"])
def test_a_limit_is_above_nothing(limit):
  with pytest.raises(config.ConfigError, match="mismatch_limit"):
    config.parse({"logging": {"mismatch_limit": limit}})
  assert config.parse({}).logging.mismatch_limit == 0.05


def test_verdicts_and_signals_are_counted():
  """Six samples, one of each status."""
  experience = Experience(
    problems=[Problem(index=i, messages=(), answer="") for i in range(2)],
    group_size=3,
    rollout=Rollout(
      **dict.fromkeys(
        (field.name for field in dataclasses.fields(Rollout)), None
      )
    ).replace(
      completion_mask=np.ones((6, 4), int),
      stop_reasons=np.full(6, StopReason.EOS),
    ),
    completions=[""] * 6,
    verdicts=[Verdict(s == Status.CORRECT, "", s) for s in Status],
    judging_seconds=1.25,
  )
  batch = networks.random_batch().replace(sample_mask=np.arange(6) < 4)
  stats = BatchStats([None] * 6, num_feedback=3, num_sibling=1, num_reference=2)
  found = step_metrics.experience_metrics(experience, batch, stats)
  assert {
    k: v for k, v in found.items() if "/" in k and "teacher" not in k
  } == {
    **{f"status/{status}": 1.0 for status in Status},
    **{f"verdict/{status}": 1 / 6 for status in Status},
    "signal/feedback": 3.0,
    "signal/sibling": 1.0,
    "signal/reference": 2.0,
    "signal/none": 2.0,
    "time/judging_seconds": 1.25,
  }
  assert found["signal_fraction"] == 4 / 6
  shown = step_metrics.samples(experience, stats, 2)
  assert [sample.problem.index for sample in shown] == [0, 1]
  assert len(step_metrics.samples(experience, stats, 99)) == 6
