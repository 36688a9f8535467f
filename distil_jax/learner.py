"""The training loop."""

import collections
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import yaml

from distil_jax import assembly, evaluate, processes, teaching, update
from distil_jax.actor import Experience
from distil_jax.config import Config, ConfigError
from distil_jax.io import checkpoints, plots, reports
from distil_jax.io.progress import Progress
from distil_jax.models import qwen3, sharding
from distil_jax.records import StopReason

# Folded into the run's key, to keep the noise of evaluation apart from that of
# training step 0, 1, ...
_EVALUATION = 2**31

# Settings that may differ when a run goes on from a checkpoint.
_FREE = ("name", "train.num_steps", "train.run_directory", "mesh")
_FREE_SECTIONS = ("evaluation", "checkpoint", "logging", "mesh")


class TrainingError(RuntimeError):
  """A run that cannot go on; what is good has been saved."""


class Learner:
  """One run: `Learner(config).train()`."""

  def __init__(self, config: Config):
    self.config = config
    self.environment = assembly.environment(config)
    self.mesh = assembly.mesh(config)
    with jax.set_mesh(self.mesh):
      self.policy = assembly.policy(config, self.environment, self.mesh)
    self.data = assembly.data(config, self.environment, self.policy.tokenizer)
    parts = (config, self.policy, self.environment, self.mesh)
    self.actor = assembly.training_actor(*parts)
    self.evaluation_actor = assembly.evaluation_actor(*parts)
    self.optimizer, self.schedule = assembly.optimizer(config)
    self.key = jax.random.key(config.train.seed)

  def train(self) -> dict[str, Any]:
    """Trains, evaluates, reports; goes on from the last checkpoint.

    Returns:
      the summary, as it stands in `summary.json`.

    Raises:
      ConfigError: the checkpoint there is was made with other settings.
      TrainingError: loss or gradient are not finite.
    """
    config = self.config
    is_writer = jax.process_index() == 0
    folder = reports.RunFolder(
      config.run_directory,
      is_writer=is_writer,
      tensorboard=config.logging.tensorboard,
    )
    progress = Progress(config.train.num_steps, is_shown=is_writer)
    saved = checkpoints.Checkpoints(
      config.run_directory / "checkpoints", keep=config.checkpoint.keep
    )
    with progress, saved, jax.set_mesh(self.mesh):
      run = _Run(self, folder, progress, saved)
      try:
        return run.train()
      finally:
        folder.close()

  def evaluate(self, params: qwen3.Params, progress: Progress, text: str):
    """Held-out accuracy; the same noise on every call."""
    config = self.config
    total = len(processes.share(self.data.evaluation))
    with progress.stage(text, total) as report:
      return evaluate.evaluate(
        self.evaluation_actor,
        params,
        self.data.evaluation,
        jax.random.fold_in(self.key, _EVALUATION),
        num_problems=config.evaluation.num_problems // jax.process_count(),
        pass_at=config.evaluation.pass_at,
        success_threshold=config.teacher.success_threshold,
        report=report,
      )

  def init_state(self) -> tuple[update.TrainState, update.TrainState]:
    """The state before the first step, and its shardings."""

    def init(params):
      return update.init_state(
        params,
        optimizer=self.optimizer,
        keeps_teacher=assembly.keeps_teacher(self.config),
        seed=self.config.train.seed,
      )

    shapes = jax.eval_shape(init, self.policy.params)
    places = update.state_shardings(shapes, self.mesh, self.optimizer)
    return jax.jit(init, out_shardings=places)(self.policy.params), places

  def trained_params(self) -> tuple[int, qwen3.Params]:
    """The step and the parameters of the run's last checkpoint.

    Before the first checkpoint these are step 0 and the base model.
    """
    directory = self.config.run_directory / "checkpoints"
    if not directory.is_dir():
      return 0, self.policy.params
    with checkpoints.Checkpoints(
      directory, keep=self.config.checkpoint.keep
    ) as saved:
      step = saved.latest_step
      if step is None:
        return 0, self.policy.params
      template = checkpoints.template(self.policy.params)
      return step, saved.read_params(step, template)


