"""Config sections of training loop, evaluation, checkpoints and logging."""

from typing import Annotated, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  NonNegative,
  PathText,
  Positive,
  SamplingConfig,
  Section,
  Seed,
)


class TrainConfig(Section):
  """Length, seed and folder of a run."""

  num_steps: Positive = 100
  """Steps of the run in all, those before a restart included."""
  seed: Seed = 0
  """Seed of all samples."""
  run_directory: PathText | None = None
  """null: `runs/` and the name of the config file."""
  max_skipped_updates: NonNegative = 3
  """Updates in a row that are skipped because their loss or gradient is not
  finite; the next one ends the run. 0 ends it at the first."""
  allow_changes: tuple[str, ...] = ()
  """Settings that may differ from those of the checkpoint although they change
  what is learned, such as `optimizer.learning_rate`; `--allow` sets it."""


class EvaluationSetConfig(SamplingConfig):
  """Sampling on held-out problems: avg@num_samples, and pass@k for each k."""

  num_samples: Positive = 4
  """Completions of each problem."""
  pass_at: tuple[Positive, ...] = (1, 4)
  """The values of k of pass@k."""
  max_completion_length: Positive | None = None
  """Tokens; null: as in training."""

  @pydantic.model_validator(mode="after")
  def _pass_at(self):
    if not self.pass_at:
      raise ValueError("pass_at needs at least one k")
    for k in self.pass_at:
      if k > self.num_samples:
        raise ValueError(
          f"pass_at has k={k}, but num_samples={self.num_samples}: "
          "pass@k needs at least k samples"
        )
    return self


class EvaluationConfig(EvaluationSetConfig):
  """Evaluates on held-out problems: avg@num_samples, and pass@k for each k."""

  every: NonNegative = 0
  """Steps between evaluations; 0 evaluates only before and after the run."""
  num_problems: Positive = 64
  """Problems in one batch of rollouts."""

  def is_due(self, step: int) -> bool:
    """Returns True if a run evaluates after this step."""
    return bool(self.every) and step % self.every == 0


class CheckpointConfig(Section):
  """When checkpoints are written, and whether a run goes on from them."""

  every: Positive = 50
  """Steps between checkpoints; the last step is always saved."""
  keep: Positive = 2
  """Latest checkpoints to keep."""
  keep_best: NonNegative = 0
  """Checkpoints with the highest held-out accuracy to keep besides; needs
  `evaluation.every`."""
  keep_every: Positive | None = None
  """Steps between checkpoints that are kept for good; null: none are."""
  resume: bool = True
  """false: refuse to start if the run folder has a checkpoint."""


class MonitorConfig(Section):
  """A metric and its limits; a run warns, or stops, beyond them."""

  metric: str
  """A name of `metrics.jsonl`, `evaluation/` and one of `evaluations.jsonl`, or
  `evaluation/accuracy`, which is held-out avg@`evaluation.num_samples`."""
  above: float | None = None
  """Acts if the metric is above it; null: no upper limit."""
  below: float | None = None
  """Acts if the metric is below it; null: no lower limit."""
  relative_to: Literal["start", "highest", "lowest"] | None = None
  """What the limits are multiples of: the first mean, the highest or the lowest
  so far; null: they are in the metric's own unit."""
  window: Positive = 1
  """Latest values whose mean is compared."""
  action: Literal["warn", "stop"] = "warn"
  """`warn` says it once, until the metric has been back; `stop` saves and ends
  the run."""

  @pydantic.model_validator(mode="after")
  def _limits(self):
    if self.above is None and self.below is None:
      raise ValueError(
        f"metric={self.metric} has no limit; set above, below, or both"
      )
    return self


_MONITORS = (
  MonitorConfig(
    metric="evaluation/accuracy", below=0.85, relative_to="highest"
  ),
  MonitorConfig(
    metric="completion_length",
    below=0.5,
    above=2.0,
    relative_to="start",
    window=10,
  ),
)


class CompilationConfig(Section):
  """The cache of compiled programs, from which a later start reads them."""

  cache_directory: PathText | None = "auto"
  """Folder of its own; `auto`: that of `JAX_COMPILATION_CACHE_DIR` if that is
  set, else `~/.cache/distil_jax/compilation`; null: no cache."""
  max_cache_gigabytes: Above = 10.0
  """Size above which the programs that were not used for the longest time are
  removed; not of a folder that `JAX_COMPILATION_CACHE_DIR` names."""


class ProfileConfig(Section):
  """Which steps are traced by JAX's profiler, for TensorBoard or XProf."""

  start_step: Positive | None = None
  """First step of the trace, counted from 1; null: no trace. The first steps of
  a run compile."""
  num_steps: Positive = 3
  """Steps in the trace, which is written to `profile/` in the run's folder."""


class TrackerConfig(Section):
  """A run at trackio, which keeps it on this machine."""

  project: Annotated[str, pydantic.Field(min_length=1)] = "distil_jax"
  """Groups runs."""
  name: str | None = None
  """Of the run there; null: that of the config."""


class WandbConfig(TrackerConfig):
  """A run at Weights & Biases."""

  mode: Literal["online", "offline"] = "online"
  """`offline` writes into the run's folder; `wandb sync` sends it later."""


class LoggingConfig(Section):
  """Settings of what a run writes into its folder."""

  every: Positive = 1
  """Steps between lines in `metrics.jsonl`."""
  rollouts_every: NonNegative = 10
  """Steps between pages of sampled completions; 0: never."""
  num_rollouts: Positive = 4
  """Completions on a page."""
  kept_batches: NonNegative = 0
  """Latest training steps whose batches are kept as arrays in `batches/`, for
  `distil-jax replay`; those of skipped updates are kept in any case."""
  token_values: bool = True
  """Write cost, future cost and score weight of each token beside the samples,
  for `distil-jax report`. It takes a pass of student and teacher over the batch
  of a step with a page, and one more compiled program."""
  tensorboard: bool = True
  """Write TensorBoard files too."""
  wandb: WandbConfig | None = None
  """Send metrics and samples to Weights & Biases; needs the extra `wandb`."""
  trackio: TrackerConfig | None = None
  """Keep metrics and samples in trackio; needs the extra `trackio`."""
  quiet: bool = False
  """Show warnings and errors alone, and no progress; `--quiet` sets it."""
  mismatch_limit: Above | None = 0.05
  """A run warns if sampler and training step differ by more nats per token
  under the same parameters; null: never. Rounding explains about 1e-6 if
  network and cache are float32, and 1e-2 if one is bfloat16; at 0.05 every
  probability is 5 % off."""
  monitors: tuple[MonitorConfig, ...] = _MONITORS
  """Metrics that a run watches, see docs/guides/failing_runs.md.
  A list in a config takes the place of these; `[]` watches nothing."""
