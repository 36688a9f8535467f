"""Adapters beside frozen weights: applied, merged, split, sharded."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.generation import generate
from distil_jax.models import cached_forward, decoder, layers, lora, sharding
from distil_jax.models.decoder_config import LoRA
from tests import networks
from tests.models import test_families

ALL = tuple(lora.TARGETS.values())
MOE = ("query", "key", "value", "output")


merge = jax.jit(lora.merge, static_argnums=(1, 2))


def with_adapters(config, params, *, targets=ALL, rank=3, seed=0):
  """Graph definition and parameters with random A and B."""
  config = dataclasses.replace(config, lora=LoRA(rank, 2.0 * rank, targets))
  graphdef, template = decoder.make(config)
  rng = np.random.default_rng(seed)
  adapter = jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype),
    lora.split(template)[1],
  )
  return config, graphdef, lora.join(params, adapter)


@functools.partial(jax.jit, static_argnums=0)
def hidden_states(graphdef, params, ids, mask):
  return decoder.hidden_states(graphdef, params, ids, mask)


def batch():
  rng = np.random.default_rng(0)
  return networks.random_prompts(rng, [4, 9], 9)


@pytest.mark.parametrize(
  "name",
  ["llama_biases", "olmo2_grouped", "gemma3_layer_types", "qwen3_moe_plain"],
)
def test_what_is_applied_is_what_is_merged(name):
  config, base_graph, base = test_families.load(name)
  targets = MOE if config.num_experts else ALL
  config, graphdef, params = with_adapters(config, base, targets=targets)
  merged = merge(params, config.lora)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  ids, mask = batch()
  applied, expected, unchanged = (
    np.asarray(hidden_states(*network, ids, mask))
    for network in (
      (graphdef, params),
      (base_graph, merged),
      (base_graph, base),
    )
  )
  counted = np.asarray(mask) == 1
  np.testing.assert_allclose(
    applied[counted], expected[counted], atol=2e-5, rtol=1e-4
  )
  assert np.abs(applied - unchanged)[counted].max() > 0.05


def test_by_hand():
  """One entry of a merged matrix: W + alpha / r times a row of A and B."""
  small = networks.network(num_layers=2)
  config, _, params = with_adapters(small.config, small.params)
  merged = merge(params, config.lora)["layers"]
  mine = {k: np.asarray(v, np.float64) for k, v in params["layers"].items()}
  layer, d, n, h, f = 1, 5, 3, 2, 11
  product = (
    mine["query_lora_a"][layer, d] @ mine["query_lora_b"][layer, :, n, h]
  )
  expected = mine["query"][layer, d, n, h] + 2 * product
  np.testing.assert_allclose(merged["query"][layer, d, n, h], expected, 1e-6)
  product = (
    mine["output_lora_a"][layer, n, h] @ mine["output_lora_b"][layer, :, d]
  )
  expected = mine["output"][layer, n, h, d] + 2 * product
  np.testing.assert_allclose(merged["output"][layer, n, h, d], expected, 1e-6)
  product = mine["down_lora_a"][layer, f] @ mine["down_lora_b"][layer, :, d]
  expected = mine["down"][layer, f, d] + 2 * product
  np.testing.assert_allclose(merged["down"][layer, f, d], expected, 1e-6)


def test_a_wider_type_keeps_what_bfloat16_rounds_away():
  small = networks.network()
  config, _, params = with_adapters(small.config, small.params)
  base, adapter = lora.split(params)
  base, adapter = jax.tree.map(np.asarray, (base, adapter))
  short = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
  young = lora.join(
    short, jax.tree.map(lambda x: x * np.float32(1e-3), adapter)
  )
  found = np.asarray(merge(young, config.lora, "float32")["layers"]["query"])
  weights = short["layers"]["query"]
  assert found.dtype == jnp.float32
  assert np.abs(found - weights.astype(np.float32)).max() > 0
  rounded = merge(young, config.lora)["layers"]["query"]
  np.testing.assert_array_equal(rounded, found.astype(jnp.bfloat16))


def test_a_new_adapter_changes_nothing():
  """Not a bit, and its A has the variance of PEFT's: 1 / (3 inputs)."""
  small = networks.network()
  config = dataclasses.replace(small.config, lora=LoRA(4, 8.0, ALL))
  graphdef, template = decoder.make(config)
  init = functools.partial(lora.init, lora.split(template)[1])
  adapter = jax.jit(init)(jax.random.key(0))
  adapter = jax.tree.map(np.asarray, adapter)
  params = lora.join(small.params, adapter)
  ids, mask = batch()
  np.testing.assert_array_equal(
    hidden_states(graphdef, params, ids, mask),
    hidden_states(small.graphdef, small.params, ids, mask),
  )
  for name, leaf in adapter["layers"].items():
    assert leaf.dtype == jnp.float32
    if name.endswith("_b"):
      assert not leaf.any()
    else:
      size = np.prod(leaf.shape[1:-1])
      assert np.var(leaf) * 3 * size == pytest.approx(1, rel=0.35)
  assert np.abs(
    adapter["layers"]["key_lora_a"] - adapter["layers"]["value_lora_a"]
  ).any()


