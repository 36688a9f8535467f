"""Sizes and traits of a decoder."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

# Where a norm stands: before attention and MLP, after them, or both.
NormPlacement = Literal["before", "after", "both"]
# What shares one norm of queries and of keys: nothing, a head, or all heads.
QueryKeyNorm = Literal["none", "head", "all_heads"]
# What the backward pass computes again, see `models.remat`.
Remat = Literal["none", "attention", "dots", "layer", "offload"]


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Describes how wavelengths are stretched beyond the pretrained length.

  Attributes:
    kind: `linear` stretches all wavelengths, `llama3` the long ones, and `yarn`
      the long ones while it makes attention sharper.
    factor: Factor by which a wavelength is stretched.
    original_max_positions: Positions before the stretching; not of `linear`.
    low_freq_factor: `llama3` stretches wavelengths in full above
      `original_max_positions / low_freq_factor`.
    high_freq_factor: `llama3` keeps wavelengths below
      `original_max_positions / high_freq_factor`.
    beta_fast: `yarn` keeps wavelengths that turn more often than this.
    beta_slow: `yarn` stretches those in full that turn less often than this.
    attention_factor: `yarn` multiplies cosine and sine by it.
    truncate: `yarn` rounds the range between the two betas to whole numbers.
  """

  kind: Literal["linear", "llama3", "yarn"]
  factor: float
  original_max_positions: int = 0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float = 1.0
  truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Describes low-rank adapters: W + alpha / rank · A B for chosen matrices.

  Attributes:
    rank: r, columns of A and rows of B.
    alpha: Times 1 / r, the factor of the product.
    targets: Names of the matrices: `query`, `key`, `value`, `output`, `gate`,
      `up` or `down`.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    """The factor of the product of A and B."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Holds the sizes of the network, its family's traits and how it computes.

  Attributes:
    vocab_size: V, rows of the embedding and entries of the logits.
    num_tokens: Entries that stand for tokens of the tokenizer. The others pad
      the vocabulary, and no token is drawn or scored with them. None means
      that all entries are tokens.
    sliding_window: Number of tokens, its own included, that a token reads in
      the layers with a window; None means that no layer has one.
    sliding_layers: True for each layer with a window; empty means no layer.
    local_rope_theta: Base of the wavelengths in layers with a window, unscaled;
      None means that these layers are like the others.
    attention_scale: Factor of the attention logits; None means H^-0.5.
    embedding_scale: Factor of the embeddings.
    norm_adds_one: True if a norm's scale is 1 plus its parameter.
    num_experts: Experts of each layer; 0 means one MLP.
    num_experts_per_token: Experts that a token is sent to.
    normalizes_experts: True if the weights of a token's experts sum to 1.
    lora: Adapters beside the weights; None means that there are none.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  mlp_size: int
  tie_embeddings: bool
  rope_theta: float
  max_positions: int = 32768
  norm_epsilon: float = 1e-6
  param_dtype: str = "float32"
  compute_dtype: str = "float32"
  remat: Remat = "layer"
  attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
  family: str = "qwen3"
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  sliding_window: int | None = None
  sliding_layers: tuple[bool, ...] = ()
  query_key_norm: QueryKeyNorm = "head"
  norm_placement: NormPlacement = "before"
  norm_adds_one: bool = False
  query_key_value_bias: bool = False
  output_bias: bool = False
  mlp_bias: bool = False
  activation: Literal["silu", "gelu_tanh"] = "silu"
  attention_scale: float | None = None
  embedding_scale: float = 1.0
  num_experts: int = 0
  num_experts_per_token: int = 0
  normalizes_experts: bool = False
  lora: LoRA | None = None
  num_tokens: int | None = None

  def window(self, layer: int) -> int | None:
    """Returns the number of tokens that a layer reads; None means all."""
    has_window = bool(self.sliding_layers) and self.sliding_layers[layer]
    return self.sliding_window if has_window else None

  @property
  def merged_lora(self) -> LoRA | None:
    """The adapters that are merged into the weights before sampling.

    A weight of 16 bits would round a young adapter away, so there the adapters
    stay beside the weights.
    """
    is_exact = self.param_dtype == self.compute_dtype == "float32"
    return self.lora if is_exact else None

  @property
  def sampled(self) -> "DecoderConfig":
    """The network that is sampled from, in which adapters may be merged."""
    if self.merged_lora is None:
      return self
    return dataclasses.replace(self, lora=None)

  @property
  def windows(self) -> tuple[int | None, ...]:
    """The number of tokens that each layer reads; None means all."""
    return tuple(map(self.window, range(self.num_layers)))

  @property
  def period(self) -> int:
    """The number of layers after which the kinds of layers repeat."""
    kinds = self.sliding_layers
    for period in range(1, len(kinds)):
      if all(kinds[i] == kinds[i % period] for i in range(len(kinds))):
        return period
    return max(len(kinds), 1)

  @property
  def logit_scale(self) -> float:
    """The factor of the attention logits."""
    if self.attention_scale is None:
      return self.head_size**-0.5
    return self.attention_scale


def float_name(name: str, dtype: Any) -> str:
  """Returns the name of a floating-point type.

  Raises:
    ValueError: It is not one; names the setting.
  """
  try:
    found = jnp.dtype(dtype)
  except TypeError:
    found = None
  if found is None or not jnp.issubdtype(found, jnp.floating):
    raise ValueError(f"{name}={dtype!r} must be a type such as 'float32'")
  return found.name
