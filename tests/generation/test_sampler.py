"""Sampling: what is stored, where it stops, and what its noise hangs on."""

import functools
import types
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.generation import random_keys, sampler
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import layers
from distil_jax.objectives import scoring
from distil_jax.ops import fused_statistics
from distil_jax.types import StopReason
from tests import networks

PAD, EOS = networks.PAD, (3, 11)
LENGTH = 6
NAMES = [40, 7, 19]
DEFAULTS = {"eos_ids": EOS, "pad_id": PAD}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_tokens")


@functools.partial(
  jax.jit, static_argnames=("max_tokens", "graphdef", "eos_ids", "pad_id")
)
def _generate(params, ids, mask, keys, numbers, *, max_tokens, **fixed):
  """One program for all temperatures, top-k, top-p and min-p."""
  sampling = types.SimpleNamespace(
    stop=(), max_tokens=max_tokens, arrays=lambda: numbers
  )
  return sampler.generate(params, ids, mask, keys, cast(Any, sampling), **fixed)


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=2)


@pytest.fixture(scope="module")
def prompts():
  rng = np.random.default_rng(6)
  return networks.random_prompts(rng, [2, 5, 3], 5)


def sample(network, prompts, names=NAMES, group_size=4, seed=0, **settings):
  ids, mask = (jnp.asarray(x) for x in prompts)
  keys = random_keys.sample_keys(
    jax.random.key(seed), random_keys.identities(names), group_size
  )
  chosen = {k: settings.pop(k) for k in SAMPLING if k in settings}
  sampling = SamplingParams(**{"max_tokens": LENGTH, **chosen})
  return _generate(
    network.params,
    ids,
    mask,
    keys,
    sampling.arrays(),
    max_tokens=sampling.max_tokens,
    graphdef=network.graphdef,
    **{**DEFAULTS, **settings},
  )


def grouped(rolled, group_size):
  """Completions with -1 at padding. Shape `[P, G, T]`."""
  ids = np.where(rolled.completion_mask, rolled.completion_ids, -1)
  return ids.reshape(-1, group_size, ids.shape[-1])


@functools.partial(jax.jit, static_argnames=("graphdef", "group_size"))
def scored(params, rolled, *, graphdef, group_size):
  hidden = scoring.completion_hidden_states(
    params,
    jnp.repeat(rolled.prompt_ids, group_size, axis=0),
    jnp.repeat(rolled.prompt_mask, group_size, axis=0),
    rolled.completion_ids,
    rolled.completion_mask,
    graphdef=graphdef,
  )
  return fused_statistics.token_log_probs(
    hidden,
    layers.unembedding(params),
    rolled.completion_ids,
    vocab_size=layers.num_tokens(graphdef, params),
  )[0]


