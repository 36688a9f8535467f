"""When a run speaks of its sampler."""

import pytest

from distil_jax import bookkeeping, config


def spoken(limit, means):
  """Steps, counted from 1, at which there is a warning."""
  watch = bookkeeping.MismatchWatch(limit)
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
  assert bookkeeping.MismatchWatch(0.05).warning(1, {"loss": 3.0}) is None


def test_it_says_what_where_and_what_to_do():
  text = bookkeeping.MismatchWatch(0.05).warning(
    7, {"mismatch/mean": 0.0812, "mismatch/max": 1.234}
  )
  for part in (
    "step 7",
    "0.081 nats",
    "1.2,",
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
