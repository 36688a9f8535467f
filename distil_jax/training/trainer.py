"""The training loop."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.config import Config, ConfigError
from distil_jax.data import problems as data_problems
from distil_jax.distributed import collectives, process_group, signals
from distil_jax.models import decoder, sharding
from distil_jax.training import (
  batch_builder,
  checkpoints,
  evaluation,
  run_checks,
  teacher_guard,
  train_state,
)
from distil_jax.training.logging import plots, run_folder, step_metrics
from distil_jax.training.logging.progress import Progress
from distil_jax.training.rollouts.experience import Experience
from distil_jax.training.setup import environments, meshes, policies, workers
from distil_jax.training.setup import steps as setup_step

# Folded into the run's key, to keep the noise of evaluation and of the guard
# apart from that of training step 0, 1, ... (`update` has one more.)
_EVALUATION = 2**31
_GUARD = 2**31 + 1
_BASE_TEXT = "evaluating the base model"


class TrainingError(RuntimeError):
  """A run that cannot go on; what is good has been saved."""


class Trainer:
  """One run: `Learner(config).train()`, once."""

  def __init__(self, config: Config):
    self.config = config
    self.environment = environments.build_environment(config)
    self.mesh = meshes.build_mesh(config)
    # Read before anything is written: what is missing or malformed ends here.
    problems = data_problems.problems(config, self.environment)
    run_checks.check_same_data(config, problems)
    with jax.set_mesh(self.mesh):
      self.policy = policies.build_policy(
        config, self.environment, problems, self.mesh
      )
    self.data = data_problems.data(
      config, self.environment, problems, self.policy.tokenizer
    )
    # Without parameters, which would outlive `release_params` in the actors.
    bare = dataclasses.replace(self.policy, params={})
    judges = workers.build_judge_pool(config, self.environment)
    parts = (config, bare, judges, self.mesh)
    tooling = workers.build_tool_pool(config, bare)
    self.actor = workers.add_self_critique(
      *parts,
      actor=workers.build_rollout_worker(*parts, tooling),
      environment=self.environment,
    )
    self.evaluation_actor = workers.build_evaluation_worker(*parts, tooling)
    if getattr(self.environment, "is_rewarded_by_critique", False):
      self.evaluation_actor = workers.add_self_critique(
        *parts, actor=self.evaluation_actor, environment=self.environment
      )
    self.inspector = workers.build_teacher_probe(*parts)
    self.optimizer, self.schedule = setup_step.build_optimizer(config)
    self.key = jax.random.key(config.train.seed)

  def train(self) -> dict[str, Any]:
    """Trains, evaluates, reports; goes on from the last checkpoint.

    Returns:
      the summary, as it stands in `summary.json`.

    Raises:
      ConfigError: the checkpoint there is was made with other settings, or
        the run folder cannot be made.
      TrainingError: loss or gradient are not finite.
      ProcessError: the processes do not write to the same folder.
      Stopped: one of several processes was asked to stop; what is finished is
        saved. One that is alone raises KeyboardInterrupt.
    """
    config = self.config
    run_checks.check_place(
      "train.run_directory", config.run_directory, "checkpoints"
    )
    # Too few problems end the run here, before anything is written.
    data_problems.batches(config, self.data)
    run_checks.check_shared(config)
    is_writer = jax.process_index() == 0
    folder = run_folder.RunFolder(
      config.run_directory,
      is_writer=is_writer,
      tensorboard=config.logging.tensorboard,
    )
    progress = Progress(config.train.num_steps, is_shown=is_writer)
    saved = checkpoints.Checkpoints(
      config.run_directory / "checkpoints", keep=config.checkpoint.keep
    )
    together = process_group.stopping_together()
    with progress, saved, together, jax.set_mesh(self.mesh):
      run = _Run(self, folder, progress, saved)
      try:
        return run.train()
      finally:
        folder.close()

  def evaluate(self, params: decoder.Params, progress: Progress, text: str):
    """Held-out accuracy; the same noise on every call."""
    config = self.config
    with progress.stage(text, len(self.data.evaluation)) as report:
      return evaluation.evaluate(
        self.evaluation_actor,
        params,
        self.data.evaluation,
        jax.random.fold_in(self.key, _EVALUATION),
        num_problems=config.evaluation.num_problems,
        pass_at=config.evaluation.pass_at,
        success_threshold=config.teacher.success_threshold,
        report=process_group.checked(report),
      )

  def state_template(self) -> train_state.TrainState:
    """Shapes, types and shardings of the state; holds no memory."""
    shapes = jax.eval_shape(self._init, self.policy.params)
    places = train_state.state_shardings(shapes, self.mesh, self.optimizer)
    return jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      shapes,
      places,
    )

  def init_state(self) -> train_state.TrainState:
    """The state before the first step; takes over the policy's parameters."""
    places = jax.tree.map(lambda x: x.sharding, self.state_template())
    init = jax.jit(self._init, out_shardings=places, donate_argnums=0)
    state = init(self.policy.params)
    self.release_params()
    return state

  def release_params(self) -> None:
    """Lets go of the base model's parameters, once the state has its own."""
    self.policy = dataclasses.replace(self.policy, params={})

  def _init(self, params: decoder.Params) -> train_state.TrainState:
    return setup_step.build_train_state(self.config, params, self.optimizer)

  def trained_params(self) -> tuple[int, decoder.Params]:
    """The step and the parameters of the run's last checkpoint.

    Before the first checkpoint these are step 0 and the base model.
    """
    directory = self.config.run_directory / "checkpoints"
    step, params = checkpoints.last_params(directory, self.policy.params)
    return step or 0, params


