"""Config section of the model."""

from typing import Annotated, Any, Literal

import pydantic

from distil_jax.config.base import (
  Above,
  DType,
  NonNegative,
  PathText,
  Positive,
  Section,
  Seed,
  Weight,
)

FamilyName = Literal[
  "gemma3_text",
  "llama",
  "mistral",
  "olmo2",
  "olmo3",
  "qwen2",
  "qwen3",
  "qwen3_moe",
]
LoRATarget = Literal[
  "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
]
# Families that have layers with a sliding window.
_WINDOWED = ("gemma3_text", "mistral", "olmo3")


class CreateModelConfig(Section):
  """A new model with random weights and a tokenizer trained on the data."""

  family: FamilyName = "qwen3"
  """Name of the family, as `model_type` in `config.json`."""
  vocab_size: Annotated[int, pydantic.Field(ge=300)] = 512
  """Tokens of the tokenizer that is trained, at most."""
  width: Positive = 64
  """Size of the hidden states."""
  num_layers: Positive = 2
  """Blocks of attention and MLP."""
  num_heads: Positive = 4
  """Heads of queries in a layer."""
  num_kv_heads: Positive = 2
  """Heads of keys and values; divides `num_heads`."""
  head_size: Annotated[int, pydantic.Field(gt=0, multiple_of=2)] = 16
  """Size of a head, which need not be `width / num_heads`."""
  mlp_size: Positive = 192
  """Hidden size of an MLP."""
  tie_embeddings: bool = True
  """Use the embedding as unembedding too."""
  rope_theta: Annotated[float, pydantic.Field(gt=1)] = 10000.0
  """Base of the rotary frequencies; larger for longer contexts."""
  max_positions: Positive = 4096
  """Tokens of prompt and completion together, at most."""
  sliding_window: Positive | None = None
  """Tokens that layers with a window read: in `mistral` all layers, in `olmo3`
  three of four, in `gemma3_text` five of six; null: no layer has a window."""
  num_experts: NonNegative = 0
  """Experts of each layer of a `qwen3_moe`, each of `mlp_size`."""
  num_experts_per_token: NonNegative = 0
  """Experts that a token is sent to."""
  seed: Seed = 0
  """Seed of the random weights."""

  @pydantic.model_validator(mode="after")
  def _heads(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads={self.num_heads} is not a multiple of "
        f"num_kv_heads={self.num_kv_heads}"
      )
    return self

  @pydantic.model_validator(mode="after")
  def _family(self):
    if self.sliding_window and self.family not in _WINDOWED:
      raise ValueError(
        f"sliding_window={self.sliding_window}, but layers of "
        f"family={self.family} have none; drop it, or use one of "
        f"{', '.join(_WINDOWED)}"
      )
    num_experts, chosen = self.num_experts, self.num_experts_per_token
    if self.family != "qwen3_moe" and (num_experts or chosen):
      raise ValueError(
        f"num_experts={num_experts} and num_experts_per_token={chosen} are of "
        f"family=qwen3_moe, but family={self.family}; drop them"
      )
    if self.family == "qwen3_moe" and not 1 <= chosen <= num_experts:
      raise ValueError(
        f"family=qwen3_moe needs num_experts_per_token from 1 to num_experts, "
        f"got {chosen} of {num_experts}"
      )
    return self


class LoRAConfig(Section):
  """Low-rank adapters: only they are trained, and the weights stay.

  A frozen teacher is the model without them, and a moving average one of the
  adapters, so that no second copy of the weights is kept.
  """

  rank: Positive = 64
  """Columns of A and rows of B in W + alpha / rank · A B."""
  alpha: Above | None = None
  """null: twice the rank."""
  targets: tuple[LoRATarget, ...] = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
  )
  """Matrices that have adapters, by their names in PEFT."""
  adapter: str | None = None
  """Folder of a PEFT adapter to begin from; rank, alpha and targets must be its
  own. null: new adapters, which change nothing at first."""
  dropout: Weight = 0.0
  """Only 0: tokens are sampled without dropout, and must be learned from by the
  policy that sampled them."""

  @pydantic.field_validator("dropout")
  @classmethod
  def _dropout(cls, value: float) -> float:
    if value:
      raise ValueError(
        f"dropout={value} is not supported: tokens are sampled without it, so "
        "the policy that learns would not be the one that sampled them, and "
        "ratios and mismatch would measure its noise; set dropout=0, and "
        "regularise with optimizer.weight_decay or a smaller rank"
      )
    return value

  @pydantic.model_validator(mode="after")
  def _targets(self):
    if not self.targets or len(set(self.targets)) < len(self.targets):
      raise ValueError(
        f"targets={list(self.targets)} must name at least one matrix, and none "
        "twice"
      )
    return self


class ModelConfig(Section):
  """The policy: a Hugging Face directory of a decoder of a known family.

  `directory` may be `embedded:calculator`, the tiny base model that ships with
  the package, or a model of the Hub, such as `Qwen/Qwen3-8B`. With `create` the
  directory is made first if it is not there.
  """

  directory: PathText = "embedded:calculator"
  """A folder, `embedded:calculator`, or a model of the Hub."""
  revision: str | None = None
  """Branch, tag or commit of a model of the Hub; null is `main`, which may
  change."""
  create: CreateModelConfig | None = None
  """Makes a new random model if the folder is not there; null: never."""
  param_dtype: DType = "float32"
  """Type in which parameters are kept; with bfloat16 the optimizer keeps a
  float32 copy by default."""
  compute_dtype: DType = "float32"
  """Type of the activations."""
  lora: LoRAConfig | None = None
  """null: all weights are trained."""
  remat: Literal["none", "attention", "dots", "layer", "offload"] = "layer"
  """Activations that the backward pass computes again: `none`; those of
  `attention`; all but results of products with weights (`dots`); all but each
  layer's input (`layer`), or that kept in the host's memory (`offload`)."""
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  """Attention kernel for whole sequences. `cudnn` is for CUDA GPUs, `splash`
  for TPUs; `auto` takes them there if head size and dtype allow it."""
  chat_template_kwargs: dict[str, Any] = pydantic.Field(
    default={"enable_thinking": False}
  )
  """Variables for the chat template."""

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
