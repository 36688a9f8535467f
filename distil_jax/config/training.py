"""The sections of a run, one per station; what is learned is apart."""

from typing import Annotated, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  NonNegative,
  Positive,
  Section,
  Seed,
  Weight,
)
from distil_jax.config.rollout import SamplingConfig


class OptimizerConfig(Section):
  """AdamW behind a clip of the gradient's norm."""

  learning_rate: Above = 1e-5
  """Reached after the warm-up."""
  warmup_steps: NonNegative = 0
  """Training steps until then."""
  schedule: Literal["constant", "cosine"] = "constant"
  """After the warm-up; the cosine falls to 0 at `train.num_steps`."""
  beta1: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.9
  """Decay of the gradient's mean."""
  beta2: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.999
  """Decay of the gradient's square."""
  epsilon: Above = 1e-8
  """Added to the root of that square."""
  weight_decay: Weight = 0.01
  """Share of each weight taken off, times the learning rate."""
  max_gradient_norm: Above | None = 1.0
  """Longer gradients are scaled down to it; null: never."""
  mini_batch_size: Positive | None = None
  """Sequences of one update: several updates on the same rollouts, with
  off-policy ratios; null: one update, on all of them."""
  micro_batch_size: Positive | None = None
  """Sequences whose gradient is computed at once; null: all of an update."""


class TrainConfig(Section):
  num_steps: Positive = 100
  seed: Seed = 0
  run_directory: str | None = None  # null: runs/<name of the config file>


class EvaluationConfig(SamplingConfig):
  """Held-out problems: avg@num_samples and pass@k for each k."""

  every: NonNegative = 0  # steps; 0 evaluates only before and after
  num_samples: Positive = 4
  pass_at: tuple[Positive, ...] = (1, 4)
  num_problems: Positive = 64  # in one batch of rollouts
  max_completion_length: Positive | None = None  # null: the rollout's

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


class CheckpointConfig(Section):
  every: Positive = 50  # steps; the last step is always saved
  keep: Positive = 2
  resume: bool = True


class LoggingConfig(Section):
  every: Positive = 1  # steps between lines in metrics.jsonl
  rollouts_every: NonNegative = 10  # steps between rollout samples; 0: never
  num_rollouts: Positive = 4
  tensorboard: bool = True
  mismatch_limit: Above | None = 0.05
  """Nats a token between sampler and training step under the same parameters,
  above which a run warns; null: never. Rounding explains about 1e-6 where
  network and cache are float32, 1e-2 where one is bfloat16; at 0.05 every
  probability is 5 % off."""
