"""Counts the floating-point operations that a model's tokens need.

Only matrix products count, two operations for each multiplication, and only
those of tokens: neither padding nor what a backward pass computes again. So
published figures of MFU are counted ("PaLM", arXiv:2204.02311, appendix B).
"""

import dataclasses

import numpy as np

from distil_jax.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class ModelFlops:
  """Holds the operations of forward passes, by what is multiplied.

  Attributes:
    weights: Products with the model's weights.
    adapters: Products with low-rank adapters.
    attention: Products of queries with keys, and of their weights with values.
  """

  weights: float
  adapters: float
  attention: float

  @property
  def forward(self) -> float:
    """The operations of the forward passes."""
    return self.weights + self.adapters + self.attention

  @property
  def training(self) -> float:
    """The operations of forward and backward passes."""
    # The backward pass has two products for each of the forward pass, but only
    # one for weights that are frozen beside adapters.
    of_weights = 2 if self.adapters else 3
    return of_weights * self.weights + 3 * (self.adapters + self.attention)


def count(
  config: DecoderConfig,
  ends: np.ndarray,
  num_logits: float,
  begins: np.ndarray | int = 0,
) -> ModelFlops:
  """Returns the operations of passes over parts of sequences.

  A token attends to itself and to all before it that are in its window, also to
  those before the part, whose keys and values are known.

  Args:
    config: Sizes of the network.
    ends: Number of tokens of each sequence up to the end of its part. Shape
      `[B]`.
    num_logits: Tokens whose logits are computed, of all sequences.
    begins: Number of tokens before the part. Shape `[B]`.
  """
  ends = np.asarray(ends, np.float64)
  begins = np.minimum(begins, ends)
  num_tokens = float(np.sum(ends - begins))
  width, queries = config.width, config.num_heads * config.head_size
  keys = config.num_kv_heads * config.head_size
  num_mlps = config.num_experts_per_token if config.num_experts else 1
  layer = (
    2 * width * (queries + keys)
    + 3 * num_mlps * width * config.mlp_size
    + width * config.num_experts
  )
  pairs = sum(
    float(np.sum(_num_pairs(ends, window) - _num_pairs(begins, window)))
    for window in config.windows
  )
  unembedding = num_logits * width * config.vocab_size
  return ModelFlops(
    weights=2 * (num_tokens * config.num_layers * layer + unembedding),
    adapters=2 * num_tokens * config.num_layers * _adapter_size(config),
    attention=4 * queries * pairs,
  )


def _num_pairs(lengths: np.ndarray, window: int | None) -> np.ndarray:
  """Returns the pairs of tokens and those that they attend to."""
  if window is None:
    return lengths * (lengths + 1) / 2
  first = np.minimum(lengths, window)
  return first * (first + 1) / 2 + (lengths - first) * window


def _adapter_size(config: DecoderConfig) -> float:
  """Returns the parameters of a layer's adapters."""
  if config.lora is None:
    return 0.0
  width, queries = config.width, config.num_heads * config.head_size
  keys = config.num_kv_heads * config.head_size
  sides = {
    "query": width + queries,
    "key": width + keys,
    "value": width + keys,
    "output": queries + width,
    "gate": width + config.mlp_size,
    "up": width + config.mlp_size,
    "down": config.mlp_size + width,
  }
  return float(config.lora.rank * sum(sides[x] for x in config.lora.targets))
