"""One token at a time sees what the pass over whole sequences sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import cached_forward, decoder, kv_cache
from tests import networks

GROUP_SIZE, NUM_STEPS, LENGTHS = 3, 4, [1, 3, 5]
# Of the first prompt nothing is left to be read beforehand.
HOMES = np.repeat(np.arange(3), GROUP_SIZE)


@pytest.fixture(scope="module")
def network():
  return networks.network()


@pytest.fixture(scope="module")
def case():
  """Ragged prompts and their completions."""
  rng = np.random.default_rng(3)
  ids, mask = networks.random_prompts(rng, LENGTHS, 5)
  shape = (len(ids), GROUP_SIZE, NUM_STEPS)
  return ids, mask, rng.integers(1, networks.VOCAB_SIZE, shape)


@functools.partial(
  jax.jit, static_argnames=("graphdef", "dtype", "cache_length")
)
def stepwise(
  params,
  ids,
  mask,
  newest,
  prompt_index,
  *,
  graphdef,
  dtype=None,
  cache_length=None,
):
  """Hidden states of samples in slots, one decoded token at a time.

  Args:
    newest: the tokens of each slot, the prompt's last one first. `[W, T]`.
    prompt_index: which prompt each reads. Shape `[W]`.
  """
  weights = cached_forward.by_layer(graphdef, params)
  dtype = dtype or weights["embedding"].dtype
  prompts = cached_forward.prefill(
    graphdef, weights, ids[:, :-1], mask[:, :-1], num_parts=1, dtype=dtype
  )
  width, length = newest.shape
  cache = kv_cache.empty_cache(prompts, width, cache_length or length)
  in_flight = kv_cache.assign_prompts(
    prompt_index[None],
    jnp.ones((1, width), bool),
    num_prompts=ids.shape[0],
    num_columns=GROUP_SIZE,
  )

  def one(cache, t):
    hidden, cache = cached_forward.decode(
      graphdef,
      weights,
      newest[None, :, t],
      jnp.full((1, width), t),
      prompt_index[None],
      in_flight,
      prompts,
      cache,
    )
    return cache, hidden[0]

  _, hidden = jax.lax.scan(one, cache, jnp.arange(length))
  return jnp.moveaxis(hidden, 0, 1)


def decoded(network, case, order=None, **settings):
  """`[W, T + 1, D]`, slots in the order of the samples."""
  ids, mask, completions = case
  newest = np.concatenate(
    [
      np.repeat(ids[:, -1:], GROUP_SIZE, axis=0),
      completions.reshape(-1, NUM_STEPS),
    ],
    axis=1,
  )
  order = np.arange(len(newest)) if order is None else np.asarray(order)
  hidden = stepwise(
    network.params,
    jnp.asarray(ids),
    jnp.asarray(mask),
    jnp.asarray(newest[order]),
    jnp.asarray(HOMES[order]),
    graphdef=network.graphdef,
    **settings,
  )
  return np.asarray(hidden)[np.argsort(order)]


def whole(network, case):
  ids, mask, completions = case
  flat = completions.reshape(-1, NUM_STEPS)
  both = np.concatenate([np.repeat(ids, GROUP_SIZE, 0), flat], axis=1)
  counts = np.concatenate(
    [np.repeat(mask, GROUP_SIZE, 0), np.ones_like(flat)], axis=1
  )
  hidden = jax.jit(decoder.hidden_states, static_argnums=0)(
    network.graphdef, network.params, jnp.asarray(both), jnp.asarray(counts)
  )
  return np.asarray(hidden)[:, ids.shape[1] - 1 :]


def test_decoding_sees_what_the_full_pass_sees(network, case):
  np.testing.assert_allclose(
    decoded(network, case), whole(network, case), atol=2e-5
  )


def test_slots_may_stand_in_any_order(network, case):
  order = [8, 0, 5, 3, 1, 7, 2, 6, 4]
  np.testing.assert_allclose(
    decoded(network, case, order), decoded(network, case), atol=1e-5
  )


def test_a_longer_cache_changes_nothing(network, case):
  np.testing.assert_allclose(
    decoded(network, case, cache_length=11), decoded(network, case), atol=1e-5
  )


def test_prompts_that_are_padded_with_garbage_read_the_same(network, case):
  ids, mask, completions = case
  rng = np.random.default_rng(0)
  garbage = rng.integers(1, networks.VOCAB_SIZE, ids.shape)
  dirty = (np.where(mask == 1, ids, garbage), mask, completions)
  np.testing.assert_array_equal(decoded(network, dirty), decoded(network, case))


def test_heads_of_a_group_share_their_keys_and_values(network, case):
  spread = networks.with_own_keys(network)
  np.testing.assert_allclose(
    decoded(spread, case), whole(network, case), atol=2e-5
  )


def test_bfloat16_stays_near_float32(network, case):
  half = networks.network(compute_dtype="bfloat16")
  exact = whole(network, case)
  rounded = decoded(half, case)
  assert rounded.dtype == jnp.bfloat16
  # Eight bits of mantissa through two layers: a few hundredths of the scale.
  gap = np.abs(np.asarray(rounded, np.float32) - exact)
  assert gap.max() < 0.1 * np.abs(exact).max()


def test_a_cache_in_bfloat16_is_less_exact_only(network, case):
  exact = whole(network, case)
  gap = np.abs(decoded(network, case, dtype="bfloat16") - exact).max()
  assert 1e-5 < gap < 0.1 * np.abs(exact).max()


def test_who_is_not_alive_takes_no_column():
  prompt_index = np.array([[1, 0, 1, 1, 0], [2, 2, 2, 0, 2]])
  is_alive = np.array([[1, 1, 0, 1, 1], [1, 0, 1, 0, 0]], bool)
  found = jax.jit(
    functools.partial(kv_cache.assign_prompts, num_prompts=3, num_columns=2)
  )(prompt_index, is_alive)
  np.testing.assert_array_equal(found.table_index[0], [2, 0, 6, 3, 1])
  np.testing.assert_array_equal(found.samples[0, :4], [1, 4, 0, 3])
  np.testing.assert_array_equal(found.table_index[1], [4, 6, 5, 6, 6])
  np.testing.assert_array_equal(found.samples[1, 4:], [0, 2])


resize_cache = jax.jit(kv_cache.resize_cache, static_argnums=2)


@pytest.mark.parametrize("length", [3, 4, 5, 9])
@pytest.mark.parametrize("column", [0, 2, 4])
def test_a_cache_keeps_its_newest_columns(length, column):
  """Column j holds the age of what was written there: 0 the newest."""
  positions = (column - 1 - np.arange(5)) % 5
  buffer = np.float32(
    np.broadcast_to(positions[:, None], (2, 1, 5, 1))
    + 10 * np.arange(2)[:, None, None, None]
  )
  cache = kv_cache.KVCache(
    cache=kv_cache.LayerCaches(keys=(buffer,), values=(buffer,)),
    write_index=np.int32(column),
    length=5,
    windows=(None,),
  )
  resized = resize_cache(cache, np.array([[1]]), length)
  kept = np.asarray(resized.cache.keys[0])[0, 0, :, 0]
  count = min(length, 5)
  newest = int(resized.write_index) - 1
  np.testing.assert_array_equal(
    kept[(newest - np.arange(count)) % length], 10 + np.arange(count)
  )
