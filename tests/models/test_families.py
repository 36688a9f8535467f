"""Each family against transformers, and against itself in every other pass.

`tests/golden/make_families.py` says what the golden files hold.
"""

import collections
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from distil_jax.models import (
  cached_forward,
  decoder,
  hf_config,
  hf_export,
  hf_weights,
  kv_cache,
  layers,
  sharding,
)
from distil_jax.models.families import FAMILIES
from tests import networks
from tests.golden.family_cases import CASES
from tests.paths import GOLDEN

FOLDER = GOLDEN / "families"
# One of each family, with as much of what is its own as there is.
ONE_EACH = {
  "gemma3_text": "gemma3_linear",
  "llama": "llama_scaled",
  "mistral": "mistral_window",
  "olmo2": "olmo2_grouped",
  "olmo3": "olmo3_yarn",
  "qwen2": "qwen2_window",
  "qwen3_moe": "qwen3_moe_plain",
}


@functools.cache
def load(name, **computing):
  settings = json.loads((FOLDER / name / "config.json").read_text())
  config = hf_config.from_hugging_face(settings, **computing)
  graphdef, template = decoder.make(config)
  return config, graphdef, hf_weights.load(FOLDER / name, template, config)


def costs_and_logits(graphdef, params, ids, mask):
  """Mean cost of the tokens that follow others, and all logits."""
  hidden = decoder.hidden_states(graphdef, params, ids, mask)
  logits = hidden @ layers.unembedding(params)
  log_probs = jax.nn.log_softmax(logits[:, :-1])
  costs = -jnp.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
  follows = mask[:, 1:] * mask[:, :-1]
  return jnp.sum(costs * follows) / jnp.sum(follows), logits


# One program: of a gradient that is not compiled whole, forward and backward
# are two.
cost_and_gradient = jax.jit(
  jax.value_and_grad(costs_and_logits, argnums=1, has_aux=True),
  static_argnums=0,
)


def products(config, params, gradients):
  """Each gradient times its weights, by the names that transformers gives."""
  found = collections.Counter()
  for path, layout in FAMILIES[config.family].tensors.items():
    tree, grads = params, gradients
    for key in path:
      tree, grads = tree.get(key, {}), grads.get(key, {})
    if isinstance(tree, dict):
      continue  # a parameter that this model does not have
    each = np.asarray(tree, np.float64) * np.asarray(grads, np.float64)
    sums = each.reshape(-1, *each.shape[layout.num_stacked :])
    for name, value in zip(layout.names(each.shape), sums, strict=True):
      experts = re.match(r"(.*\.experts)\.\d+\.(gate|up|down)_proj", name)
      if experts:
        kind = {"down": "down_proj"}.get(experts[2], "gate_up_proj")
        name = f"{experts[1]}.{kind}"
      found[name] += value.sum()
  return found


def test_there_are_three_cases_of_each_family():
  kinds = collections.Counter(c["model_type"] for c in CASES.values())
  assert kinds.keys() == FAMILIES.keys() - {"qwen3"}  # which has its own files
  assert set(kinds.values()) == {3}
  assert CASES.keys() == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_transformers(name):
  config, graphdef, params = load(name)
  golden = np.load(FOLDER / name / "golden.npz")
  ids, mask = (golden[k].astype(np.int32) for k in ("token_ids", "mask"))
  (_, logits), gradients = cost_and_gradient(graphdef, params, ids, mask)
  theirs = golden["logits"]
  counted = mask[:, -theirs.shape[1] :] == 1
  ours = np.asarray(logits)[:, -theirs.shape[1] :]
  assert np.abs(ours - theirs)[counted].max() < 1e-4
  ours = products(config, params, gradients)
  assert sorted(ours) == golden["names"].tolist()
  np.testing.assert_allclose(
    [ours[key] for key in sorted(ours)], golden["gradients"], atol=2e-5
  )


PROMPT_LENGTHS, LENGTH, GROUP_SIZE = (1, 4, 11), 11, 2
NUM_STEPS = 9


