"""Monitors of metrics: limits, references, windows, what is said and when."""

import pydantic
import pytest

from distil_jax import config
from distil_jax.config.training import LoggingConfig, MonitorConfig
from distil_jax.training.logging import monitors


def said(values, **settings):
  """Returns the steps at which a monitor says something, and the last text."""
  monitor = monitors.Monitor(MonitorConfig(metric="entropy", **settings))
  texts = {
    step: text
    for step, value in enumerate(values, start=1)
    if (text := monitor.see(step, value))
  }
  return list(texts), next(reversed(texts.values()), "")


@pytest.mark.parametrize(
  ("values", "settings", "steps"),
  [
    ([1, 2, 3], {"above": 2}, [3]),
    ([1, 2, 2], {"above": 2}, []),  # at the limit is within it
    ([3, 2, 1], {"below": 2}, [3]),
    # Once, and again after it has been back.
    ([3, 1, 1, 3, 1], {"below": 2}, [2, 5]),
    ([3, 1, 1, 3, 1], {"below": 2, "action": "stop"}, [2, 3, 5]),
    # The mean of two: 2, 1.5, 1.
    ([3, 1, 2, 0], {"below": 1.6, "window": 2}, [3]),
    ([0], {"below": 1, "window": 2}, []),
    # The first mean stays what others are compared with.
    ([10, 20, 6, 4], {"below": 0.5, "relative_to": "start"}, [4]),
    ([10, 20, 21], {"above": 2, "relative_to": "start"}, [3]),
    ([10, 20, 9], {"below": 0.5, "relative_to": "highest"}, [3]),
    ([10, 20, 11], {"below": 0.5, "relative_to": "highest"}, []),
    ([4, 2, 5], {"above": 2, "relative_to": "lowest"}, [3]),
    ([0, 0, 0], {"below": 0.85, "relative_to": "highest"}, []),
  ],
)
def test_a_metric_is_compared_with_its_limits(values, settings, steps):
  assert said(values, **settings)[0] == steps


def test_a_warning_names_metric_limit_and_reference():
  _, text = said([0.5, 0.6, 0.3], below=0.85, relative_to="highest")
  assert text.startswith(
    "step 3: entropy is 0.3, which is below 0.85 times its highest so far, 0.6 "
    "at step 2"
  )
  _, text = said([2, 4], above=2.5, window=2)
  assert "entropy is 3, the mean of the last 2, which is above 2.5 (" in text


def test_evaluations_have_names_of_their_own():
  watch = monitors.Monitors(LoggingConfig().monitors, accuracy="avg@4")
  assert watch.of_evaluation(0, {"avg@4": 0.6}) == ([], [])
  # A step's metric of the same name is another one.
  assert watch.of_step(1, {"avg@4": 0.1, "completion_length": 9.0}) == ([], [])
  (text,), reasons = watch.of_evaluation(5, {"avg@4": 0.5})
  assert text.startswith("step 5: evaluation/accuracy is 0.5, ")
  assert not reasons


def test_a_metric_that_there_is_not_is_named_once():
  watch = monitors.Monitors(
    [
      MonitorConfig(metric="entrpy", below=1),
      MonitorConfig(metric="evaluation/pass@8", below=1),
      MonitorConfig(metric="reward", below=-1),
    ],
    accuracy="avg@4",
  )
  (text,), _ = watch.of_step(1, {"entropy": 0.0, "reward": 0.0})
  assert "entrpy" in text
  assert "did you mean entropy?" in text
  (text,), _ = watch.of_evaluation(1, {"avg@4": 0.0, "pass@4": 0.0})
  assert "evaluation/pass@8" in text
  assert watch.of_step(2, {"entropy": 0.0}) == ([], [])


def test_a_resumed_run_goes_on_with_what_it_has_seen():
  configs = [
    MonitorConfig(metric="reward", below=0.5, relative_to="start", window=2)
  ]
  rewards = [0.8, 1.0, 0.7, 0.1, 0.3, 0.3]
  whole = monitors.Monitors(configs, accuracy="avg@4")
  expected = [whole.of_step(i, {"reward": x}) for i, x in enumerate(rewards)]
  assert [bool(warnings) for warnings, _ in expected] == [False] * 3 + [
    True
  ] + [False] * 2
  for cut in range(1, len(rewards)):
    resumed = monitors.Monitors(configs, accuracy="avg@4")
    lines = [{"step": i, "reward": x} for i, x in enumerate(rewards[:cut])]
    resumed.replay(lines, [{"step": 0, "avg@4": 0.5}])
    found = [
      resumed.of_step(i, {"reward": x})
      for i, x in enumerate(rewards)
      if i >= cut
    ]
    assert found == expected[cut:]


def test_a_value_that_is_null_in_the_files_is_left_out():
  watch = monitors.Monitors(
    [MonitorConfig(metric="loss", above=1)], accuracy="avg@4"
  )
  watch.replay([{"step": 1, "loss": None}], [])
  (text,), _ = watch.of_step(2, {"loss": 2.0})
  assert "loss is 2" in text


def test_a_monitor_without_limits_is_refused():
  with pytest.raises(pydantic.ValidationError, match="set above, below"):
    MonitorConfig(metric="reward")
  with pytest.raises(config.ConfigError, match=r"logging\.monitors"):
    config.parse({"logging": {"monitors": [{"metric": "reward", "abve": 1}]}})


def test_the_defaults_are_quiet_in_a_healthy_run():
  watch = monitors.Monitors(LoggingConfig().monitors, accuracy="avg@4")
  for step in range(1, 40):
    length = 30 + step / 2
    assert watch.of_step(step, {"completion_length": length}) == ([], [])
