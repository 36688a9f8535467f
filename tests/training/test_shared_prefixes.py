"""A teacher whose prompts are read in two parts is the same teacher."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.data import padding
from distil_jax.models import sharding
from distil_jax.objectives import scoring, teachers
from distil_jax.training import build_step, train_state
from tests import networks
from tests.networks import assert_close, distance

SGD = optax.sgd(0.3)
FROZEN = config.TeacherConfig(parameters="frozen")
DISTIL = config.DistilConfig(chunk_size=2)
# Of prefixes of two rows each, and of what follows them.
LENGTHS, RESTS = (3, 0, 5, 2), (1, 3, 2, 4, 4, 1, 2, 3)


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3)


@pytest.fixture(scope="module")
def teacher(network):
  return networks.random_params(network.params, seed=4)


def batches(seed=3):
  """The same batch twice: with whole teacher's prompts, and with split ones."""
  rng = np.random.default_rng(seed)
  begins, rests = (
    [rng.integers(1, networks.VOCAB_SIZE, n).tolist() for n in lengths]
    for lengths in (LENGTHS, RESTS)
  )
  whole = [begins[i // 2] + rest for i, rest in enumerate(rests)]
  arrays = [
    [jnp.asarray(x) for x in padding.pad_left(rows, length, networks.PAD)]
    for rows, length in ((whole, 9), (begins, 5), (rests, 4))
  ]
  batch = networks.random_batch(seed=seed)
  return (
    batch.replace(
      teacher_prompt_ids=arrays[0][0], teacher_prompt_mask=arrays[0][1]
    ),
    batch.replace(
      teacher_prefix_ids=arrays[1][0],
      teacher_prefix_mask=arrays[1][1],
      teacher_prompt_ids=arrays[2][0],
      teacher_prompt_mask=arrays[2][1],
    ),
  )


@pytest.fixture(scope="module")
def both():
  return batches()


def teacher_states(network, batch):
  prefix = None
  if batch.teacher_prefix_ids is not None:
    prefix = (batch.teacher_prefix_ids, batch.teacher_prefix_mask)
  score = functools.partial(
    scoring.completion_hidden_states, graphdef=network.graphdef
  )
  return jax.jit(score)(
    network.params,
    batch.teacher_prompt_ids,
    batch.teacher_prompt_mask,
    batch.completion_ids,
    batch.completion_mask,
    prefix=prefix,
  )


def test_each_token_has_seen_prefix_and_rest(network, both):
  whole, split = (np.asarray(teacher_states(network, b)) for b in both)
  counts = np.asarray(both[0].completion_mask) == 1
  np.testing.assert_allclose(split[counts], whole[counts], atol=1e-5)
  assert np.isfinite(split).all()
  # The prefix is read: without it the states are others, where it is not empty.
  bare = both[1].replace(teacher_prefix_ids=None, teacher_prefix_mask=None)
  gaps = np.abs(np.asarray(teacher_states(network, bare)) - whole).max(axis=2)
  has_prefix = np.repeat(LENGTHS, 2) > 0
  assert gaps[has_prefix][counts[has_prefix]].min() > 1e-2
  assert gaps[~has_prefix][counts[~has_prefix]].max() < 1e-5


def test_garbage_at_the_padding_of_a_prefix_changes_nothing(network, both):
  _, split = both
  garbage = np.random.default_rng(6).integers(0, 10**6, (4, 5))
  counted = split.teacher_prefix_mask == 1
  dirty = split.replace(
    teacher_prefix_ids=jnp.where(counted, split.teacher_prefix_ids, garbage)
  )
  np.testing.assert_array_equal(
    teacher_states(network, dirty), teacher_states(network, split)
  )


def test_a_prefix_in_bfloat16_stays_near_float32(network, both):
  half = networks.network(seed=3, compute_dtype="bfloat16")
  states = teacher_states(half, both[1])
  assert states.dtype == jnp.bfloat16
  exact = np.asarray(teacher_states(network, both[0]))
  counts = np.asarray(both[0].completion_mask) == 1
  gap = np.abs(np.asarray(states, np.float32) - exact)[counts]
  assert gap.max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_a_prefix_has_a_gradient(remat, both):
  network = networks.network(seed=3, remat=remat)
  shape = (*both[0].completion_ids.shape, network.config.width)
  direction = jax.random.normal(jax.random.key(0), shape)
  direction *= both[0].completion_mask[..., None]

  def gradient(batch):
    def total(params):
      states = teacher_states(
        networks.Network(network.config, network.graphdef, params), batch
      )
      return jnp.sum(states * direction)

    return jax.jit(jax.grad(total))(network.params)

  whole, split = map(gradient, both)
  assert distance(whole, jax.tree.map(np.zeros_like, whole)) > 1
  assert_close(split, whole, atol=5e-5)


def step_of(network, objective, teacher=FROZEN, micro_batch_size=None):
  return build_step.train_step(
    objective,
    teacher,
    graphdef=network.graphdef,
    optimizer=SGD,
    group_size=4,
    num_sequences=8,
    micro_batch_size=micro_batch_size,
  )


def state_of(params, teacher):
  state = train_state.init_state(
    params, optimizer=SGD, keeps_teacher=False, seed=0
  )
  return state.replace(teacher_params=teacher)


LISTED = config.DistilConfig(
  local_cost="forward_cross_entropy", cost="cross_entropy", chunk_size=2
)
STEPS = {
  "whole": (DISTIL, FROZEN, None),
  "half a group": (DISTIL, FROZEN, 2),
  "own pass for credit": (config.DistilConfig(differential=True), FROZEN, 4),
  "trust region": (
    DISTIL,
    config.TeacherConfig(parameters="trust_region"),
    None,
  ),
  "samples": (
    LISTED,
    config.TeacherConfig(parameters="frozen", access="samples", num_samples=3),
    2,
  ),
  "top k": (
    LISTED,
    config.TeacherConfig(parameters="frozen", access="top_k", top_k=3),
    4,
  ),
}


@pytest.mark.parametrize("kind", STEPS)
def test_a_step_learns_the_same(network, teacher, both, kind):
  objective, settings, micro_batch_size = STEPS[kind]
  step = jax.jit(step_of(network, objective, settings, micro_batch_size))
  state = state_of(network.params, teacher)
  (whole, expected), (split, found) = (step(state, batch) for batch in both)
  assert distance(whole.params, network.params) > 1e-2
  assert_close(split.params, whole.params)
  assert_close(found, expected)


def test_lists_of_a_teacher_are_the_same(network, teacher, both):
  keys = jax.random.split(jax.random.key(0), 8)
  ask = functools.partial(
    teachers.ask_teacher,
    network=teachers.Network(network.graphdef),
    kind="top_k",
    size=4,
  )
  whole, split = (
    jax.jit(ask)(network.params, teacher, batch, keys) for batch in both
  )
  counts = np.asarray(both[0].completion_mask) == 1
  np.testing.assert_array_equal(split[0][counts], whole[0][counts])
  np.testing.assert_allclose(split[1][counts], whole[1][counts], atol=2e-5)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)])
