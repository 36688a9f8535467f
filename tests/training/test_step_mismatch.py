"""Sampler against training pass, as each step reports it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.generation import random_keys, sampler
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import sharding
from distil_jax.training import build_step, train_state
from tests import networks

GROUP_SIZE = 4
SGD = optax.sgd(0.3)
FROZEN = config.TeacherConfig(parameters="frozen")
NAMES = ("mismatch/mean", "mismatch/max", "mismatch/kl")


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3, num_layers=1)


@pytest.fixture(scope="module")
def teacher(network):
  return networks.random_params(network.params, seed=4)


@pytest.fixture(scope="module")
def sampled(network):
  """Sixteen sequences and what sampling them differs by, garbage around."""
  batch = networks.random_batch(seed=3)
  batch = jax.tree.map(lambda *x: jnp.concatenate(x), batch, batch)
  rng = np.random.default_rng(5)
  differences = rng.uniform(-0.4, 0.9, batch.completion_mask.shape)
  old = own_log_probs(network, batch) - differences
  batch = batch.replace(old_log_probs=jnp.asarray(old, jnp.float32))
  return networks.with_garbage(batch, seed=8), differences


def own_log_probs(network, batch):
  """Of the completions' tokens, from all logits."""
  ids = jnp.concatenate([batch.prompt_ids, batch.completion_ids], axis=1)
  mask = jnp.concatenate([batch.prompt_mask, batch.completion_mask], axis=1)
  table = networks.full_log_probs(
    network.params, ids, mask, graphdef=network.graphdef
  )[:, batch.prompt_ids.shape[1] - 1 : -1]
  return jnp.take_along_axis(table, batch.completion_ids[..., None], -1)[..., 0]


def by_hand(differences, mask):
  d = differences[np.asarray(mask) == 1]
  values = (np.mean(np.abs(d)), np.max(np.abs(d)), np.mean(np.exp(d) - 1 - d))
  return dict(zip(NAMES, values, strict=True))


def taught_tokens(batch):
  return batch.completion_mask * batch.sample_mask[:, None]


def metrics_of(
  network, teacher, batch, objective, asked=FROZEN, mesh=None, **sizes
):
  step = build_step.train_step(
    objective,
    asked,
    graphdef=network.graphdef,
    optimizer=SGD,
    group_size=GROUP_SIZE,
    num_sequences=batch.rewards.shape[0],
    **sizes,
  )

  def reports(state, batch):
    """Returns what is read here: without the rest it is compiled sooner."""
    metrics = step(state, batch)[1]
    return {
      name: value
      for name, value in metrics.items()
      if name.startswith("mismatch") or name == "importance"
    }

  state = train_state.init_state(
    network.params, optimizer=SGD, keeps_teacher=False, seed=0
  )
  state = state.replace(teacher_params=teacher)
  mesh = mesh or sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    places = train_state.state_shardings(state, mesh, SGD)
    placed = sharding.put_batch(mesh, batch)
    return jax.jit(reports)(jax.device_put(state, places), placed)


def assert_reported(metrics, expected):
  found = {k: v for k, v in metrics.items() if k.startswith("mismatch")}
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)


def distil(**settings):
  return config.DistilConfig(
    **{**networks.PUBLISHED, "chunk_size": 2, **settings}
  )


@pytest.mark.parametrize(
  ("objective", "asked", "counts_all"),
  [
    (distil(baseline="batch_mean"), FROZEN, False),
    (distil(reward_weight=1.0), FROZEN, True),
    (
      distil(),
      config.TeacherConfig(
        parameters="frozen", access="samples", num_samples=3
      ),
      False,
    ),
    (
      distil(),
      config.TeacherConfig(parameters="frozen", access="top_k", top_k=3),
      False,
    ),
    (config.SDPOConfig(top_k=6), FROZEN, False),
    (config.MiniLLMConfig(), FROZEN, False),
    (config.GRPOConfig(kl_weight=0.1), FROZEN, True),
  ],
  ids=["distil", "rewards", "samples", "top_k", "sdpo", "minillm", "grpo"],
)
def test_each_objective_reports_it(
  network, teacher, sampled, objective, asked, counts_all
):
  """In micro-batches that split groups, over the tokens that are learned."""
  batch, differences = sampled
  found = metrics_of(
    network, teacher, batch, objective, asked, micro_batch_size=2
  )
  mask = batch.completion_mask if counts_all else taught_tokens(batch)
  assert_reported(found, by_hand(differences, mask))