class _Run:
  """The parts of a run that is under way."""

  def __init__(
    self,
    learner: Learner,
    folder: reports.RunFolder,
    progress: Progress,
    saved: checkpoints.Checkpoints,
  ):
    self.learner = learner
    self.config = learner.config
    self.folder = folder
    self.progress = progress
    self.saved = saved
    self.batches = assembly.batches(self.config, learner.data)
    self.started = time.monotonic()

  def train(self) -> dict[str, Any]:
    """Reads like the algorithm: sample, judge, teach, update."""
    config, learner = self.config, self.learner
    self.start()
    for step in range(int(self.state.step), config.train.num_steps):
      items = next(self.batches, None)
      if items is None:
        self.progress.message(
          f"data.num_epochs={config.data.num_epochs} end after {step} steps"
        )
        break
      clock = [time.monotonic()]
      if config.objective.kind == "sft":
        experience = None
        lesson = teaching.from_demonstrations(
          items,
          learner.policy.tokenizer,
          max_prompt_length=config.rollout.max_prompt_length,
          max_completion_length=config.rollout.max_completion_length,
        )
      else:
        key = jax.random.fold_in(
          jax.random.wrap_key_data(self.state.key), step
        )
        experience = learner.actor(self.state.params, items, key)
        clock.append(time.monotonic())
        lesson = teaching.from_experience(
          experience, learner.policy.tokenizer, self.teacher
        )
      batch = sharding.put_batch(learner.mesh, lesson.batch)
      self.state, metrics = self.step_fn(self.state, batch)
      metrics = {name: float(x) for name, x in metrics.items()}
      clock.append(time.monotonic())
      self.check(step, metrics)
      self.report(step + 1, metrics, experience, lesson, clock)
      if self.evaluation_is_due(step + 1):
        self.evaluate(step + 1)
      if (step + 1) % config.checkpoint.every == 0:
        self.save()
    return self.finish()

  def start(self) -> None:
    """Initial or restored state; the evaluation before the first step."""
    config, learner = self.config, self.learner
    self.teacher = assembly.teacher_settings(config)
    self.state, places = learner.init_state()
    self.step_fn = jax.jit(
      assembly.train_step(config, learner.policy, learner.optimizer),
      donate_argnums=0,
      out_shardings=(places, None),
    )
    latest = self.saved.latest_step
    self.seconds_before = 0.0
    if latest is not None:
      self.resume(latest)
    device = jax.devices()[0]
    self.folder.start(
      dump(config),
      latest,
      device_kind=device.device_kind,
      num_devices=jax.device_count(),
    )
    dropped = {
      "malformed rows skipped": learner.data.num_skipped,
      "long prompts dropped": learner.data.num_dropped,
    }
    for what, count in dropped.items():
      if count:
        self.progress.message(f"{count} {what}")
    if latest is None:
      self.evaluate(0)

  def resume(self, step: int) -> None:
    """Takes state and data position from a checkpoint."""
    config = self.config
    if not config.checkpoint.resume:
      raise ConfigError(
        f"{config.run_directory} has a checkpoint of step {step}, but "
        "checkpoint.resume=false; set another train.run_directory, or remove "
        "it"
      )
    notes = self.saved.notes(step)
    check_same(notes["config"], config, step)
    self.seconds_before = notes["seconds"]
    with self.progress.stage("restoring"):
      state = {f.name: self.state[f.name] for f in _fields(self.state)}
      restored = self.saved.restore(
        step, checkpoints.template(state), self.batches
      )
    self.state = update.TrainState(**restored)
    self.progress.message(f"going on from step {step}")

  def check(self, step: int, metrics: Mapping[str, float]) -> None:
    """Stops a run whose numbers have failed, after saving what is good."""
    loss, norm = metrics["loss"], metrics["gradient_norm"]
    if jnp.isfinite(loss) and jnp.isfinite(norm):
      return
    self.save()
    raise TrainingError(
      f"step {step + 1}: loss {loss}, gradient norm {norm}; the state before "
      f"this step is saved in {self.config.run_directory}/checkpoints"
    )

  def report(
    self,
    step: int,
    metrics: dict[str, float],
    experience: Experience | None,
    lesson: teaching.Lesson,
    clock: list[float],
  ) -> None:
    """Metrics to file and screen, and now and then samples to read."""
    metrics["learning_rate"] = float(self.learner.schedule(step - 1))
    if experience is not None:
      metrics |= _experience_metrics(experience, lesson)
    else:
      masks = lesson.batch.completion_mask
      metrics["completion_length"] = float(masks.sum() / masks.shape[0])
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
    every = logging.rollouts_every
    if experience is not None and every and (step == 1 or step % every == 0):
      samples = _samples(experience, lesson, logging.num_rollouts)
      self.folder.rollouts(step, samples)

  def evaluation_is_due(self, step: int) -> bool:
    every = self.config.evaluation.every
    return bool(every) and step % every == 0

  def evaluate(self, step: int) -> None:
    text = "evaluating" if step else "evaluating the base model"
    values = self.learner.evaluate(self.state.params, self.progress, text)
    self.folder.evaluation(step, values)

  def save(self) -> None:
    step = int(self.state.step)
    self.saved.save(
      step,
      {f.name: self.state[f.name] for f in _fields(self.state)},
      self.batches,
      {"config": self.config.model_dump(mode="json"), "seconds": self.seconds},
    )

  @property
  def seconds(self) -> float:
    """Of this run, earlier parts of it included."""
    return self.seconds_before + time.monotonic() - self.started

  def finish(self) -> dict[str, Any]:
    """Last checkpoint, last evaluation, summary and picture."""
    step = int(self.state.step)
    self.save()
    if all(line["step"] != step for line in self.folder.evaluations()):
      self.evaluate(step)
    summary = {}
    if jax.process_index() == 0:
      lines = {line.pop("step"): line for line in self.folder.evaluations()}
      is_supervised = self.config.objective.kind == "sft"
      rollouts = 0 if is_supervised else step * self.config.num_sequences
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


