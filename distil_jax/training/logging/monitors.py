"""Watches metrics of a run, and says or stops where one leaves its limits."""

import collections
import difflib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distil_jax.config.training import MonitorConfig

# Metrics of evaluations have this in front, so that they share no name with
# those of steps.
EVALUATION = "evaluation/"
ACCURACY = EVALUATION + "accuracy"
_PAGE = "docs/guides/failing_runs.md"
_REFERENCES = {
  "start": "its first",
  "highest": "its highest so far",
  "lowest": "its lowest so far",
}


class MonitorStop(RuntimeError):
  """The end of a run whose metric has left a limit with `action: stop`."""


class Monitor:
  """Follows one metric.

  Attributes:
    config: the metric and its limits.
  """

  def __init__(self, config: MonitorConfig):
    """Starts without any value."""
    self.config = config
    self._values: collections.deque[float] = collections.deque(
      maxlen=config.window
    )
    # Mean and step.
    self._reference: tuple[float, int] | None = None
    self._is_beyond = False

  def see(self, step: int, value: float) -> str | None:
    """Takes a value; returns what to say of it, or None.

    A warning is returned once, until the metric has been back within its
    limits; a reason to stop each time.
    """
    self._values.append(value)
    if len(self._values) < self.config.window:
      return None
    mean = statistics.fmean(self._values)
    said = self._find_breach(mean)
    text = None
    if said and not (self._is_beyond and self.config.action == "warn"):
      text = f"step {step}: {said} ({_PAGE})"
    self._is_beyond = said is not None
    self._remember(mean, step)
    return text

  def _find_breach(self, mean: float) -> str | None:
    """Returns which limit a mean is beyond, or None."""
    config = self.config
    scale, beside = 1.0, ""
    if config.relative_to is not None:
      if self._reference is None:
        return None
      scale, step = self._reference
      name = _REFERENCES[config.relative_to]
      beside = f" times {name}, {scale:.4g} at step {step}"
    for limit, word, is_beyond in (
      (config.below, "below", lambda bound: mean < bound),
      (config.above, "above", lambda bound: mean > bound),
    ):
      if limit is not None and is_beyond(limit * scale):
        window = config.window
        over = "" if window == 1 else f", the mean of the last {window}"
        return (
          f"{config.metric} is {mean:.4g}{over}, which is {word} {limit:g}"
          f"{beside}"
        )
    return None

  def _remember(self, mean: float, step: int) -> None:
    """Takes a mean as the reference if it is the one."""
    before = self._reference
    kind = self.config.relative_to
    if (
      before is None
      or (kind == "highest" and mean > before[0])
      or (kind == "lowest" and mean < before[0])
    ):
      self._reference = (mean, step)


class Monitors:
  """Follows the metrics of a run that its config names."""

  def __init__(self, configs: Sequence[MonitorConfig], *, accuracy: str):
    """Starts without any value.

    Args:
      configs: of `logging.monitors`.
      accuracy: the name of held-out accuracy in an evaluation.
    """
    self._monitors = [Monitor(config) for config in configs]
    self._accuracy = accuracy
    self._looked_for: set[bool] = set()

  def replay(
    self,
    steps: Iterable[Mapping[str, Any]],
    evaluations: Iterable[Mapping[str, Any]],
  ) -> None:
    """Takes the values that a resumed run has had; says nothing.

    Args:
      steps: lines of `metrics.jsonl`.
      evaluations: lines of `evaluations.jsonl`.
    """
    for line in steps:
      self._see(line["step"], line)
    for line in evaluations:
      self._see(line["step"], self._named(line))

  def of_step(
    self, step: int, metrics: Mapping[str, float]
  ) -> tuple[list[str], list[str]]:
    """Returns warnings, and reasons to stop, of a step's metrics."""
    warnings, reasons = self._see(step, metrics)
    return self._missing(metrics, is_evaluation=False) + warnings, reasons

  def of_evaluation(
    self, step: int, values: Mapping[str, float]
  ) -> tuple[list[str], list[str]]:
    """Returns warnings, and reasons to stop, of an evaluation."""
    named = self._named(values)
    warnings, reasons = self._see(step, named)
    return self._missing(named, is_evaluation=True) + warnings, reasons

  def _named(self, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of an evaluation by the names of their monitors."""
    named = {EVALUATION + name: value for name, value in values.items()}
    if self._accuracy in values:
      named[ACCURACY] = values[self._accuracy]
    return named

  def _see(
    self, step: int, values: Mapping[str, Any]
  ) -> tuple[list[str], list[str]]:
    said = {"warn": [], "stop": []}
    for monitor in self._monitors:
      value = values.get(monitor.config.metric)
      # A number that is not finite is null in the files, and tells no trend.
      if value is None or not math.isfinite(value):
        continue
      if text := monitor.see(step, float(value)):
        said[monitor.config.action].append(text)
    return said["warn"], said["stop"]

  def _missing(
    self, values: Mapping[str, Any], *, is_evaluation: bool
  ) -> list[str]:
    """Returns a warning for each metric that the first look does not find."""
    if is_evaluation in self._looked_for:
      return []
    self._looked_for.add(is_evaluation)
    found = []
    for monitor in self._monitors:
      name = monitor.config.metric
      if name.startswith(EVALUATION) == is_evaluation and name not in values:
        near = difflib.get_close_matches(name, values, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        found.append(
          f"logging.monitors watches {name}, which the first "
          f"{'evaluation' if is_evaluation else 'step'} does not have{guess}"
        )
    return found
