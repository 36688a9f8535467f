"""Operations are counted from the sizes that the networks really have."""

import jax
import numpy as np
import pytest

from distil_jax.models import decoder, model_flops
from distil_jax.models.decoder_config import LoRA
from tests import networks

LENGTHS = np.array([5, 1, 0, 3])
NUM_LOGITS = 4
ADAPTED = ("query", "value", "output", "down")


def size_of_matrices(config) -> int:
  """Parameters that each token is multiplied with, but the unembedding."""
  found = 0
  layers = decoder.make(config)[1]["layers"]
  for path, leaf in jax.tree_util.tree_leaves_with_path(layers):
    name = jax.tree_util.keystr(path)
    if "norm" in name or "lora" in name:
      continue
    share = 1.0
    if config.num_experts and any(x in name for x in ("gate", "up", "down")):
      share = config.num_experts_per_token / config.num_experts
    found += leaf.size * share
  return found


@pytest.mark.parametrize(
  "changed",
  [
    {},
    {"num_kv_heads": 4, "num_layers": 3},
    {"family": "qwen3_moe", "num_experts": 6, "num_experts_per_token": 2},
  ],
  ids=str,
)
def test_products_with_weights_are_those_of_all_matrices(changed):
  config = networks.config_of(**changed)
  found = model_flops.count(config, LENGTHS, NUM_LOGITS)
  unembedding = NUM_LOGITS * config.width * config.vocab_size
  expected = LENGTHS.sum() * size_of_matrices(config) + unembedding
  assert found.weights == 2 * expected
  assert found.adapters == 0
  assert found.training == 3 * found.forward


@pytest.mark.parametrize("window", [None, 2])
def test_attention_counts_the_pairs_that_a_mask_allows(window):
  config = networks.config_of(
    sliding_window=window, sliding_layers=(True, False) if window else ()
  )
  begins = np.array([2, 0, 0, 3])
  pairs = 0
  for end, begin in zip(LENGTHS, begins, strict=True):
    for layer_window in config.windows:
      for i in range(begin, end):
        pairs += min(i + 1, layer_window or i + 1)
  found = model_flops.count(config, LENGTHS, 0, begins)
  # A product for the logits and one for the values of each pair.
  size = config.num_heads * config.head_size
  assert found.attention == 2 * 2 * size * pairs


def test_frozen_weights_have_no_gradient_of_their_own():
  lora = LoRA(rank=3, alpha=6.0, targets=ADAPTED)
  config = networks.config_of(lora=lora)
  layers = decoder.make(config)[1]["layers"]
  adapters = [x.size for name, x in layers.items() if "lora" in name]
  found = model_flops.count(config, LENGTHS, 0)
  assert len(adapters) == 2 * len(ADAPTED)
  assert found.adapters == 2 * LENGTHS.sum() * sum(adapters)
  assert found.training == (
    2 * found.weights + 3 * found.adapters + 3 * found.attention
  )
