"""A mesh changes where arrays live, never what they hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.generation import random_keys, sampler
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import decoder, sharding
from distil_jax.models.parameter_axes import PARAMETER_AXES
from distil_jax.training import build_step, train_state
from tests import networks

GROUP_SIZE, LENGTH = 2, 6
TEMPERATURES = (0.0, 1.0) * 4  # of each problem
NUM_PROBLEMS, MICRO_BATCH_SIZE = 8, 8
MESHES = {
  "data_8": {"data": 8, "fsdp": 1},
  "data_2_fsdp_4": {"data": 2, "fsdp": 4},
  "data_2_fsdp_2_tensor_2": {"data": 2, "fsdp": 2, "tensor": 2},
  "fsdp_4_tensor_2": {"data": 1, "fsdp": 4, "tensor": 2},
  "fsdp_2_context_2_tensor_2": {"fsdp": 2, "context": 2, "tensor": 2},
  "data_2_fsdp_2_context_2": {"data": 2, "fsdp": 2, "context": 2},
}


def test_one_axis_takes_the_devices_that_are_left():
  assert dict(sharding.make_mesh(2, -1, 2).shape) == {
    "data": 2,
    "fsdp": 2,
    "context": 1,
    "tensor": 2,
  }
  assert sharding.batch_size_multiple(sharding.make_mesh(2, 2, 2)) == 4


@pytest.mark.parametrize("sizes", [(1, 3, 1), (3, -1, 1), (1, 4, 4)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
  with pytest.raises(ValueError, match=r"does not fit 8 devices") as error:
    sharding.make_mesh(*sizes)
  data, fsdp, tensor = sizes
  named = f"data={data}, fsdp={fsdp}, context=1, tensor={tensor}"
  assert named in str(error.value)


@pytest.mark.parametrize(
  ("changed", "mesh", "expected"),
  [
    ({"width": 18}, (1, 4, 2), "embed of size 18 over mesh.fsdp=4"),
    ({"vocab_size": 25}, (1, 4, 2), "vocab of size 25 over mesh.tensor=2"),
    ({"mlp_size": 21}, (1, 4, 2), "mlp of size 21 over mesh.tensor=2"),
    ({}, (1, 2, 4), "kv_heads of size 2 over mesh.tensor=4"),
    (
      {"width": 18},
      (1, 2, 1, 4),
      "embed of size 18 over mesh.fsdp=2 times mesh.context=4",
    ),
  ],
)
def test_sizes_that_cannot_be_cut_are_refused(changed, mesh, expected):
  _, template = decoder.make(networks.config_of(**changed))
  with pytest.raises(ValueError, match="choose a divisor") as error:
    decoder.shardings(sharding.make_mesh(*mesh), template)
  assert expected in str(error.value)


def test_every_parameter_has_a_place():
  for tie_embeddings in (True, False):
    _, template = decoder.make(
      networks.config_of(tie_embeddings=tie_embeddings)
    )
    mesh = sharding.make_mesh(1, 4, 2)
    places = decoder.shardings(mesh, template)
    assert jax.tree.structure(places) == jax.tree.structure(template)
    for place, leaf in zip(
      jax.tree.leaves(places), jax.tree.leaves(template), strict=True
    ):
      assert len(place.spec) == len(leaf.shape)


@pytest.mark.parametrize(
  "axes",
  [
    *PARAMETER_AXES.values(),
    ("batch", "sequence", "heads", "head_size"),
    ("batch", None, "kv_heads", "head_size"),
    ("batch", "sequence", None),
    ("batch", None, "embed_by_context"),
    ("copies", None, "embed"),
    ("batch", None, "vocab"),
    ("batch", None, "vocab_by_context"),
    ("copies", None, "vocab_by_all"),
  ],
  ids=str,
)
def test_no_array_is_cut_twice_by_one_mesh_axis(axes):
  found = [
    mesh_axis
    for name in sharding.partition_spec(axes)
    for mesh_axis in ((name,) if isinstance(name, str) else name or ())
  ]
  assert len(found) == len(set(found))
  # Which axes there are, JAX would say only where one is used.
  assert set(found) <= set(sharding.AXES)


def test_a_batch_goes_out_and_comes_back():
  mesh = sharding.make_mesh(2, 2, 2)
  rows = np.arange(24).reshape(8, 3)
  placed = sharding.put_batch(mesh, {"ids": rows})["ids"]
  assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(sharding.local_rows(placed), rows)
  # All devices are this process's.
  numbers = sharding.rows_of_process(placed, 0)
  np.testing.assert_array_equal(numbers, np.arange(8))


def test_context_joins_fsdp_without_moving_a_parameter():
  mesh = sharding.make_mesh(fsdp=2, context=2, tensor=2)
  joined = sharding.without_context(mesh)
  assert dict(joined.shape) == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
  for name, axes in PARAMETER_AXES.items():
    shape = (8,) * len(axes)
    before, after = (
      sharding.sharding(m, *axes).devices_indices_map(shape)
      for m in (mesh, joined)
    )
    assert before == after, name


def test_without_a_mesh_a_constraint_is_nothing():
  x = jnp.ones((3, 2))  # three rows fit no mesh of these tests
  assert sharding.constrain(x, "batch", None) is x


def whole_step(network, mesh):
  """Samples, greedily and not, and learns from the samples, on a mesh.

  Returns:
    the rollout, and state and metrics after the step.
  """
  optimizer = optax.chain(optax.trace(0.9), optax.sgd(0.3))
  rng = np.random.default_rng(0)
  num_sequences = NUM_PROBLEMS * GROUP_SIZE
  prompt_ids, prompt_mask = networks.random_prompts(
    rng, rng.integers(1, 5, NUM_PROBLEMS), 4
  )
  teacher_ids, teacher_mask = networks.random_prompts(
    rng, rng.integers(1, 8, num_sequences), 7
  )
  sample_mask = np.ones(num_sequences, np.int32)
  sample_mask[2] = 0

  def sample(params, ids, mask, identities):
    return sampler.generate(
      params,
      ids,
      mask,
      random_keys.sample_keys(jax.random.key(0), identities, GROUP_SIZE),
      SamplingParams(temperature=TEMPERATURES, max_tokens=LENGTH),
      graphdef=network.graphdef,
      eos_ids=(3, 11),
      pad_id=networks.PAD,
    )

  step = build_step.train_step(
    config.DistilConfig(
      baseline="leave_one_out", reward_weight=1.0, chunk_size=2
    ),
    config.TeacherConfig(parameters="ema", ema_rate=0.5),
    graphdef=network.graphdef,
    optimizer=optimizer,
    group_size=GROUP_SIZE,
    num_sequences=num_sequences,
    micro_batch_size=MICRO_BATCH_SIZE,
  )
  init = functools.partial(
    train_state.init_state, optimizer=optimizer, keeps_teacher=True, seed=0
  )
  with jax.set_mesh(mesh):
    places = train_state.state_shardings(
      jax.eval_shape(init, network.params), mesh, optimizer
    )
    state = jax.jit(init, out_shardings=places)(network.params)
    put = functools.partial(sharding.put_batch, mesh)
    sampled = jax.jit(sample, out_shardings=sharding.sharding(mesh, "batch"))(
      state.params,
      *put(
        (
          prompt_ids,
          prompt_mask,
          random_keys.identities([4, 7, 9, 9, 1, 2, 3, 5]),
        )
      ),
    )
    batch = networks.TrainBatch(
      prompt_ids=np.repeat(prompt_ids, GROUP_SIZE, axis=0),
      prompt_mask=np.repeat(prompt_mask, GROUP_SIZE, axis=0),
      teacher_prompt_ids=teacher_ids,
      teacher_prompt_mask=teacher_mask,
      completion_ids=sharding.local_rows(sampled.completion_ids),
      completion_mask=sharding.local_rows(sampled.completion_mask),
      sample_mask=sample_mask,
      rewards=np.linspace(0, 1, num_sequences, dtype=np.float32),
      old_log_probs=sharding.local_rows(sampled.log_probs),
    )
    step_fn = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    state, metrics = step_fn(state, put(batch))
    state, metrics = step_fn(state, put(batch))
  assert step_fn._cache_size() == 1
  return sampled, state, metrics


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=5)


@pytest.fixture(scope="module")
def on_one_device(network):
  return whole_step(
    network, sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
  )


@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_a_sharded_step_is_that_of_one_device(network, on_one_device, sizes):
  mesh = sharding.make_mesh(**sizes)
  sampled, state, metrics = whole_step(network, mesh)
  expected, expected_state, expected_metrics = on_one_device
  ids = np.asarray(sampled.completion_ids)
  np.testing.assert_array_equal(ids, expected.completion_ids)
  np.testing.assert_array_equal(
    sampled.completion_mask, expected.completion_mask
  )
  np.testing.assert_allclose(sampled.log_probs, expected.log_probs, atol=1e-5)
  # Both samples of a problem are one where the most probable token is taken.
  pairs = ids.reshape(NUM_PROBLEMS, GROUP_SIZE, LENGTH)
  is_greedy = np.asarray(TEMPERATURES) == 0
  is_same = (pairs[:, 0] == pairs[:, 1]).all(axis=-1)
  assert is_same[is_greedy].all()
  assert not is_same[~is_greedy].all()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5
    ),
    (state, metrics),
    (expected_state, expected_metrics),
  )
  moves = jax.tree.map(
    lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(),
    expected_state.params,
    network.params,
  )
  assert min(jax.tree.leaves(moves)) > 1e-3

  # Each matrix is really cut, and so are teacher and momentum.
  num_parts = mesh.size // mesh.shape["data"]
  momentum = optax.tree_utils.tree_get(state.opt_state, "trace")
  for tree in (state.params, state.teacher_params, momentum):
    for name in ("query", "key", "value", "output", "gate", "up", "down"):
      leaf = tree["layers"][name]
      part = leaf.addressable_shards[0].data.size
      assert part * num_parts == leaf.size, name
    for name in ("embedding", "unembedding"):
      part = tree[name].addressable_shards[0].data.size
      assert part * num_parts == tree[name].size, name