def test_a_sharded_step_is_that_of_one_device(network, teacher, both, sizes):
  """Four parts of two rows, each with its prefix."""
  step = step_of(network, DISTIL)
  expected, metrics = jax.jit(step)(state_of(network.params, teacher), both[1])
  mesh = sharding.make_mesh(*sizes)
  with jax.set_mesh(mesh):
    state = state_of(network.params, teacher)
    places = train_state.state_shardings(state, mesh, SGD)
    state = jax.device_put(state, places)
    batch = sharding.put_batch(mesh, both[1])
    found, same = jax.jit(step, out_shardings=(places, None))(state, batch)
  assert_close(found.params, expected.params)
  assert_close(same, metrics)


def test_fewer_tokens_are_computed():
  """One prefix of 96 and eight rests of 32 in place of eight prompts of 128."""
  network = networks.network(num_layers=1, width=64, mlp_size=256)
  sizes = {"prefix": (1, 96), "rest": (8, 32), "whole": (8, 128)}
  arrays = {k: jnp.ones(shape, jnp.int32) for k, shape in sizes.items()}
  completions = (jnp.ones((8, 16), jnp.int32),) * 2

  def flops(prompt, prefix=None):
    score = functools.partial(
      scoring.completion_hidden_states, graphdef=network.graphdef
    )
    lowered = jax.jit(score).lower(
      network.params, prompt, prompt, *completions, prefix=prefix
    )
    return lowered.compile().cost_analysis()["flops"]

  share = flops(arrays["rest"], (arrays["prefix"],) * 2) / flops(
    arrays["whole"]
  )
  # Tokens: 96 + 8 * 48 of 8 * 144. With fewer pairs for attention.
  assert share <= 480 / 1152 < 0.42
