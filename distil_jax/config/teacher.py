"""Config sections of the teacher and its guard."""

from typing import Literal

import pydantic

from distil_jax.config.base import DType, Fraction, Positive, Section, Share


class GuardConfig(Section):
  """Watches whether a moving teacher can still read the feedback."""

  every: Positive = 1
  """Steps between looks at the teacher."""
  margin: Share = 0.05
  """Largest drop of its accuracy below that of the start."""
  action: Literal["freeze", "roll_back"] = "roll_back"
  """Until it recovers: stay, or go back to the initial weights at the rate of
  the moving average (which keeps one more copy of the weights)."""
  num_problems: Positive = 32
  """Failures of a step on which the teacher is asked for one answer each."""


class TeacherModelConfig(Section):
  """Another model as the teacher: any family and size, the same tokenizer.

  Its weights are those of its directory and never change. They are sharded as
  the student's and are no part of a checkpoint.
  """

  directory: str
  """A folder, or a model of the Hub, as `model.directory`."""
  revision: str | None = None
  """Branch, tag or commit of a model of the Hub; null is `main`, which may
  change."""
  param_dtype: DType = "float32"
  """Type in which its parameters are kept."""
  compute_dtype: DType = "float32"
  """Type of its activations."""
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  """As `model.attention`."""


class TeacherConfig(Section):
  """Whose weights the teacher has and what stands in its prompt."""

  model: TeacherModelConfig | None = None
  """null: the teacher is the student's own network."""
  parameters: Literal["ema", "frozen", "current", "trust_region"] = "frozen"
  """Moving average, initial weights, the student's own, or logits between the
  last two. SDPO and DistIL as published: a moving average."""
  ema_rate: Fraction = 0.01
  """Share of the way that a moving average follows the student in a step."""
  trust_region_rate: Share = 0.05
  """Share of the student's logits in a trust region's."""
  access: Literal["probabilities", "samples", "top_k"] = "probabilities"
  """Access to the teacher: its distribution, or a list for each token."""
  num_samples: Positive = 1
  """Samples in such a list."""
  top_k: Positive = 20
  """Most probable tokens in such a list."""
  guard: GuardConfig | None = None
  """null: no guard."""
  solution: Literal["sibling", "reference", "sibling_or_reference", "none"] = (
    "sibling"
  )
  """Which solution stands in the prompt."""
  feedback: Literal["when_no_solution", "always", "never"] = "when_no_solution"
  """When the environment's feedback stands in the prompt."""
  success_threshold: Fraction = 1.0
  """A reward from here on is a success."""
  max_prompt_length: Positive = 512
  """Tokens of the teacher's prompt, at most."""
  share_prefix: bool = True
  """Read what the prompts of a group begin with only once, where that saves
  tokens. It changes rounding alone."""

  @pydantic.model_validator(mode="after")
  def _rates(self):
    fields = type(self).model_fields
    for name, of in (
      ("ema_rate", "ema"),
      ("trust_region_rate", "trust_region"),
    ):
      value = getattr(self, name)
      if self.parameters != of and value != fields[name].default:
        raise ValueError(
          f"{name}={value} is of parameters={of}, but "
          f"parameters={self.parameters}; set parameters={of}, or drop {name}"
        )
    return self

  @pydantic.model_validator(mode="after")
  def _model(self):
    if self.model is None:
      return self
    other = f"model.directory={self.model.directory}"
    if self.parameters != "frozen":
      raise ValueError(
        f"parameters={self.parameters} makes the teacher from the student's "
        f"weights, but {other} has weights of its own, which stay; set "
        "parameters=frozen, or model=null"
      )
    if self.guard:
      raise ValueError(
        f"guard.action={self.guard.action} watches a moving average of the "
        f"student, but {other} does not move; set guard=null, or model=null"
      )
    return self

  @pydantic.model_validator(mode="after")
  def _guard(self):
    if self.guard and self.parameters != "ema":
      raise ValueError(
        f"guard watches a moving average, but parameters={self.parameters}; "
        "use guard=null, or parameters=ema"
      )
    return self
