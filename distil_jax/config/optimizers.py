"""Config sections of the optimizers: one for each `optimizer.kind`."""

import re
from typing import Annotated, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  Fraction,
  NonNegative,
  Positive,
  Section,
  Weight,
)

_Rate = Annotated[float, pydantic.Field(ge=0, lt=1)]


class ParameterGroupConfig(Section):
  """Parameters with a learning rate or a weight decay of their own."""

  match: str | Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
  """Names such as `[embedding, layers.query]`, or a regular expression that
  must match a whole name, such as `layers[.].*_norm`."""
  learning_rate_scale: Weight = 1.0
  """Times the learning rate; 0 leaves the parameters as they are."""
  weight_decay: Weight | None = None
  """Used for all of the group, whatever `optimizer.decay` is; null: that of
  the other parameters."""

  @pydantic.field_validator("match")
  @classmethod
  def _pattern(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(value, str):
      try:
        re.compile(value)
      except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from error
    return value


class _BaseConfig(Section):
  """Settings that every optimizer has."""

  learning_rate: Above = 1e-5
  """Reached after the warm-up."""
  warmup_steps: NonNegative = 0
  """Training steps until then."""
  schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
  """After the warm-up. `linear` and `cosine` fall from there on, `wsd`
  (warm-up, stable, decay) is constant and falls linearly at the end of the
  run."""
  decay_steps: Positive | None = None
  """Training steps over which the rate falls. `linear`, `cosine`: after the
  warm-up; null: until the end of the run. `wsd`: the last ones, and needed."""
  final_learning_rate: Weight = 0.0
  """The rate at the end of the fall, and after it."""
  weight_decay: Weight = 0.01
  """Share of each weight taken off, times the learning rate."""
  decay: Literal["matrices", "all"] = "matrices"
  """Parameters that decay: the weight matrices, but no norms, biases and
  embeddings; or all."""
  groups: tuple[ParameterGroupConfig, ...] = ()
  """Parameters with settings of their own; the first group that matches a
  parameter has it."""
  max_gradient_norm: Above | None = 1.0
  """Longer gradients are scaled down to it; null: never."""
  mini_batch_size: Positive | None = None
  """Sequences of one update: several updates on the same rollouts, with
  off-policy ratios; null: one update, on all of them."""
  micro_batch_size: Positive | None = None
  """Sequences whose gradient is computed at once; null: all of an update."""
  tokens_per_micro_batch: Positive | None = None
  """Sorts the sequences of an update by length into micro-batches of about so
  many tokens, each as wide as its longest sequence; null: micro-batches of
  `micro_batch_size` sequences, all as wide as the longest of the step. The
  result is the same but for rounding."""
  master_dtype: Literal["float32"] | None = "float32"
  """If `model.param_dtype` is shorter, the optimizer keeps a copy of the
  parameters in this type, updates the copy, and rounds it; null: it updates
  the rounded parameters, which lose small updates."""
  stochastic_rounding: bool = False
  """For bfloat16 parameters without a copy: rounds up or down at random, so
  that small updates are kept on average."""

  @property
  def keeps_small_updates(self) -> bool:
    """Returns True if updates smaller than a rounding step are not lost."""
    return self.master_dtype is not None or self.stochastic_rounding

  @property
  def falls_until_last_step(self) -> bool:
    """Returns True if the schedule depends on `train.num_steps`."""
    if self.schedule == "wsd":
      return True
    return self.schedule != "constant" and self.decay_steps is None

  @pydantic.model_validator(mode="after")
  def _schedule(self):
    if self.schedule == "constant":
      unused = {"decay_steps": None, "final_learning_rate": 0.0}
      for name, default in unused.items():
        if (value := getattr(self, name)) != default:
          raise ValueError(
            f"{name}={value} is not used with schedule=constant; drop it, or "
            "set schedule=linear, cosine or wsd"
          )
    if self.schedule == "wsd" and self.decay_steps is None:
      raise ValueError(
        "schedule=wsd needs decay_steps, the training steps of the fall at the "
        "end; a tenth of train.num_steps is usual"
      )
    if self.final_learning_rate > self.learning_rate:
      raise ValueError(
        f"final_learning_rate={self.final_learning_rate} is above "
        f"learning_rate={self.learning_rate}, but schedules fall; lower it"
      )
    return self

  @pydantic.model_validator(mode="after")
  def _micro_batches(self):
    if self.tokens_per_micro_batch and self.micro_batch_size:
      raise ValueError(
        f"tokens_per_micro_batch={self.tokens_per_micro_batch} and "
        f"micro_batch_size={self.micro_batch_size} both give the size of a "
        "micro-batch; set one of them to null"
      )
    return self

  @pydantic.model_validator(mode="after")
  def _rounding(self):
    if self.stochastic_rounding and self.master_dtype is not None:
      raise ValueError(
        "stochastic_rounding=true needs master_dtype=null: with a copy in "
        f"{self.master_dtype} nothing is lost that it could keep"
      )
    return self


class AdamWConfig(_BaseConfig):
  """AdamW: 8 bytes of state for each parameter."""

  kind: Literal["adamw"] = "adamw"
  """The update: `adamw`, `adafactor`, `lion` or `muon`."""
  beta1: _Rate = 0.9
  """Decay of the gradient's mean."""
  beta2: _Rate = 0.999
  """Decay of the gradient's square."""
  epsilon: Above = 1e-8
  """Added to the root of that square."""


class AdafactorConfig(_BaseConfig):
  """Adafactor without momentum: next to no state, for the largest networks."""

  kind: Literal["adafactor"] = "adafactor"
  """Mean squares of gradients by row and by column in place of moments."""
  decay_rate: Fraction = 0.8
  """At update n earlier mean squares weigh 1 - n^-decay_rate."""
  clipping_threshold: Annotated[float, pydantic.Field(ge=1)] | None = 1.0
  """Root mean square to which the update of a parameter array (all layers) is
  scaled down, before the learning rate; null: never."""
  multiply_by_parameter_scale: bool = False
  """Multiplies each update by the root mean square of its parameter array, so
  that the learning rate is relative."""
  min_dim_size_to_factor: Positive = 128
  """Arrays with fewer rows or columns have a mean square for each entry."""


class LionConfig(_BaseConfig):
  """Lion: the sign of a momentum, 4 bytes of state for each parameter.

  Learning rates are 3 to 10 times smaller than AdamW's, and weight decays that
  much larger.
  """

  kind: Literal["lion"] = "lion"
  """Every entry moves by the learning rate."""
  beta1: _Rate = 0.9
  """Share of the momentum in the direction of an update."""
  beta2: _Rate = 0.99
  """Decay of the momentum."""


class MuonConfig(_BaseConfig):
  """Muon for the weight matrices of layers, AdamW for all other parameters.

  A matrix has 4 bytes of state for each parameter. Updates are scaled to the
  size of AdamW's, so that one learning rate serves both.
  """

  kind: Literal["muon"] = "muon"
  """Momentum whose singular values are all brought near 1."""
  momentum: _Rate = 0.95
  """Decay of the momentum of matrices."""
  beta1: _Rate = 0.9
  """Decay of the gradient's mean in AdamW."""
  beta2: _Rate = 0.999
  """Decay of the gradient's square in AdamW."""
  epsilon: Above = 1e-8
  """Added to the root of that square."""


OptimizerConfig = Annotated[
  AdamWConfig | AdafactorConfig | LionConfig | MuonConfig,
  pydantic.Field(discriminator="kind"),
]
