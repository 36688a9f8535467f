"""How tokens are spread over experts, and what a step reports of it."""

import jax
import numpy as np
import pytest

from distil_jax.config import GRPOConfig, SDPOConfig, TeacherConfig
from distil_jax.models import decoder, experts
from distil_jax.training import build_step
from tests import networks
from tests.models import test_families

NAMES = ("experts/load", "experts/unused", "experts/entropy")


def test_loads_are_those_of_a_loop():
  rng = np.random.default_rng(0)
  num_experts, num_chosen = 5, 2
  x = rng.normal(size=(2, 4, 3))
  router = rng.normal(size=(3, num_experts))
  mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
  x[mask == 0] = 1e3  # what stands at padding counts for nothing
  counts, entropy = np.zeros(num_experts), 0.0
  for row, column in np.argwhere(mask == 1):
    logits = x[row, column] @ router
    probs = np.exp(logits) / np.sum(np.exp(logits))
    counts[np.argsort(-probs)[:num_chosen]] += 1
    entropy -= np.sum(probs * np.log(probs))
  found = jax.jit(experts.loads, static_argnums=2)(x, router, num_chosen, mask)
  np.testing.assert_array_equal(found.counts, counts)
  np.testing.assert_allclose(found.entropies, entropy, rtol=1e-5)
  assert found.num_tokens == 5


def test_metrics_by_hand():
  found = experts.Loads(
    counts=np.float32([[4, 0, 2, 2], [2, 2, 2, 2]]),
    entropies=np.float32([2, 4]),
    num_tokens=np.float32([4, 4]),
  )
  metrics = jax.jit(experts.load_metrics)(found)
  assert set(metrics) == set(NAMES)
  # 4 over a mean of 2 in one layer, 2 over 2 in the other.
  assert metrics["experts/load"] == 1.5
  assert metrics["experts/unused"] == 0.125
  assert metrics["experts/entropy"] == 0.75


def test_a_watched_pass_is_the_same_pass():
  config, graphdef, params = test_families.load("qwen3_moe_plain")
  rng = np.random.default_rng(0)
  ids, mask = networks.random_prompts(rng, [4, 9], 12)
  both = jax.jit(decoder.states_and_loads, static_argnums=0)
  hidden, loads = both(graphdef, params, ids, mask)
  plain = jax.jit(decoder.hidden_states, static_argnums=0)
  expected = plain(graphdef, params, ids, mask)
  counted = mask == 1
  np.testing.assert_allclose(
    np.asarray(hidden)[counted], np.asarray(expected)[counted], atol=1e-5
  )
  np.testing.assert_array_equal(loads.num_tokens, [13, 13])
  np.testing.assert_array_equal(
    np.sum(loads.counts, axis=-1), [13 * config.num_experts_per_token] * 2
  )
  # Padding on the other side, with other tokens in it.
  moved = np.roll(ids, -3, axis=1)
  moved[:, -3:] = 7
  _, again = both(graphdef, params, moved, np.roll(mask, -3, axis=1))
  np.testing.assert_array_equal(again.counts, loads.counts)


@pytest.mark.parametrize("objective", [SDPOConfig(), GRPOConfig()])
def test_a_step_reports_them_however_it_is_cut(objective):
  small = networks.network(num_experts=4, num_experts_per_token=2, num_layers=1)
  batch = networks.random_batch()

  def metrics(micro_batch_size):
    gradients = build_step.gradients(
      objective,
      TeacherConfig(parameters="frozen"),
      graphdef=small.graphdef,
      group_size=2,
      num_sequences=8,
      micro_batch_size=micro_batch_size,
    )
    made = jax.jit(gradients)(
      small.params, small.params, batch, jax.random.key(0)
    )
    return {name: float(made[2][name]) for name in NAMES}

  whole = metrics(None)
  assert whole == pytest.approx(metrics(4), rel=1e-6)
  ids, mask = (
    np.concatenate(parts, axis=1)
    for parts in (
      (batch.prompt_ids, batch.completion_ids),
      (batch.prompt_mask, batch.completion_mask),
    )
  )

  @jax.jit
  def of_one_pass(params):
    _, loads = decoder.states_and_loads(small.graphdef, params, ids, mask)
    return experts.load_metrics(loads)

  expected = {k: float(x) for k, x in of_one_pass(small.params).items()}
  assert whole == pytest.approx(expected, rel=1e-6)
  assert whole["experts/load"] > 1
