"""Config section of the model."""

from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import DType, Positive, Section, Seed


class CreateModelConfig(Section):
  """A new, randomly initialised Qwen3 with a tokenizer trained on the data."""

  vocab_size: Annotated[int, pydantic.Field(ge=300)] = 512
  width: Positive = 64
  num_layers: Positive = 2
  num_heads: Positive = 4
  num_kv_heads: Positive = 2
  head_size: Annotated[int, pydantic.Field(gt=0, multiple_of=2)] = 16
  mlp_size: Positive = 192
  tie_embeddings: bool = True
  rope_theta: Annotated[float, pydantic.Field(gt=1)] = 10000.0
  max_positions: Positive = 4096
  seed: Seed = 0

  @pydantic.model_validator(mode="after")
  def _heads(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    return self


class ModelConfig(Section):
  """The policy: a Hugging Face directory of a Qwen3-architecture decoder.

  `directory` may be `embedded:calculator`, the tiny base model that ships with
  the package, or a model of the Hub, such as `Qwen/Qwen3-8B`. With `create` the
  directory is made first if it is not there.
  """

  directory: str = "embedded:calculator"
  revision: str | None = None
  """Branch, tag or commit of a model of the Hub; null is `main`, which may
  change."""
  create: CreateModelConfig | None = None
  param_dtype: DType = "float32"
  compute_dtype: DType = "float32"
  remat: Literal["none", "layer"] = "layer"
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  """Attention kernel for whole sequences. `cudnn` is for CUDA GPUs, `splash`
  for TPUs; `auto` takes them there if head size and dtype allow it."""
  chat_template_kwargs: dict[str, Any] = pydantic.Field(
    default={"enable_thinking": False}
  )

  @pydantic.model_validator(mode="after")
  def _place_to_create(self):
    if self.create and self.directory.startswith("embedded:"):
      raise ValueError(
        f"directory={self.directory} ships with the package, but create is "
        "set; give the new model a directory of its own"
      )
    if self.create and self.revision is not None:
      raise ValueError(
        f"revision={self.revision} belongs to a model of the Hub, but create "
        "makes a new one; remove revision or create"
      )
    return self