@pytest.mark.parametrize("size", [None, 8])
def test_eight_devices_report_the_same(network, teacher, sampled, size):
  batch, differences = sampled
  found = metrics_of(
    network,
    teacher,
    batch,
    distil(),
    mesh=sharding.make_mesh(8, 1, 1),
    micro_batch_size=size,
  )
  assert_reported(found, by_hand(differences, taught_tokens(batch)))


@pytest.mark.parametrize("kind", ["distil", "grpo"])
def test_of_mini_batches_only_the_first_is_on_policy(
  network, teacher, sampled, kind
):
  batch, differences = sampled
  objective, mask = distil(), taught_tokens(batch)
  if kind == "grpo":
    objective, mask = config.GRPOConfig(), batch.completion_mask
  first, rest = (
    by_hand(differences[part], mask[part]) for part in (slice(4), slice(4, 16))
  )
  assert all(abs(first[name] - rest[name]) > 1e-3 for name in NAMES)
  found = metrics_of(
    network,
    teacher,
    batch,
    objective,
    mini_batch_size=4,
    micro_batch_size=2,
  )
  assert_reported(found, first)
  assert "importance" in found


def test_demonstrations_have_none(network, teacher, sampled):
  nothing = jnp.zeros((16, 0), jnp.int32)
  batch = sampled[0].replace(
    teacher_prompt_ids=nothing, teacher_prompt_mask=nothing
  )
  for size in (None, 4):
    found = metrics_of(
      network, None, batch, config.SFTConfig(), micro_batch_size=size
    )
    assert_reported(found, {})


@pytest.mark.parametrize("kind", ["distil", "grpo"])
def test_what_was_just_sampled_differs_by_rounding(network, teacher, kind):
  rng = np.random.default_rng(6)
  ids, mask = networks.random_prompts(rng, [2, 5, 3, 4], 5)
  keys = random_keys.sample_keys(
    jax.random.key(0), random_keys.identities(range(4)), GROUP_SIZE
  )

  @jax.jit
  def sample(params, ids, mask):
    return sampler.generate(
      params,
      ids,
      mask,
      keys,
      SamplingParams(max_tokens=12),
      graphdef=network.graphdef,
      eos_ids=(3, 11),
      pad_id=networks.PAD,
    )

  rolled = sample(network.params, jnp.asarray(ids), jnp.asarray(mask))
  teacher_ids, teacher_mask = networks.random_prompts(rng, range(1, 17), 16)
  batch = networks.random_batch().replace(
    prompt_ids=jnp.repeat(ids, GROUP_SIZE, axis=0),
    prompt_mask=jnp.repeat(mask, GROUP_SIZE, axis=0),
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
    completion_ids=rolled.completion_ids,
    completion_mask=rolled.completion_mask,
    sample_mask=jnp.ones(16, jnp.int32),
    rewards=jnp.asarray(rng.integers(0, 2, 16), jnp.float32),
    old_log_probs=rolled.log_probs,
  )
  lengths = np.sum(rolled.completion_mask, axis=1)
  assert lengths.min() < lengths.max()
  objective = distil() if kind == "distil" else config.GRPOConfig()
  found = metrics_of(network, teacher, batch, objective)
  assert 0 < found["mismatch/mean"] <= found["mismatch/max"] < 1e-4
  assert abs(found["mismatch/kl"]) < 1e-8