def dump(config: Config) -> str:
  """The resolved config as YAML."""
  return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def check_same(saved: Mapping[str, Any], config: Config, step: int) -> None:
  """Refuses to go on with settings that would make it another run.

  Raises:
    ConfigError: lists every difference.
  """
  old = _flat(saved)
  new = _flat(config.model_dump(mode="json"))
  free = set(_FREE)
  if config.optimizer.schedule != "constant":
    free.remove("train.num_steps")  # the schedule depends on it
  differences = [
    f"  {key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} now"
    for key in {**old, **new}
    if old.get(key) != new.get(key)
    and key not in free
    and key.split(".")[0] not in _FREE_SECTIONS
  ]
  if differences:
    raise ConfigError(
      f"{config.run_directory} has a checkpoint of step {step} made with other "
      "settings; restore them, or set another train.run_directory:\n"
      + "\n".join(differences)
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def _fields(state: update.TrainState):
  return dataclasses.fields(state)


def _experience_metrics(
  experience: Experience, lesson: teaching.Lesson
) -> dict[str, float]:
  """Means over all completions of the step, of all processes."""
  statuses = collections.Counter(v.status for v in experience.verdicts)
  sums = {
    "reward": float(experience.rewards.sum()),
    "completion_length": float(experience.lengths.sum()),
    "cut_off": float(experience.is_cut_off.sum()),
    "signal_fraction": float(lesson.batch.sample_mask.sum()),
    "teacher/truncated": lesson.num_truncated,
    "teacher/no_room": lesson.num_without_room,
    **{f"verdict/{status}": count for status, count in statuses.items()},
    "count": len(experience.verdicts),
  }
  sums = processes.global_sums(sums)
  count = sums.pop("count")
  return {name: total / count for name, total in sums.items()}


def _samples(
  experience: Experience, lesson: teaching.Lesson, count: int
) -> list[reports.Sample]:
  return [
    reports.Sample(
      problem=experience.problems[i // experience.group_size],
      completion=experience.completions[i],
      num_tokens=int(experience.lengths[i]),
      stop_reason=StopReason(int(experience.rollout.stop_reasons[i])),
      verdict=experience.verdicts[i],
      teacher_prompt=lesson.teacher_prompts[i],
    )
    for i in range(min(count, len(experience.completions)))
  ]