@functools.partial(jax.jit, static_argnums=0, static_argnames="cache_length")
def decode(graphdef, params, ids, mask, completions, *, cache_length):
  """Hidden states after each token, one decoded token at a time. `[B, T, D]`.

  The cache begins short and grows when it is full.
  """
  weights = cached_forward.by_layer(graphdef, params)
  prompts = cached_forward.prefill(
    graphdef, weights, ids, mask, num_parts=1, dtype=jnp.float32
  )
  width = len(completions)
  prompt_index = jnp.repeat(jnp.arange(len(ids)), width // len(ids))[None]
  in_flight = kv_cache.assign_prompts(
    prompt_index,
    jnp.ones((1, width), bool),
    num_prompts=len(ids),
    num_columns=width // len(ids),
  )

  def step(cache, t):
    hidden, cache = cached_forward.decode(
      graphdef,
      weights,
      completions[None, :, t],
      jnp.full((1, width), t),
      prompt_index,
      in_flight,
      prompts,
      cache,
    )
    return cache, hidden[0]

  cache = kv_cache.empty_cache(prompts, width, cache_length)
  cache, first = jax.lax.scan(step, cache, jnp.arange(cache_length))
  cache = kv_cache.resize_cache(cache, jnp.arange(width)[None], NUM_STEPS)
  rest = jnp.arange(cache_length, NUM_STEPS)
  _, last = jax.lax.scan(step, cache, rest)
  return jnp.moveaxis(jnp.concatenate([first, last]), 0, 1)


@functools.partial(jax.jit, static_argnums=0)
def whole(graphdef, params, ids, mask, completions):
  """The same from whole sequences."""
  group_size = len(completions) // len(ids)
  rows = jnp.concatenate([jnp.repeat(ids, group_size, 0), completions], axis=1)
  counts = jnp.concatenate(
    [jnp.repeat(mask, group_size, 0), jnp.ones_like(completions)], axis=1
  )
  hidden = decoder.hidden_states(graphdef, params, rows, counts)
  return hidden[:, ids.shape[1] :]


@functools.partial(jax.jit, static_argnums=0)
def after_prefix(graphdef, params, ids, mask, completions):
  """The same from rows that continue shared prefixes."""
  prefix = decoder.read_prefix(graphdef, params, ids, mask)
  return decoder.hidden_states(
    graphdef,
    params,
    completions,
    jnp.ones_like(completions),
    prefix=prefix,
  )


def rows_of(config):
  """Left-padded prompts, and two completions of each."""
  rng = np.random.default_rng(3)
  ids, mask = networks.random_prompts(
    rng, PROMPT_LENGTHS, LENGTH, config.vocab_size
  )
  shape = (len(ids) * GROUP_SIZE, NUM_STEPS)
  completions = rng.integers(1, config.vocab_size, shape)
  return [jnp.asarray(x) for x in (ids, mask, completions)]


@pytest.mark.parametrize("name", ONE_EACH.values())
def test_every_pass_sees_the_same(name):
  """Decode steps with a cache that grows, and rows after a shared prefix."""
  config, graphdef, params = load(name)
  rows = rows_of(config)
  expected = np.asarray(whole(graphdef, params, *rows))
  np.testing.assert_allclose(
    decode(graphdef, params, *rows, cache_length=6), expected, atol=2e-5
  )
  np.testing.assert_allclose(
    after_prefix(graphdef, params, *rows), expected, atol=2e-5
  )


@pytest.mark.parametrize("name", ["gemma3_text", "mistral", "olmo3"])
def test_a_sliding_window_bounds_the_cache(name):
  config, graphdef, params = load(ONE_EACH[name])
  ids, mask, completions = rows_of(config)

  def caches():
    weights = cached_forward.by_layer(graphdef, params)
    prompts = cached_forward.prefill(
      graphdef, weights, ids, mask, num_parts=1, dtype=jnp.float32
    )
    return prompts, kv_cache.empty_cache(prompts, len(completions), 100)

  prompts, cache = jax.eval_shape(caches)
  for i, window in enumerate(config.windows):
    of_prompts, own = (x.cache.keys[i].shape[2] for x in (prompts, cache))
    if window is None:
      assert (of_prompts, own) == (LENGTH, 100)
    else:
      assert (of_prompts, own) == (window - 1, window)
  assert cache.length == 100


@pytest.mark.parametrize(
  "name", ["gemma3_linear", "olmo3_layer_types", "qwen3_moe_plain"]
)
def test_devices_change_nothing(name):
  _, graphdef, params = load(name)
  golden = np.load(FOLDER / name / "golden.npz")
  batch = [
    np.repeat(golden[k].astype(np.int32)[:2], 2, axis=0)
    for k in ("token_ids", "mask")
  ]
  (expected, _), whole_gradient = cost_and_gradient(graphdef, params, *batch)
  mesh = sharding.make_mesh(fsdp=2, tensor=2, context=2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, decoder.shardings(mesh, params))
    (cost, _), cut_gradient = cost_and_gradient(
      graphdef, placed, *sharding.put_batch(mesh, batch)
    )
  np.testing.assert_allclose(cost, expected, atol=1e-6)
  networks.assert_close(cut_gradient, whole_gradient, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read_again(name, tmp_path):
  config, _, params = load(name)
  settings = hf_config.to_hugging_face(config, eos_ids=(1,), pad_id=0)
  hf_export.save(tmp_path, params, config, config_json=settings)
  assert hf_config.from_hugging_face(settings) == config
  again = hf_weights.load(tmp_path, decoder.make(config)[1], config)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  theirs = safetensors.numpy.load_file(FOLDER / name / "model.safetensors")
  ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert ours.keys() == theirs.keys()
  for key, tensor in theirs.items():
    np.testing.assert_array_equal(ours[key], tensor.astype(np.float32))
