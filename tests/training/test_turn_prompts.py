"""A training step in which each turn has a teacher's prompt of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import config
from distil_jax.models import decoder, layers, sharding
from distil_jax.objectives.base import teacher_mask
from distil_jax.ops import advantages, credit
from distil_jax.training import build_step
from tests import networks, references
from tests.networks import assert_close, distance

GROUP_SIZE, NUM_TURNS = 4, 3
REWARD_WEIGHT = 0.5
FULL = {
  "local_cost": "reverse_kl",
  "cost": "kl",
  "future_weight": 4.0,
  "discount": 0.9,
  "baseline": "leave_one_out",
  "terminal_neutral": True,
}
OBJECTIVE = config.DistilConfig(
  **{
    **networks.PUBLISHED,
    **FULL,
    "chunk_size": 2,
    "reward_weight": REWARD_WEIGHT,
  }
)
# Of each row the turn of each token: 0, 1, 2; . is the environment's; turns
# that the teacher is told nothing of are written a, b, c for 0, 1, 2.
TURNS = ["0.1.2", "0", "00.", "0b", "a.11", "0.11c", "0b", "a.1"]


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3, num_layers=1)


@pytest.fixture(scope="module")
def teacher(network):
  return networks.random_params(network.params, seed=4)


@pytest.fixture(scope="module")
def batch():
  whole = networks.random_batch(seed=3)
  own, numbers = np.zeros((2, *whole.completion_mask.shape), np.int32)
  for row, text in enumerate(TURNS):
    for column, sign in enumerate(text):
      own[row, column] = sign != "."
      numbers[row, column] = int(sign) if sign.isdigit() else -1
  own *= np.asarray(whole.completion_mask)
  rng = np.random.default_rng(5)
  prompts = [
    networks.random_prompts(rng, [5, 1, 2, 7, 4, 6, 3, 7], 7)
    for _ in range(NUM_TURNS - 1)
  ]
  ids, mask = (
    np.stack(arrays, axis=1) for arrays in zip(*prompts, strict=True)
  )
  return whole.replace(
    student_mask=jnp.asarray(own),
    turn_numbers=jnp.asarray(numbers),
    later_prompt_ids=jnp.asarray(ids),
    later_prompt_mask=jnp.asarray(mask),
    old_log_probs=whole.old_log_probs * own,
  )


@functools.cache
def gradients_fn(graphdef, **sizes):
  made = build_step.gradients(
    OBJECTIVE,
    config.TeacherConfig(parameters="frozen"),
    graphdef=graphdef,
    group_size=GROUP_SIZE,
    num_sequences=8,
    **sizes,
  )
  return jax.jit(made)


def gradients_of(network, teacher, batch):
  """In slices, one for each group."""
  made = gradients_fn(network.graphdef, micro_batch_size=GROUP_SIZE)
  return made(network.params, teacher, batch, jax.random.key(0))


@functools.partial(jax.jit, static_argnames="graphdef")
def logits(params, ids, mask, batch, *, graphdef):
  """All of them, of whole sequences. `[B, T, V]`."""
  hidden = decoder.hidden_states(
    graphdef,
    params,
    jnp.concatenate([ids, batch.completion_ids], axis=1),
    jnp.concatenate([mask, batch.completion_mask], axis=1),
  )
  return hidden[:, ids.shape[1] - 1 : -1] @ layers.unembedding(params)


def logits_by_turn(network, teacher, batch):
  """A plain pass for each turn, of which its own tokens are kept."""
  prompts = [
    (batch.teacher_prompt_ids, batch.teacher_prompt_mask),
    *(
      (batch.later_prompt_ids[:, k], batch.later_prompt_mask[:, k])
      for k in range(NUM_TURNS - 1)
    ),
  ]
  passes = [
    logits(teacher, *prompt, batch, graphdef=network.graphdef)
    for prompt in prompts
  ]
  found = passes[0]
  for number, of_turn in enumerate(passes):
    is_its = (batch.turn_numbers == number)[..., None]
    found = jnp.where(is_its, of_turn, found)
  return found


def expected_loss(network, teacher, batch):
  """The reference over the tokens that are taught, and rewards over all."""
  expert = logits_by_turn(network, teacher, batch)
  own, taught = batch.student_mask, teacher_mask(batch)
  gains = advantages.group_advantages(
    batch.rewards,
    group_size=GROUP_SIZE,
    leave_one_out=True,
    normalize_std=True,
  )

  @jax.jit
  @jax.value_and_grad
  def loss(params):
    student = logits(
      params,
      batch.prompt_ids,
      batch.prompt_mask,
      batch,
      graphdef=network.graphdef,
    )
    value = references.distil(
      student,
      expert,
      batch.completion_ids,
      taught,
      **FULL,
      group_size=GROUP_SIZE,
    ).value
    chosen = jnp.take_along_axis(
      jax.nn.log_softmax(student), batch.completion_ids[..., None], -1
    )[..., 0]
    rewarded = jnp.sum(own * gains[:, None] * chosen) / jnp.sum(own)
    share = jnp.sum(taught) / jnp.sum(own)
    return share * value - REWARD_WEIGHT * rewarded

  return loss(network.params)


def test_each_turn_is_compared_with_the_teacher_of_its_feedback(
  network, teacher, batch
):
  """Credit crosses turns; to one without a teacher only rewards speak."""
  value, expected = expected_loss(network, teacher, batch)
  found, found_value, _ = gradients_of(network, teacher, batch)
  np.testing.assert_allclose(found_value, value, rtol=1e-5)
  assert_close(found, expected)


def test_devices_that_share_a_batch_change_nothing(network, teacher, batch):
  expected = gradients_of(network, teacher, batch)
  mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    places = decoder.shardings(mesh, network.params)
    found = gradients_fn(network.graphdef)(
      jax.device_put(network.params, places),
      jax.device_put(teacher, places),
      sharding.put_batch(mesh, batch),
      jax.random.key(0),
    )
  assert_close(found, expected)


def test_only_its_own_turn_reads_a_prompt(network, teacher, batch):
  """Padding, prompts of absent turns and of those not taught are not read."""
  expected = gradients_of(network, teacher, batch)
  numbers = np.asarray(batch.turn_numbers)
  taught = np.asarray(teacher_mask(batch)) == 1
  is_read = np.stack(
    [((numbers == k) & taught).any(axis=1) for k in range(1, NUM_TURNS)], axis=1
  )
  keep = is_read[..., None] & (np.asarray(batch.later_prompt_mask) == 1)
  rng = np.random.default_rng(9)
  garbage = rng.integers(1, networks.VOCAB_SIZE, keep.shape)
  dirty = networks.with_garbage(batch, seed=8).replace(
    later_prompt_ids=jnp.where(keep, batch.later_prompt_ids, garbage)
  )
  found = gradients_of(network, teacher, dirty)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  other = batch.replace(
    later_prompt_ids=jnp.where(keep, garbage, batch.later_prompt_ids)
  )
  found = gradients_of(network, teacher, other)
  assert distance(found[0], expected[0]) > 1e-4


def test_costs_of_later_turns_are_charged_to_earlier_ones_by_hand():
  """Two tokens, a message, one that is not taught, a message, and one more."""
  mask = jnp.asarray([[1, 1, 0, 0, 0, 1]])
  costs = jnp.asarray([[1.0, 2.0, 9.0, 7.0, 9.0, 4.0]])
  found = credit.future_costs(costs, mask, normalize=False)
  np.testing.assert_array_equal(found * mask, [[6, 4, 0, 0, 0, 0]])