SETTINGS = [
  {"temperature": 1.0},
  {"temperature": 0.7},
  {"temperature": 1.3, "top_k": 5},
  {"temperature": 0.7, "top_p": 0.8},
  {"temperature": 0.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sampler_is_scorer(network, prompts, settings):
  """Log-probabilities are the policy's own, whatever it was sampled with."""
  rolled = sample(network, prompts, **settings)
  again = scored(
    network.params, rolled, graphdef=network.graphdef, group_size=4
  )
  counts = np.asarray(rolled.completion_mask, bool)
  assert counts.sum() > LENGTH
  np.testing.assert_allclose(
    np.asarray(rolled.log_probs)[counts], np.asarray(again)[counts], atol=1e-4
  )


def test_padding_of_the_vocabulary_is_neither_drawn_nor_scored(prompts):
  """Near temperature 50 each of the entries would come as often as any."""
  padded = networks.network(seed=2, num_tokens=20)
  assert padded.config.vocab_size == 24
  rolled = sample(padded, prompts, temperature=50.0)
  counts = np.asarray(rolled.completion_mask, bool)
  ids = np.asarray(rolled.completion_ids)[counts]
  assert ids.max() < 20
  assert len(set(ids)) > 10
  again = scored(padded.params, rolled, graphdef=padded.graphdef, group_size=4)
  np.testing.assert_allclose(
    np.asarray(rolled.log_probs)[counts], np.asarray(again)[counts], atol=1e-4
  )
  # The network itself gives the padding some mass.
  whole = networks.network(seed=2)
  other = scored(whole.params, rolled, graphdef=whole.graphdef, group_size=4)
  assert (np.asarray(again - other)[counts] > 1e-3).any()


@pytest.mark.parametrize("settings", SETTINGS[:2], ids=str)
def test_a_completion_ends_with_its_first_end_token(network, prompts, settings):
  rolled = jax.tree.map(np.asarray, sample(network, prompts, **settings))
  assert set(rolled.stop_reasons) == {StopReason.EOS, StopReason.LENGTH}
  for ids, mask, log_probs, reason in zip(
    rolled.completion_ids,
    rolled.completion_mask,
    rolled.log_probs,
    rolled.stop_reasons,
    strict=True,
  ):
    size = mask.sum()
    assert size >= 1
    np.testing.assert_array_equal(mask, np.arange(LENGTH) < size)
    assert not np.isin(ids[: size - 1], EOS).any()
    assert np.isin(ids[size - 1], EOS) == (reason == StopReason.EOS)
    assert reason == StopReason.EOS or size == LENGTH
    assert (log_probs[:size] < 0).all()
    np.testing.assert_array_equal(ids[size:], PAD)
    np.testing.assert_array_equal(log_probs[size:], 0.0)


def test_prompts_come_back(network, prompts):
  rolled = sample(network, prompts)
  np.testing.assert_array_equal(rolled.prompt_ids, prompts[0])
  np.testing.assert_array_equal(rolled.prompt_mask, prompts[1])


def test_a_lower_limit_cuts_and_changes_nothing_else(network, prompts):
  whole = jax.tree.map(np.asarray, sample(network, prompts))
  lengths = whole.completion_mask.sum(axis=1)
  ends = (lengths < LENGTH) & (whole.stop_reasons == StopReason.EOS)
  limit = int(lengths[ends].max())  # so that one ends in the last column
  assert limit > 1
  for cut in (1, limit):
    part = sample(network, prompts, max_tokens=cut)
    assert part.completion_ids.shape == (12, cut)
    for name in ("completion_ids", "completion_mask"):
      np.testing.assert_array_equal(
        getattr(part, name), getattr(whole, name)[:, :cut]
      )
    np.testing.assert_allclose(
      part.log_probs, whole.log_probs[:, :cut], atol=1e-6
    )
    expected = np.where(
      (lengths <= cut) & (whole.stop_reasons == StopReason.EOS),
      StopReason.EOS,
      StopReason.LENGTH,
    )
    np.testing.assert_array_equal(part.stop_reasons, expected)


def test_everyone_ends_at_the_first_token(network, prompts):
  everything = tuple(range(networks.VOCAB_SIZE))
  rolled = sample(network, prompts, eos_ids=everything)
  np.testing.assert_array_equal(rolled.completion_mask.sum(axis=1), 1)
  np.testing.assert_array_equal(rolled.completion_mask[:, 0], 1)
  np.testing.assert_array_equal(rolled.stop_reasons, StopReason.EOS)
  np.testing.assert_array_equal(rolled.completion_ids[:, 1:], PAD)
  np.testing.assert_array_equal(rolled.log_probs[:, 1:], 0.0)


@pytest.fixture(scope="module")
def greedy(network, prompts):
  return jax.tree.map(np.asarray, sample(network, prompts, temperature=0.0))


def test_temperature_0_is_argmax_step_by_step(network, prompts, greedy):
  prompt_ids, prompt_mask = prompts
  width = prompt_ids.shape[1]
  ids = np.pad(prompt_ids, [(0, 0), (0, LENGTH)])
  mask = np.pad(prompt_mask, [(0, 0), (0, LENGTH)])
  is_alive = np.ones(len(ids), bool)
  for t in range(LENGTH):
    log_probs = networks.full_log_probs(
      network.params,
      jnp.asarray(ids),
      jnp.asarray(mask),
      graphdef=network.graphdef,
    )
    best = np.asarray(log_probs)[:, width + t - 1].argmax(axis=-1)
    ids[:, width + t] = np.where(is_alive, best, PAD)
    mask[:, width + t] = is_alive
    is_alive &= ~np.isin(best, EOS)
  for name, expected in (("completion_ids", ids), ("completion_mask", mask)):
    given = getattr(greedy, name).reshape(len(ids), 4, LENGTH)
    for sample_number in range(4):
      np.testing.assert_array_equal(
        given[:, sample_number], expected[:, width:]
      )


def test_an_end_token_can_be_the_first(network, prompts, greedy):
  first = int(greedy.completion_ids[0, 0])
  rolled = sample(network, prompts, temperature=0.0, eos_ids=(first,))
  np.testing.assert_array_equal(rolled.completion_mask[0].sum(), 1)
  assert rolled.completion_ids[0, 0] == first
  assert rolled.stop_reasons[0] == StopReason.EOS
  assert rolled.completion_mask.sum() > 12  # others went on


def test_top_k_of_1_is_greedy(network, prompts, greedy):
  rolled = sample(network, prompts, top_k=1)
  np.testing.assert_array_equal(rolled.completion_ids, greedy.completion_ids)
  np.testing.assert_allclose(rolled.log_probs, greedy.log_probs, atol=1e-6)


def test_a_sample_does_not_depend_on_its_company(network, prompts):
  """Same tokens in another order, a longer batch, a larger group."""
  ids, mask = prompts
  alone = grouped(sample(network, prompts), 4)

  order = [2, 0, 1]
  moved = (ids[order], mask[order])
  names = [NAMES[i] for i in order]
  np.testing.assert_array_equal(
    grouped(sample(network, moved, names), 4), alone[order]
  )
  # All else at once: two more problems, more samples, wider padding.
  rng = np.random.default_rng(9)
  more = networks.random_prompts(rng, [4, 1], 5)
  longer = tuple(
    np.pad(np.concatenate(pair), [(0, 0), (2, 0)])
    for pair in zip(more, prompts, strict=True)
  )
  larger = sample(network, longer, [1, 2, *NAMES], group_size=6)
  np.testing.assert_array_equal(grouped(larger, 6)[2:, :4], alone)


def test_another_key_gives_other_noise(network, prompts):
  first, again, other = (
    grouped(sample(network, prompts, seed=seed), 4) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any(axis=-1).all(axis=1).all()


def test_members_of_a_group_differ(network, prompts):
  for group in grouped(sample(network, prompts), 4):
    assert len(np.unique(group, axis=0)) > 1


def test_a_problem_that_comes_twice_gets_other_samples(network, prompts):
  ids, mask = (x[[0, 0, 1]] for x in prompts)
  twice = grouped(sample(network, (ids, mask), [40, 40, 7]), 4)
  assert (twice[0] != twice[1]).any()
  once = grouped(sample(network, prompts), 4)
  np.testing.assert_array_equal(twice[0], once[0])
  np.testing.assert_array_equal(twice[2], once[1])


def test_identities_count_what_came_before():
  np.testing.assert_array_equal(
    random_keys.identities([5, 9, 5, 5, 9]),
    [[5, 0], [9, 0], [5, 1], [5, 2], [9, 1]],
  )
  assert random_keys.identities([]).shape == (0, 2)


def test_keys_of_all_samples_differ():
  keys = random_keys.sample_keys(
    jax.random.key(0), random_keys.identities([0, 1, 1, 2**32 - 1]), 8
  )
  data = np.asarray(jax.random.key_data(keys)).reshape(32, -1)
  assert len(np.unique(data, axis=0)) == 32


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"),
  [(2.0, 6, None), (2.0, None, 0.7)],
)
def test_frequencies_are_the_probabilities(
  network, prompts, temperature, top_k, top_p
):
  """First tokens of many samples against the distribution by hand."""
  count = 4000
  one = tuple(x[:1] for x in prompts)
  rolled = sample(
    network,
    one,
    [40],
    group_size=count,
    max_tokens=1,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
  )
  log_probs = networks.full_log_probs(
    network.params, *map(jnp.asarray, one), graphdef=network.graphdef
  )
  weights = np.exp(np.asarray(log_probs)[0, -1] / temperature)
  probs = weights / weights.sum()
  order = np.argsort(-probs)
  if top_k:
    probs[order[top_k:]] = 0.0
  if top_p:
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= top_p]] = 0.0
  probs /= probs.sum()
  seen = np.bincount(
    np.asarray(rolled.completion_ids)[:, 0], minlength=networks.VOCAB_SIZE
  )
  np.testing.assert_array_equal(seen[probs == 0], 0)
  # Five standard deviations of a binomial count.
  deviation = np.sqrt(count * probs * (1 - probs))
  assert (np.abs(seen - count * probs) <= 5 * deviation + 1).all()
