"""The training loop."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.config.schema import Config
from distil_jax.data import problem_stream, training_stream
from distil_jax.data import problems as data_problems
from distil_jax.distributed import process_group, signals
from distil_jax.envs.base import Environment
from distil_jax.models import decoder
from distil_jax.training import (
  evaluation,
  recorded_steps,
  resume,
  run_checks,
  run_lock,
  skipped_updates,
  teacher_guard,
  train_state,
  watchdog,
)
from distil_jax.training.logging import step_metrics
from distil_jax.training.logging.progress import Progress
from distil_jax.training.logging.reporter import Reporter, build_progress
from distil_jax.training.logging.run_clock import RunClock
from distil_jax.training.rollouts import refill
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.setup import (
  compilation_cache,
  environments,
  meshes,
  policies,
  preflight,
  run_length,
  teacher_models,
  train_steps,
  workers,
)
from distil_jax.training.setup import steps as setup_step
from distil_jax.training.step_result import OnStep, StepResult
from distil_jax.types import BatchStats, TrainBatch

# Folded into the run's key, so that evaluation and the guard draw other noise
# than training step 0, 1, ... does. (`train_step` has one more such number.)
_EVALUATION = 2**31
_GUARD = 2**31 + 1


class Trainer:
  """Trains one run: `Trainer(config).train()`, once."""

  # These exist while `train` is under way.
  state: train_state.TrainState
  stream: problem_stream.ProblemStream[Any]
  on_step: OnStep | None = None  # called after each step

  def __init__(self, config: Config, environment: Environment | None = None):
    """Builds the parts of the run; writes nothing but a model it creates.

    An environment that is given replaces the one that the config names.

    Raises:
      ConfigError: a setting does not suit the data, the model or the devices.
      DataError: a data file is missing or malformed.
    """
    self.config = config = resume.with_settings_of_run(config)
    compilation_cache.enable(config.compilation)
    self.environment = environment or environments.build_environment(config)
    self.mesh = meshes.build_mesh(config)
    # Missing or malformed data ends the run before anything is written.
    problems = data_problems.load_problems(config, self.environment)
    run_checks.check_same_data(config, problems)
    with jax.set_mesh(self.mesh):  # how prompts are split depends on the mesh
      self.policy = policies.build_policy(
        config, self.environment, problems, self.mesh
      )
      self.teacher_model = teacher_models.build_teacher_model(
        config, self.policy, self.mesh
      )
      self.build_batch = setup_step.build_batch_builder(
        config, self.policy, self.teacher_model, self.environment
      )
    self.data = data_problems.build_data(
      config, self.environment, problems, self.policy.tokenizer
    )
    built = workers.build_worker_set(
      config, self.environment, self.policy, self.mesh
    )
    self.rollout_worker, self.evaluation_workers, self.teacher_probe = built
    self.refill = workers.build_refill(config, self.build_batch.teacher)
    self.num_steps = run_length.find_num_steps(config, self.data)
    self.optimizer, self.schedule = setup_step.build_optimizer(
      config, self.policy.params, self.num_steps
    )
    self.key = jax.random.key(config.train.seed)

  def train(self) -> dict[str, Any]:
    """Trains from the last checkpoint, if there is one, to the last step.

    Returns:
      The summary, as it stands in `summary.json`; empty in all processes but
      the one that writes.

    Raises:
      ConfigError: the checkpoint was made with other settings, or the run
        folder cannot be made.
      TrainingError: loss or gradient are not finite again and again.
      TeacherServerError: the teacher's server does not answer any more.
      ProcessError: the processes do not write to the same folder.
      Stopped: one of several processes was asked to stop; the finished steps
        are saved. A process that is alone raises KeyboardInterrupt.
    """
    config = self.config
    preflight.check_before_writing(config, self.data, self.build_batch.ask)
    with self._opened():
      self._start()
      try:
        for step in range(int(self.state.step), self.num_steps):
          problems = next(self.stream, None)
          if problems is None:
            self.progress.message(f"step {step}: all epochs are done")
            break
          self._make_step(step, problems)
          if config.evaluation.is_due(step + 1):
            self._evaluate_and_report(step + 1)
          if (step + 1) % config.checkpoint.every == 0:
            self._save()
          process_group.check()
      except BaseException as error:
        resume.save_interrupted(
          config,
          self.saved,
          self.state,
          self._notes,
          self.progress,
          error,
          self.teacher_model,
        )
        raise
      return self._finish()

  def _make_step(self, step: int, problems: Sequence[Any]) -> None:
    """Samples, learns and reports."""
    with self.watchdog.watch(step + 1), self.clock.each_step(step + 1) as times:
      with times.phase("rollout"):
        experience = self.sample_and_judge(step, problems, self.stream.draw)
      with times.phase("batch"):
        batch, stats = self.build_batch(problems, experience, step)
        guard = self.probe_teacher(step, experience, batch, stats)
        self.reporter.before_update(step + 1, self._step_fn, self.state, batch)
      # An interrupt in between would leave a step without its report.
      with signals.deferred():
        with times.phase("update"):
          metrics = self.update(step, batch, guard)
        times.stop()
        self.stream.keep()
        self.report(step, metrics, experience, batch, stats)

  def sample_and_judge(
    self,
    step: int,
    problems: Sequence[Any],
    draw: refill.DrawFn | None = None,
  ) -> Experience | None:
    """Samples completions and judges them; None for demonstrations.

    With `draw` groups without signal are replaced, see `refill.Refill`.
    """
    if not self.config.objective.uses_rollouts:
      return None
    return refill.sample_step(
      self.rollout_worker,
      self.state.student_params,
      problems,
      jax.random.fold_in(jax.random.wrap_key_data(self.state.key), step),
      make_report=lambda: process_group.checked(
        self.progress.sampling(self.config.num_sequences)
      ),
      limit_fn=functools.partial(workers.completion_limits, self.config),
      refill=draw and self.refill,
      draw=draw,
    )

  def probe_teacher(
    self,
    step: int,
    experience: Experience | None,
    batch: TrainBatch,
    stats: BatchStats,
  ) -> teacher_guard.GuardState | None:
    """Returns the guard's state after a look at the teacher.

    None means that no look is due, or that nothing guards the teacher.
    """
    guard, probe = self.config.teacher.guard, self.teacher_probe
    if guard is None or probe is None or self._guard_fn is None:
      return None
    if experience is None or step % guard.every:
      return None
    key = jax.random.fold_in(jax.random.wrap_key_data(self.state.key), _GUARD)
    counts = probe(
      self.state.whole(self.state.teacher_params),
      experience,
      batch,
      stats,
      jax.random.fold_in(key, step),
    )
    after = self._guard_fn(self.state.guard, *counts)
    self.reporter.guard(step + 1, self.state.guard, after)
    return after

  def update(
    self, step: int, batch: TrainBatch, guard: teacher_guard.GuardState | None
  ) -> dict[str, float]:
    """Makes one training step; sets `state` and returns the step's metrics.

    Args:
      step: the training steps done before.
      batch: this process's part of the batch, on the host.
      guard: the guard's new state; None keeps the old one.

    Raises:
      TrainingError: too many updates in a row are not finite.
    """
    before = self.state.guard
    if guard is not None:
      self.state = dataclasses.replace(self.state, guard=guard)
    self.state, values = self._step_fn(self.state, batch)
    metrics = {name: float(x) for name, x in values.items()}
    # The devices leave a state as it is, if its update is not finite.
    is_failed = int(self.state.step) == step
    path = recorded_steps.save_if_asked(
      self.config, step + 1, batch, self.state.guard, metrics, is_failed
    )
    if path is None or not is_failed:
      self.skipped.passed()
    else:
      state = self.state
      # If the run ends here the step will be repeated, and so will the look.
      self.state = dataclasses.replace(state, guard=before)
      self.progress.message(self.skipped.failed(step + 1, metrics, path))
      self.state = skipped_updates.with_step_done(state)
    return metrics | self.skipped.metrics()

  def report(
    self,
    step: int,
    metrics: dict[str, float],
    experience: Experience | None,
    batch: TrainBatch,
    stats: BatchStats,
  ) -> None:
    """Reports the metrics of a step and now and then samples to read."""
    # A constant schedule returns a Python float; the update sees float32.
    metrics["learning_rate"] = float(jnp.asarray(self.schedule(step)))
    metrics |= step_metrics.batch_metrics(
      experience, batch, stats, self.state.guard, self.config.num_sequences
    )
    metrics |= self.clock.step_metrics(
      self._step_fn.work,
      num_tokens=metrics["completion_length"] * self.config.num_sequences,
      judging_seconds=metrics.get("time/judging_seconds"),
    )
    self.reporter.step(step + 1, metrics, experience, stats)
    if self.on_step is not None:
      self.on_step(StepResult(step + 1, metrics, experience))

  def evaluate(
    self, params: decoder.Params, progress: Progress, text: str
  ) -> dict[str, float]:
    """Returns `evaluation.evaluate_data_sets` of a policy.

    Every call draws the same noise, so that two policies can be compared.

    Args:
      params: the policy's parameters.
      progress: shows how many problems are done.
      text: what the progress line says.
    """
    return evaluation.evaluate_data_sets(
      self.config,
      self.evaluation_workers,
      params,
      self.data.evaluation,
      jax.random.fold_in(self.key, _EVALUATION),
      progress=progress,
      text=text,
    )

  @contextlib.contextmanager
  def _opened(self) -> Iterator[None]:
    """Opens progress line, reports and checkpoints for the time of a run."""
    config = self.config
    is_writer = jax.process_index() == 0
    self.progress = build_progress(config, is_shown=is_writer)
    self.reporter = Reporter(config, self.progress, is_writer=is_writer)
    self.watchdog = watchdog.Watchdog(self.progress.message)
    self.clock = RunClock(config.profile, config.run_directory / "profile")
    with (
      self.progress,
      run_lock.held(config.run_directory),
      resume.open_folder(config, self.reporter.accuracies) as self.saved,
      process_group.stopping_together(),
      jax.set_mesh(self.mesh),
      contextlib.closing(self.reporter),
      contextlib.closing(self.clock),
    ):
      yield

  def _start(self) -> None:
    """Makes or restores state and stream; evaluates the base model."""
    config = self.config
    latest = resume.check_resumable(config, self.saved, self.teacher_model)
    before = resume.RunNotes()
    params, optimizer, base_values = self.policy.params, self.optimizer, None
    template = setup_step.build_state_template(
      config, params, optimizer, self.mesh
    )
    self._step_fn = train_steps.build_host_step(
      config, self.policy, optimizer, template, self.teacher_model
    )
    self._guard_fn = setup_step.compile_guard(config, self.mesh)
    if latest is None:
      self.state = setup_step.build_first_state(
        config, params, optimizer, template
      )
      self._release_params()
    else:
      if not self.reporter.is_evaluated(0):
        # The summary needs it, and only now are the parameters at hand.
        with self.clock.lost("evaluation"):
          base_values = self.evaluate(params, self.progress, evaluation.BASE)
      base, params = setup_step.split_params(config, params)[0], None
      self._release_params()
      with self.clock.lost("restore"):
        self.state, before = resume.resume_state(
          config, self.saved, template, self.progress, base, self.teacher_model
        )
      self.clock.resumed(before.seconds_by_cause)
      latest = int(self.state.step)
    self._step_fn.trimmer.widths = dict(before.prompt_widths)
    self.skipped = skipped_updates.SkippedUpdates(
      config.train.max_skipped_updates, *before.skipped
    )
    self.stream = training_stream.build_stream(
      config, self.data, before.position
    )
    self.reporter.start(latest, self.data, self.policy.tokenizer.end_texts)
    run_length.say(config, self.data, self.progress.message)
    if latest is None:
      self._evaluate_and_report(0)
    elif base_values:
      self.reporter.evaluation(0, base_values, is_shown=False)
    if (
      latest
      and config.evaluation.is_due(latest)
      and not self.reporter.is_evaluated(latest)
    ):
      # The run was interrupted between this step and its evaluation.
      self._evaluate_and_report(latest)

  def _release_params(self) -> None:
    """Drops the base model's parameters, once the state has its own."""
    self.policy = dataclasses.replace(self.policy, params={})

  def _evaluate_and_report(self, step: int) -> None:
    text = "evaluating" if step else evaluation.BASE
    with self.clock.lost("evaluation"):
      values = self.evaluate(self.state.student_params, self.progress, text)
    self.reporter.evaluation(step, values)

  def _save(self) -> None:
    with self.clock.lost("checkpoint"):
      resume.save_state(
        self.config, self.saved, self.state, self._notes, self.teacher_model
      )

  @property
  def _notes(self) -> resume.RunNotes:
    """Returns what a checkpoint says beside state and settings."""
    widths, seconds = self._step_fn.trimmer.widths, self.clock.seconds
    total, position = sum(seconds.values()), self.stream.position
    return resume.RunNotes(
      total, position, widths, seconds, self.skipped.counts
    )

  def _finish(self) -> dict[str, Any]:
    """Saves and evaluates the last step; returns the summary."""
    step = int(self.state.step)
    self._save()
    if not self.reporter.is_evaluated(step):
      self._evaluate_and_report(step)
    return self.reporter.finish(step, self._notes.seconds, self.clock)