def test_split_and_join_are_inverse():
  small = networks.network()
  _, _, params = with_adapters(small.config, small.params)
  base, adapter = lora.split(params)
  assert all(map(lora.is_adapter, adapter["layers"]))
  assert not any(map(lora.is_adapter, base["layers"]))
  assert jax.tree.structure(base) == jax.tree.structure(small.params)
  jax.tree.map(np.testing.assert_array_equal, lora.join(base, adapter), params)
  assert lora.join(None, params) is params


def cost(adapter, base, graphdef, ids, mask):
  params = lora.join(base, adapter)
  hidden = decoder.hidden_states(graphdef, params, ids, mask)
  logits = hidden @ layers.unembedding(params)
  return jnp.sum(jax.nn.log_softmax(logits)[..., 1] * mask)


def test_the_gradient_is_that_of_the_merged_weights():
  small = networks.network()
  config, graphdef, params = with_adapters(small.config, small.params)
  base, adapter = lora.split(params)
  ids, mask = batch()
  gradient = jax.jit(jax.grad(cost), static_argnums=2)

  def merged_cost(adapter):
    merged = merge(lora.join(base, adapter), config.lora)
    return cost({"layers": {}}, merged, small.graphdef, ids, mask)

  networks.assert_close(
    gradient(adapter, base, graphdef, ids, mask),
    jax.jit(jax.grad(merged_cost))(adapter),
    atol=2e-5,
  )


@pytest.mark.parametrize(
  "sizes", [{"fsdp": 2, "tensor": 2}, {"context": 2, "tensor": 2, "fsdp": 1}]
)
def test_devices_change_nothing(sizes):
  small = networks.network()
  _, graphdef, params = with_adapters(small.config, small.params, rank=2)
  ids, mask = (np.repeat(x, 2, axis=0)[:, :8] for x in batch())
  gradient = jax.jit(jax.grad(cost), static_argnums=2)
  base, adapter = lora.split(params)
  expected = gradient(adapter, base, graphdef, ids, mask)
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, decoder.shardings(mesh, params))
    base, adapter = lora.split(placed)
    found = gradient(
      adapter, base, graphdef, *sharding.put_batch(mesh, [ids, mask])
    )
  networks.assert_close(found, expected, atol=2e-5)


def test_no_gradient_of_a_whole_matrix_is_made():
  """A, B and their gradients are thin; no product is as large as a weight."""
  config = networks.config_of(width=64, mlp_size=512, num_layers=2)
  _, template = decoder.make(config)
  params = networks.random_params(template, 0)
  _, graphdef, params = with_adapters(config, params, targets=("gate", "up"))
  base, adapter = lora.split(params)
  ids, mask = batch()

  def num_large_products(argnum):
    lowered = jax.jit(jax.grad(cost, argnum), static_argnums=2).lower(
      adapter, base, graphdef, ids, mask
    )
    return len(
      re.findall(
        r"dot_general.*-> tensor<(?:64x512|512x64)xf32>", lowered.as_text()
      )
    )

  assert num_large_products(1) > 0  # the gradient of the weights themselves
  assert num_large_products(0) == 0


def test_the_sampler_reads_merged_weights():
  small = networks.network()
  config, _, params = with_adapters(small.config, small.params)
  weights = cached_forward.by_layer(small.graphdef, merge(params, config.lora))
  assert weights["layers"][0].keys() == small.params["layers"].keys()


def test_bfloat16_weights_do_not_round_adapters_away_in_the_sampler():
  policy = networks.policy()
  network = dataclasses.replace(policy.config, param_dtype="bfloat16")
  base = networks.random_params(decoder.make(network)[1], seed=1)
  network, graphdef, params = with_adapters(network, base)
  policy = dataclasses.replace(
    policy, config=network, graphdef=graphdef, params=params
  )
  sampled = generate.generate(
    policy, ["What is it?"], jax.random.key(0), max_completion_length=4
  )
  ids, mask = (
    np.concatenate(parts, axis=1)
    for parts in (
      (sampled.prompt_ids, sampled.completion_ids),
      (sampled.prompt_mask, sampled.completion_mask),
    )
  )
  # Activations are float32, so the two differ by their rounding alone.
  scored = networks.full_log_probs(params, ids, mask, graphdef=graphdef)
  length = sampled.prompt_ids.shape[1]
  expected = np.take_along_axis(
    np.asarray(scored)[:, length - 1 : -1],
    np.asarray(sampled.completion_ids)[..., None],
    axis=-1,
  )[..., 0]
  np.testing.assert_allclose(
    sampled.log_probs, expected * sampled.completion_mask, atol=1e-4
  )