class _Run:
  """The parts of a run that is under way."""

  def __init__(
    self,
    learner: Trainer,
    folder: run_folder.RunFolder,
    progress: Progress,
    saved: checkpoints.Checkpoints,
  ):
    self.learner = learner
    self.config = learner.config
    self.folder = folder
    self.progress = progress
    self.saved = saved
    self.started = time.monotonic()
    limit = learner.config.logging.mismatch_limit
    self.mismatch = step_metrics.MismatchWatch(limit)

  def train(self) -> dict[str, Any]:
    """Reads like the algorithm: sample, judge, teach, update."""
    self.start()
    try:
      self.steps()
    except KeyboardInterrupt:
      self.save_finished()
      raise
    return self.finish()

  def steps(self) -> None:
    """All steps that are left."""
    config, learner = self.config, self.learner
    for step in range(int(self.state.step), config.train.num_steps):
      items = next(self.batches, None)
      if items is None:
        self.progress.message(
          f"data.num_epochs={config.data.num_epochs} end after {step} steps"
        )
        break
      clock = [time.monotonic()]
      if not config.objective.uses_rollouts:
        experience = None
        lesson = batch_builder.from_demonstrations(
          items,
          learner.policy.tokenizer,
          max_prompt_length=config.rollout.max_prompt_length,
          max_completion_length=config.rollout.max_completion_length,
        )
      else:
        key = jax.random.fold_in(jax.random.wrap_key_data(self.state.key), step)
        experience = learner.actor(
          self.state.params,
          items,
          key,
          report=process_group.checked(
            self.progress.sampling(config.num_sequences)
          ),
        )
        clock.append(time.monotonic())
        lesson = self.teach(experience)
      guarded = self.look_at_teacher(step, experience, lesson)
      batch = sharding.put_batch(learner.mesh, lesson.batch)
      # State and report belong together.
      with signals.held_back():
        before = self.state.guard
        if guarded is not None:
          self.state = dataclasses.replace(self.state, guard=guarded)
        self.state, metrics = self.step_fn(self.state, batch)
        metrics = {name: float(x) for name, x in metrics.items()}
        clock.append(time.monotonic())
        if guarded is not None and int(self.state.step) == step:
          # The step failed: so must the look be taken again.
          self.state = dataclasses.replace(self.state, guard=before)
        self.check(step, metrics)
        self.report(step + 1, metrics, experience, lesson, clock)
      if self.evaluation_is_due(step + 1):
        self.evaluate(step + 1)
      if (step + 1) % config.checkpoint.every == 0:
        self.save()
      process_group.check()

  def teach(self, experience: Experience) -> batch_builder.Lesson:
    if self.teacher is None:
      return batch_builder.from_rewards(experience)
    tokenizer = self.learner.policy.tokenizer
    return batch_builder.from_experience(experience, tokenizer, self.teacher)

  def look_at_teacher(
    self,
    step: int,
    experience: Experience | None,
    lesson: batch_builder.Lesson,
  ) -> teacher_guard.GuardState | None:
    """What the guard knows after a look; None where none is due."""
    settings, inspect = self.config.teacher.guard, self.learner.inspector
    if settings is None or inspect is None or step % settings.every:
      return None
    if experience is None:
      return None
    key = jax.random.fold_in(jax.random.wrap_key_data(self.state.key), _GUARD)
    counts = inspect(
      self.state.teacher_params,
      experience,
      lesson,
      jax.random.fold_in(key, step),
    )
    was_holding = bool(self.state.guard.is_holding)
    after = self.guard_fn(self.state.guard, *counts)
    if bool(after.is_holding) != was_holding:
      what = "follows again" if was_holding else settings.action
      self.progress.message(
        f"step {step + 1}: the teacher's accuracy with feedback is "
        f"{100 * float(after.accuracy):.1f} %, at the start "
        f"{100 * float(after.start):.1f} %: {what}"
      )
    return after

  def start(self) -> None:
    """Initial or restored state; the evaluation before the first step."""
    config, learner = self.config, self.learner
    latest = self.saved.latest_step
    if latest is not None:
      self.check_resumable(latest)
    self.teacher = setup_step.build_teacher_settings(config)
    self.seconds_before = 0.0
    template = learner.state_template()
    self.step_fn = jax.jit(
      setup_step.build_train_step(config, learner.policy, learner.optimizer),
      donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, template), None),
    )
    if config.teacher.guard is not None:
      self.guard_fn = jax.jit(
        functools.partial(
          teacher_guard.look, margin=config.teacher.guard.margin
        ),
        out_shardings=sharding.sharding(learner.mesh),
      )
    base_values = None
    if latest is None:
      self.state = learner.init_state()
    else:
      base_values = self.lost_base_evaluation()
      self.resume(latest, template)
    self.batches = data_problems.batches(
      config, learner.data, start=latest or 0
    )
    device = jax.devices()[0]
    self.folder.start(
      run_checks.dump(config),
      latest,
      device_kind=device.device_kind,
      num_devices=jax.device_count(),
    )
    for count, what, done in (
      (learner.data.num_skipped, "malformed row", "skipped"),
      (learner.data.num_dropped, "long prompt", "dropped"),
    ):
      if count:
        ending = "" if count == 1 else "s"
        self.progress.message(f"{count} {what}{ending} {done}")
    for warning in run_checks.warnings(config):
      self.progress.message(warning)
    if latest is None:
      self.evaluate(0)
    elif base_values:
      self.folder.evaluation(0, base_values)
    if (
      latest
      and self.evaluation_is_due(latest)
      and not self.is_evaluated(latest)
    ):
      self.evaluate(latest)  # what interrupted the run came before it

  def lost_base_evaluation(self) -> dict[str, float] | None:
    """Of the base model, where the run folder has none: the summary needs it.

    Only now, when resuming, are the base model's parameters still at hand.
    """
    if self.is_evaluated(0):
      return None
    params = self.learner.policy.params
    return self.learner.evaluate(params, self.progress, _BASE_TEXT)

  def check_resumable(self, step: int) -> None:
    """Refuses a checkpoint that this run must not go on from."""
    config = self.config
    if not config.checkpoint.resume:
      raise ConfigError(
        f"{config.run_directory} has a checkpoint of step {step}, but "
        "checkpoint.resume=false; set another train.run_directory, or remove "
        "it"
      )
    run_checks.check_same(self.saved.notes(step)["config"], config, step)

  def resume(self, step: int, template: train_state.TrainState) -> None:
    """Takes the state from a checkpoint; its step is the place in the data."""
    self.seconds_before = self.saved.notes(step)["seconds"]
    self.learner.release_params()
    with self.progress.stage("restoring"):
      restored = self.saved.restore(step, _as_dict(template))
    self.state = train_state.TrainState(**restored)
    num_steps = self.config.train.num_steps
    self.progress.message(
      f"going on from step {step}"
      if step < num_steps
      else f"step {step} of {num_steps} is done: raise train.num_steps to go on"
    )

  def check(self, step: int, metrics: Mapping[str, float]) -> None:
    """Stops a run whose numbers have failed, after saving what is good."""
    loss, norm = metrics["loss"], metrics["gradient_norm"]
    if jnp.isfinite(loss) and jnp.isfinite(norm):
      return
    self.save()
    self.saved.wait()
    raise TrainingError(
      f"step {step + 1}: loss {loss}, gradient norm {norm}; the state before "
      f"this step is saved in {self.config.run_directory}/checkpoints"
    )

  def report(
    self,
    step: int,
    metrics: dict[str, float],
    experience: Experience | None,
    lesson: batch_builder.Lesson,
    clock: list[float],
  ) -> None:
    """Metrics to file and screen, and now and then samples to read."""
    metrics["learning_rate"] = float(
      jnp.asarray(self.learner.schedule(step - 1))
    )
    if experience is not None:
      metrics |= step_metrics.experience_metrics(experience, lesson)
      metrics |= step_metrics.critique_metrics(experience)
      metrics |= step_metrics.guard_metrics(self.state.guard)
    else:
      masks = lesson.batch.completion_mask
      num_tokens = collectives.global_sums({"tokens": float(masks.sum())})
      metrics["completion_length"] = (
        num_tokens["tokens"] / self.config.num_sequences
      )
    tokens = metrics["completion_length"] * self.config.num_sequences
    metrics["time/step_seconds"] = clock[-1] - clock[0]
    if experience is not None:
      metrics["time/rollout_seconds"] = clock[1] - clock[0]
      metrics["time/update_seconds"] = clock[2] - clock[1]
    metrics["time/tokens_per_second"] = tokens / (clock[-1] - clock[0])
    logging = self.config.logging
    if step % logging.every == 0:
      self.folder.metrics(step, metrics)
    self.progress.step(step, metrics)
    if warning := self.mismatch.warning(step, metrics):
      self.progress.message(warning)
    every = logging.rollouts_every
    if experience is not None and every and (step == 1 or step % every == 0):
      samples = step_metrics.samples(experience, lesson, logging.num_rollouts)
      self.folder.rollouts(step, samples)

  def evaluation_is_due(self, step: int) -> bool:
    every = self.config.evaluation.every
    return bool(every) and step % every == 0

  def is_evaluated(self, step: int) -> bool:
    """Whether the report has it; all processes go by what the writer finds."""
    is_found = jax.process_index() == 0 and any(
      line["step"] == step for line in self.folder.evaluations()
    )
    return collectives.global_sums({"found": float(is_found)})["found"] > 0

  def evaluate(self, step: int) -> None:
    text = "evaluating" if step else _BASE_TEXT
    values = self.learner.evaluate(self.state.params, self.progress, text)
    self.folder.evaluation(step, values)
    accuracy = f"avg@{self.config.evaluation.num_samples}"
    self.progress.message(
      f"step {step}: held-out {accuracy} {100 * values[accuracy]:.1f} %"
    )

  def save(self) -> None:
    notes = {
      "config": self.config.model_dump(mode="json"),
      "seconds": self.seconds,
    }
    with signals.held_back():
      self.saved.save(
        int(self.state.step),
        _as_dict(self.state),
        notes,
      )

  def save_finished(self) -> None:
    """Keeps the steps since the last checkpoint when a run is interrupted.

    Several processes stop at the same place: none is a step ahead.
    """
    step = int(self.state.step)
    if step == 0:
      return
    if jax.process_count() > 1 and not process_group.is_joined():
      # Nobody has agreed where to stop, and saving needs all of them.
      self.progress.message("interrupted: the last checkpoint stands")
      return
    self.save()
    self.progress.message(
      f"interrupted: step {step} is saved; the same command goes on from it"
    )

  @property
  def seconds(self) -> float:
    """Of this run, earlier parts of it included."""
    return self.seconds_before + time.monotonic() - self.started

  def finish(self) -> dict[str, Any]:
    """Last checkpoint, last evaluation, summary and picture."""
    step = int(self.state.step)
    self.save()
    if not self.is_evaluated(step):
      self.evaluate(step)
    summary = {}
    if jax.process_index() == 0:
      lines = {line.pop("step"): line for line in self.folder.evaluations()}
      uses_rollouts = self.config.objective.uses_rollouts
      rollouts = step * self.config.num_sequences if uses_rollouts else 0
      summary = {
        "before": lines[0],
        "after": lines[step],
        "steps": step,
        "rollouts": rollouts,
        "seconds": round(self.seconds, 1),
      }
      self.folder.summary(summary)
      plots.plot(self.folder.directory)
    return summary


def _as_dict(state: train_state.TrainState) -> dict[str, Any]:
  return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
