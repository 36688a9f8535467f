"""Tells a person and the run folder what a run does."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import yaml

from distil_jax.config.schema import Config
from distil_jax.data.problems import Data
from distil_jax.distributed import collectives
from distil_jax.training import retention, run_checks
from distil_jax.training.host_step import HostStep
from distil_jax.training.logging import (
  monitors,
  plots,
  run_clock,
  run_folder,
  step_metrics,
  step_warnings,
  trackers,
)
from distil_jax.training.logging.progress import Progress
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.teacher_guard import GuardState
from distil_jax.types import BatchStats, TrainBatch


def build_progress(config: Config, *, is_shown: bool) -> Progress:
  """Returns the line on the screen of a run.

  Args:
    config: the run's settings.
    is_shown: true in one process only.
  """
  return Progress(
    config.train.num_steps, is_shown=is_shown, is_quiet=config.logging.quiet
  )


class Reporter:
  """Writes the run folder and the lines on the screen.

  Every process holds one and makes the same calls; only the writer's have an
  effect on the disk.
  """

  def __init__(self, config: Config, progress: Progress, *, is_writer: bool):
    """Remembers where to report; nothing is written yet.

    Args:
      config: the run's settings.
      progress: the line on the screen.
      is_writer: true in one process only.
    """
    self._config = config
    self._progress = progress
    self._folder = run_folder.RunFolder(
      config.run_directory,
      is_writer=is_writer,
      tensorboard=config.logging.tensorboard,
    )
    self._trackers = trackers.Trackers(config, is_writer=is_writer)
    self._step_warnings = step_warnings.StepWarnings(
      max_completion_length=config.rollout.max_completion_length,
      needs_teacher=config.objective.needs_teacher,
      compares_group=bool(config.objective.group_settings),
    )
    # Of the tokens of the samples on the next page.
    self._tokens: list[dict[str, list[Any]]] = []
    self._mismatch = step_metrics.MismatchWatch(config.logging.mismatch_limit)
    self._monitors = monitors.Monitors(
      config.logging.monitors,
      accuracy=f"avg@{config.evaluation.num_samples}",
    )

  def start(
    self, resume_step: int | None, data: Data, end_tokens: Sequence[str] = ()
  ) -> None:
    """Makes the run folder, or takes it back to the step that is resumed.

    Args:
      resume_step: the checkpoint's step; None for a new run.
      data: its skipped rows and dropped prompts are reported.
      end_tokens: the texts of the tokens that end a completion.
    """
    self._step_warnings.end_tokens = end_tokens
    self._folder.start(
      yaml.safe_dump(self._config.model_dump(mode="json"), sort_keys=False),
      resume_step,
      device_kind=jax.devices()[0].device_kind,
      num_devices=jax.device_count(),
    )
    self._trackers.start()
    if jax.process_index() == 0:
      self._monitors.replay(
        self._folder.step_metrics(), self._folder.evaluations()
      )
    is_sampled = self._config.objective.uses_rollouts
    long_row = "long prompt" if is_sampled else "long row"
    for count, noun, participle in (
      (data.num_skipped, "malformed row", "skipped"),
      (data.num_dropped, long_row, "dropped"),
    ):
      if count:
        plural = "" if count == 1 else "s"
        self._progress.message(f"{count} {noun}{plural} {participle}")
    for warning in run_checks.warnings(self._config):
      self._progress.warning(warning)

  def step(
    self,
    step: int,
    metrics: Mapping[str, float],
    experience: Experience | None = None,
    stats: BatchStats | None = None,
  ) -> None:
    """Reports a step's metrics; warns of what is not as it should be.

    Args:
      step: the training step, counted from 1.
      metrics: numbers by name.
      experience: samples to read now and then, if there are any.
      stats: how the step's batch came about.

    Raises:
      MonitorStop: a metric is beyond a limit that stops the run.
    """
    is_logged = step % self._config.logging.every == 0
    if is_logged:
      self._folder.metrics(step, metrics)
      self._trackers.log(step, metrics)
    if experience is not None and stats is not None:
      self._rollouts(step, experience, stats)
    self._progress.step(step, metrics)
    if warning := self._mismatch.warning(step, metrics):
      self._progress.warning(warning)
    for warning in self._step_warnings.of_step(step, metrics):
      self._progress.warning(warning)
    if is_logged:  # as a resumed run reads them
      self._act(*self._monitors.of_step(step, metrics))

  def _rollouts(
    self, step: int, experience: Experience, stats: BatchStats
  ) -> None:
    """Writes samples of the first step and of every `rollouts_every`th."""
    if self._has_page(step):
      samples = step_metrics.samples(
        experience, stats, self._config.logging.num_rollouts, self._tokens
      )
      self._folder.rollouts(step, samples)
      self._trackers.samples(step, samples)

  def before_update(
    self, step: int, step_fn: HostStep, state: Any, batch: TrainBatch
  ) -> None:
    """Finds values of tokens for the page of a step, if it has one.

    Args:
      step: the training step, counted from 1.
      step_fn: makes the step.
      state: before the step, whose update donates it.
      batch: this process's rows, on the host.
    """
    if self._has_page(step):
      rows = step_metrics.page_rows(
        len(batch.completion_ids), self._config.logging.num_rollouts
      )
      self._tokens = step_fn.token_values(state, batch, rows)

  def _has_page(self, step: int) -> bool:
    every = self._config.logging.rollouts_every
    return bool(every) and (step == 1 or step % every == 0)

  def guard(self, step: int, before: GuardState, after: GuardState) -> None:
    """Says if the guard has begun to hold the teacher, or has let it go."""
    was_holding = bool(before.is_holding)
    if bool(after.is_holding) == was_holding:
      return
    guard = self._config.teacher.guard
    action = "follows again" if was_holding or guard is None else guard.action
    self._progress.message(
      f"step {step}: the teacher's accuracy with feedback is "
      f"{100 * float(after.accuracy):.1f} %, at the start "
      f"{100 * float(after.start):.1f} %: {action}"
    )

  def evaluation(
    self, step: int, values: Mapping[str, float], *, is_shown: bool = True
  ) -> None:
    """Writes an evaluation and, if it is to be shown, says the accuracy.

    Raises:
      MonitorStop: a number is beyond a limit that stops the run.
    """
    self._folder.evaluation(step, values)
    self._trackers.log(step, values, prefix="evaluation/")
    if is_shown:
      accuracy = f"avg@{self._config.evaluation.num_samples}"
      parts = [
        f"{name.replace('/', ' ')} {100 * value:.1f} %"
        for name, value in values.items()
        if "/avg@" in name
      ]
      self._progress.message(
        f"step {step}: held-out {accuracy} {100 * values[accuracy]:.1f} %"
        + (f" ({', '.join(parts)})" if parts else "")
      )
    self._act(*self._monitors.of_evaluation(step, values))

  def _act(self, warnings: Sequence[str], reasons: Sequence[str]) -> None:
    """Shows what monitors say; raises MonitorStop if there is a reason."""
    for warning in warnings:
      self._progress.warning(warning)
    watches = self._config.logging.monitors
    if not any(monitor.action == "stop" for monitor in watches):
      return
    # Metrics are the same everywhere, but only the writer surely has those from
    # before a resume. All processes must stop, or none.
    is_due = float(jax.process_index() == 0 and bool(reasons))
    if collectives.global_sums({"stop": is_due})["stop"] > 0:
      raise monitors.MonitorStop(
        "; ".join(reasons) or "a monitor stops the run, see its first process"
      )

  def is_evaluated(self, step: int) -> bool:
    """Returns True if the run folder has an evaluation of the step.

    All processes go by what the writer finds.
    """
    # Only the writer surely sees its files, and all must evaluate or none.
    is_found = jax.process_index() == 0 and any(
      line["step"] == step for line in self._folder.evaluations()
    )
    return collectives.global_sums({"found": float(is_found)})["found"] > 0

  def accuracies(self) -> dict[int, float]:
    """Returns the held-out accuracy of each step that is evaluated.

    All processes go by what the writer finds.
    """
    is_writer = jax.process_index() == 0
    found = (
      retention.read_accuracies(self._folder.directory) if is_writer else {}
    )
    sums = collectives.global_sums({str(k): x for k, x in found.items()})
    return {int(step): accuracy for step, accuracy in sums.items()}

  def finish(
    self, step: int, seconds: float, clock: run_clock.RunClock
  ) -> dict[str, Any]:
    """Writes the summary and the plot, and says where the time went.

    Args:
      step: the last step; it and the base model are evaluated.
      seconds: time that the whole run has taken.
      clock: knows what the time was spent on.

    Returns:
      The summary; empty in all processes but the writer.
    """
    if jax.process_index() != 0:
      return {}
    lines = {line.pop("step"): line for line in self._folder.evaluations()}
    uses_rollouts = self._config.objective.uses_rollouts
    summary = {
      "before": lines[0],
      "after": lines[step],
      "steps": step,
      "rollouts": step * self._config.num_sequences if uses_rollouts else 0,
      "seconds": round(seconds, 1),
      "seconds_by_cause": {k: round(x, 1) for k, x in clock.seconds.items()},
    }
    self._folder.summary(summary)
    plots.plot(self._folder.directory)
    self._progress.message(run_clock.sentence(clock.seconds, clock.compiled))
    return summary

  def close(self) -> None:
    """Ends the writing; a second call does nothing."""
    self._folder.close()
    self._trackers.close()
