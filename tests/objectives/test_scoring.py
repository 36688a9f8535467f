"""Each completion token is scored by what stands before it, and only that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import layers
from distil_jax.objectives import scoring
from tests import networks


@functools.partial(jax.jit, static_argnames="graphdef")
def score(params, prompt_ids, prompt_mask, ids, mask, *, graphdef):
  hidden = scoring.completion_hidden_states(
    params, prompt_ids, prompt_mask, ids, mask, graphdef=graphdef
  )
  logits = hidden @ layers.unembedding(params)
  return jax.nn.log_softmax(logits, axis=-1)


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=1)


@pytest.fixture(scope="module")
def batch():
  return networks.random_batch(seed=1)


def score_batch(network, batch):
  return np.asarray(
    score(
      network.params,
      batch.prompt_ids,
      batch.prompt_mask,
      batch.completion_ids,
      batch.completion_mask,
      graphdef=network.graphdef,
    )
  )


def test_every_token_is_scored_after_its_own_prefix(network, batch):
  """One full pass for each prefix, in which the rest does not even stand."""
  arrays = [
    np.asarray(x)
    for x in (
      batch.prompt_ids,
      batch.prompt_mask,
      batch.completion_ids,
      batch.completion_mask,
    )
  ]
  size, length = arrays[2].shape
  prefixes, places = [], []
  for row in range(size):
    prompt_ids, prompt_mask, ids, mask = (x[row] for x in arrays)
    prompt = prompt_ids[prompt_mask == 1].tolist()
    for t in range(mask.sum()):
      prefixes.append(prompt + ids[:t].tolist())
      places.append((row, t))
  widest = max(map(len, prefixes))
  table = np.asarray([p + [0] * (widest - len(p)) for p in prefixes])
  lengths = np.asarray([len(p) for p in prefixes])
  counts = np.arange(widest) < lengths[:, None]
  full = networks.full_log_probs(
    network.params,
    jnp.asarray(table),
    jnp.asarray(counts, jnp.int32),
    graphdef=network.graphdef,
  )
  expected = np.asarray(full)[np.arange(len(prefixes)), lengths - 1]
  scored = score_batch(network, batch)
  assert scored.shape == (size, length, networks.VOCAB_SIZE)
  rows, columns = zip(*places, strict=True)
  np.testing.assert_allclose(scored[rows, columns], expected, atol=2e-5)


def test_garbage_at_padding_changes_no_score(network, batch):
  dirty = networks.with_garbage(batch, seed=5)
  counts = np.asarray(batch.completion_mask, bool)
  np.testing.assert_array_equal(
    score_batch(network, dirty)[counts], score_batch(network, batch)[counts]
  )


def test_shortest_prompt_and_completion(network):
  one = jnp.ones((1, 1), jnp.int32)
  first, second = jnp.asarray([[5]]), jnp.asarray([[9]])
  scored = score(
    network.params, first, one, second, one, graphdef=network.graphdef
  )
  full = networks.full_log_probs(
    network.params, first, one, graphdef=network.graphdef
  )
  np.testing.assert_allclose(scored, full, atol=1e-5)
