"""What the network may and may not see, and how it computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import decoder, layers, sharding
from tests import networks


@pytest.fixture(scope="module")
def network():
  return networks.network()


@functools.partial(jax.jit, static_argnames="graphdef")
def hidden_states(params, ids, mask, *, graphdef):
  return decoder.hidden_states(graphdef, params, ids, mask)


def run(network, ids, mask):
  ids, mask = (jnp.asarray(x, jnp.int32) for x in (ids, mask))
  hidden = hidden_states(network.params, ids, mask, graphdef=network.graphdef)
  return np.asarray(hidden)


def test_a_hidden_state_depends_on_its_past_alone(network):
  length = 7
  ids = jnp.arange(length)[None]  # each token once: its row is its column
  mask = jnp.ones_like(ids)
  direction = jax.random.normal(jax.random.key(0), (network.config.width,))

  @jax.jit
  @jax.jacrev
  def sensitivity(embedding):
    params = {**network.params, "embedding": embedding}
    hidden = decoder.hidden_states(network.graphdef, params, ids, mask)
    return hidden[0] @ direction

  by_row = np.asarray(sensitivity(network.params["embedding"]))
  size = np.abs(by_row[:, :length]).max(axis=-1)
  later = np.triu(np.ones((length, length), bool), k=1)
  np.testing.assert_array_equal(size[later], 0.0)
  assert size[~later].min() > 1e-4


def test_what_stands_at_padding_changes_nothing(network):
  rng = np.random.default_rng(0)
  mask = np.asarray(
    [[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 1, 1]]
  )
  ids = rng.integers(0, networks.VOCAB_SIZE, mask.shape)
  garbage = rng.integers(0, networks.VOCAB_SIZE, mask.shape)
  assert (garbage != ids)[mask == 0].any()
  counts = mask.astype(bool)
  clean = run(network, ids, mask)
  dirty = run(network, np.where(counts, ids, garbage), mask)
  np.testing.assert_array_equal(clean[counts], dirty[counts])
  changed = run(network, np.where(counts, garbage, ids), mask)
  assert np.abs(clean[counts] - changed[counts]).max() > 0.1


def test_padding_may_stand_anywhere(network):
  tokens = np.asarray([5, 3, 9, 1])
  masks = np.asarray(
    [[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1, 1]]
  )
  ids = np.full(masks.shape, 7)
  for row, mask in enumerate(masks):
    ids[row, mask == 1] = tokens
  padded = run(network, ids, masks)
  alone = run(network, tokens[None], np.ones((1, 4)))[0]
  for row, mask in enumerate(masks):
    np.testing.assert_allclose(padded[row, mask == 1], alone, atol=1e-5)


def test_a_cache_begins_with_the_tokens_wherever_they_stood(network):
  masks = jnp.asarray(
    [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
  )
  tokens = jnp.asarray([5, 3, 9])
  ids = np.full(masks.shape, 10**6)  # no token at all
  for row, mask in enumerate(np.asarray(masks[:3])):
    ids[row, mask == 1] = tokens
  read = jax.jit(functools.partial(decoder.read_prefix, network.graphdef))
  prefix = read(network.params, jnp.asarray(ids), masks)
  np.testing.assert_array_equal(prefix.lengths, [3, 3, 3, 0])
  cache = prefix.cache
  for array in (cache.key, cache.value):
    assert array.shape == (2, 4, 5, 2, 6)
    for row in (1, 2):
      np.testing.assert_allclose(array[:, row, :3], array[:, 0, :3], atol=1e-6)
    # What is never read is finite, that of an empty prompt too.
    assert np.isfinite(array).all()


def test_columns_are_cut_from_the_whole(network):
  mask = np.asarray([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1]])
  ids = np.random.default_rng(4).integers(0, networks.VOCAB_SIZE, mask.shape)
  part = jax.jit(
    functools.partial(
      decoder.hidden_states, network.graphdef, columns=slice(2, -1)
    )
  )(network.params, ids, mask)
  np.testing.assert_allclose(part, run(network, ids, mask)[:, 2:-1], atol=1e-6)


def test_packing_moves_nothing_between_devices(network):
  """Each device packs its own rows, and takes them back to their columns."""
  mesh = sharding.make_mesh(data=8, fsdp=1)
  mask = np.random.default_rng(5).integers(0, 2, (8, 6))
  arrays = sharding.put_batch(mesh, (mask + 3, mask))
  hidden_states = functools.partial(decoder.hidden_states, network.graphdef)

  with jax.set_mesh(mesh):
    lowered = jax.jit(hidden_states).lower(network.params, *arrays)
    text = lowered.compile().as_text()
    found = jax.jit(hidden_states)(network.params, *arrays)
  for collective in ("all-gather", "all-to-all", "collective-permute"):
    assert collective not in text
  counts = mask == 1
  expected = run(network, *map(np.asarray, (mask + 3, mask)))
  np.testing.assert_allclose(
    np.asarray(found)[counts], expected[counts], atol=1e-5
  )


def test_sequences_of_a_batch_do_not_meet(network):
  rng = np.random.default_rng(1)
  ids = rng.integers(0, networks.VOCAB_SIZE, (4, 6))
  mask = np.ones_like(ids)
  together = run(network, ids, mask)
  others = ids.copy()
  others[1:] = rng.integers(0, networks.VOCAB_SIZE, (3, 6))
  np.testing.assert_array_equal(run(network, others, mask)[0], together[0])
  reversed_ = run(network, ids[::-1], mask)[::-1]
  np.testing.assert_allclose(reversed_, together, atol=1e-6)


def test_what_is_recomputed_changes_memory_but_neither_value_nor_gradient():
  rng = np.random.default_rng(2)
  # Long enough that attention's logits outweigh everything else.
  ids = jnp.asarray(rng.integers(0, networks.VOCAB_SIZE, (2, 96)))
  mask = jnp.ones((2, 96), jnp.int32).at[0, 0].set(0).at[1, -1].set(0)
  direction = jax.random.normal(jax.random.key(1), (2, 96, 16))

  def run(remat):
    network = networks.network(remat=remat)

    def loss(params):
      hidden = decoder.hidden_states(network.graphdef, params, ids, mask)
      return jnp.sum(hidden * direction)

    function = jax.jit(jax.value_and_grad(loss)).lower(network.params).compile()
    memory = function.memory_analysis().temp_size_in_bytes
    return memory, function(network.params)

  policies = ("none", "attention", "dots", "layer", "offload")
  memory, results = zip(*map(run, policies), strict=True)
  # CPUs have one memory, so that nothing is gained by moving there.
  assert memory[0] > memory[1] > memory[2] > memory[3] == memory[4]
  for found in results[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4),
      results[0],
      found,
    )


def test_the_gradient_does_not_grow_with_depth():
  def num_lines(num_layers):
    config = networks.config_of(num_layers=num_layers)
    graphdef, template = decoder.make(config)
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)

    def gradient(params, ids, mask):
      hidden = functools.partial(decoder.hidden_states, graphdef)
      return jax.grad(lambda p: jnp.sum(hidden(p, ids, mask)))(params)

    lowered = jax.jit(gradient).lower(template, ids, ids)
    return lowered.as_text().count("\n")

  assert num_lines(2) == num_lines(8)


def test_heads_of_a_group_share_their_keys_and_values(network):
  """As many key-value heads as heads, in equal pairs, are the same network."""
  spread = networks.with_own_keys(network)
  rng = np.random.default_rng(3)
  ids, mask = networks.random_prompts(rng, [1, 3, 5], 5)
  np.testing.assert_allclose(
    run(spread, ids, mask)[mask == 1],
    run(network, ids, mask)[mask == 1],
    atol=2e-5,
  )


def test_bfloat16_stays_near_float32(network):
  half = networks.network(compute_dtype="bfloat16")
  rng = np.random.default_rng(3)
  ids, mask = networks.random_prompts(rng, [1, 3, 5], 5)
  exact = run(network, ids, mask)[mask == 1]
  rounded = run(half, ids, mask)
  assert rounded.dtype == jnp.bfloat16
  # Eight bits of mantissa through two layers: a few hundredths of the scale.
  gap = np.abs(np.asarray(rounded, np.float32)[mask == 1] - exact)
  assert gap.max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_random_parameters_have_the_shapes_of_the_template(tie_embeddings):
  config = networks.config_of(tie_embeddings=tie_embeddings, num_layers=3)
  _, template = decoder.make(config)
  init = jax.jit(functools.partial(decoder.init, config))
  params = init(jax.random.key(0))
  assert jax.tree.structure(params) == jax.tree.structure(template)
  jax.tree.map(
    lambda p, t: np.testing.assert_equal(
      (p.shape, p.dtype), (t.shape, t.dtype)
    ),
    params,
    template,
  )
  assert ("unembedding" in params) != tie_embeddings
  assert layers.unembedding(params).shape == (16, networks.VOCAB_SIZE)
  queries = np.asarray(params["layers"]["query"])
  assert np.abs(queries[0] - queries[1]).max() > 1e-3  # layers differ
