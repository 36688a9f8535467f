"""Costs of programs: by hand, and of jitted functions that are known."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distil_jax.planning import costs, hlo, hlo_flops

BY_HAND = pathlib.Path(__file__).with_name("by_hand.hlo").read_text()


def test_loops_count_as_often_as_they_run():
  found = costs.count_costs(BY_HAND)
  assert found.flops == 3 * 5 * 2 * 8 * 4 * 4
  assert found.open_loops == frozenset()


def test_messages_by_kind_each_once():
  found = costs.count_costs(BY_HAND)
  block = 8 * 4 * 4
  assert found.by_kind() == {
    "all-reduce": costs.Messages(15, 15 * block),
    "collective-permute": costs.Messages(1, block),
    "all-gather": costs.Messages(1, 2 * block),
  }
  groups = {route.kind: route.group for route in found.messages}
  assert groups == {
    "all-reduce": (0, 2, 4, 6),
    "collective-permute": (1, 2),
    "all-gather": (0, 1),
  }


@pytest.mark.parametrize(
  ("groups", "expected"),
  [
    ("{{0,1},{2,3}}", (0, 1)),
    ("{}", ()),
    ("[4,2]<=[8]", (0, 1)),
    ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
    ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
    ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
    ("mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
  ],
)
def test_groups_in_all_their_forms(groups, expected):
  text = (
    "ENTRY %m (x: f32[4]) -> f32[4] {\n"
    "  %x = f32[4]{0} parameter(0)\n"
    "  ROOT %r = f32[4]{0} all-reduce(%x), channel_id=1, "
    f"replica_groups={groups}, use_global_device_ids=true, to_apply=%sum\n}}"
  )
  root = hlo.parse(text).computations["m"].root
  assert costs.group_of(root) == expected


def test_loop_that_data_end_runs_as_often_as_is_said():
  text = BY_HAND.replace(', backend_config={"known_trip_count":{"n":"3"}}', "")
  found = costs.count_costs(text, open_trips=7)
  assert found.flops == 7 * 5 * 2 * 8 * 4 * 4
  assert found.open_loops == {"outer"}


def test_memory_that_is_not_the_chips_costs_nothing():
  line = "f32[8,4]{1,0:T(8,128)S(1)}"
  near = costs.count_costs(BY_HAND.replace("f32[8,4]{1,0}", line))
  assert near.num_bytes < costs.count_costs(BY_HAND).num_bytes
  (array,) = hlo.arrays(line)
  assert array == hlo.Array("f32", (8, 4), space=1)


@pytest.mark.parametrize(
  ("dtype", "num_bytes"),
  [("f32", 40), ("bf16", 20), ("pred", 10), ("s4", 5), ("f8e4m3fn", 10)],
)
def test_bytes_of_types(dtype, num_bytes):
  (array,) = hlo.arrays(f"{dtype}[2,5]{{1,0}}")
  assert array.num_bytes == num_bytes


def convolution(text):
  program = f"ENTRY %m (x: f32[1]) -> f32[1] {{\n{text}\n}}"
  computation = hlo.parse(program).computations["m"]
  return hlo_flops.flops(computation, computation.root)


def test_product_as_convolution():
  found = convolution(
    "  %x = bf16[64,128]{1,0} parameter(0)\n"
    "  %w = bf16[128,32]{1,0} parameter(1)\n"
    "  ROOT %c = bf16[64,32]{1,0} convolution(%x, %w), dim_labels=bf_io->bf"
  )
  assert found == 2 * 64 * 32 * 128


def test_batched_product_as_dilated_convolution():
  # Batch axis of 8 as an axis of the window: only its diagonal is computed.
  found = convolution(
    "  %x = bf16[8,64,128]{2,1,0} parameter(0)\n"
    "  %w = bf16[8,128,32]{2,1,0} parameter(1)\n"
    "  ROOT %c = bf16[8,64,32]{2,1,0} convolution(%x, %w), "
    "window={size=8 stride=7 pad=0_0 lhs_dilate=8}, dim_labels=0bf_0io->0bf"
  )
  assert found == 8 * 2 * 64 * 32 * 128


def test_padding_is_not_computed():
  # A window of 3 over 5 columns: 13 of 15 products meet a column.
  found = convolution(
    "  %x = f32[1,5,2]{2,1,0} parameter(0)\n"
    "  %w = f32[3,2,7]{2,1,0} parameter(1)\n"
    "  ROOT %c = f32[1,5,7]{2,1,0} convolution(%x, %w), "
    "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
  )
  assert found == 2 * 13 * 2 * 7


def test_kernel_of_attention_visits_half_of_all_pairs():
  found = convolution(
    "  %q = bf16[2,16,1024,128]{3,2,1,0} parameter(0)\n"
    "  %k = bf16[2,8,1024,128]{3,2,1,0} parameter(1)\n"
    "  ROOT %splash = bf16[2,16,1024,128]{3,2,1,0} custom-call(%q, %k, %k), "
    'custom_call_target="tpu_custom_call", '
    'metadata={op_name="jit(f)/splash_mha_fwd_residuals"}'
  )
  assert found == 2 * (2 * 2 * 16 * 1024 * 1024 * 128) / 2


def test_other_kernels_are_named():
  text = BY_HAND.replace(
    "  ROOT %done",
    '  %k = f32[4]{0} custom-call(%x), custom_call_target="tpu_custom_call"\n'
    "  ROOT %done",
  )
  assert costs.count_costs(text).unknown_kernels == {"k"}


def of_function(function, *arguments, **settings):
  compiled = jax.jit(function, **settings).lower(*arguments).compile()
  return costs.count_costs(compiled.as_text())


def test_nested_scans_of_products():
  weights = jnp.ones((6, 64, 64))

  def layers(x, _):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)

  def function(x):
    return jax.lax.scan(lambda x, _: (layers(x, _)[0], None), x, length=11)[0]

  found = of_function(function, jnp.ones((32, 64)))
  assert found.flops == 11 * 6 * 2 * 32 * 64 * 64


def test_gradient_of_a_scan_has_twice_the_products_again():
  weights = jnp.ones((6, 64, 64))

  def loss(weights, x):
    y = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]
    return jnp.sum(y**2)

  found = of_function(
    jax.grad(loss, argnums=(0, 1)), weights, jnp.ones((32, 64))
  )
  assert found.flops == 3 * 6 * 2 * 32 * 64 * 64


def test_bytes_of_a_scan_are_those_of_its_slices():
  weights = jnp.ones((512, 64, 64))

  def function(x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  found = of_function(
    lambda weights, x: function(x), weights, jnp.ones((4, 64))
  )
  # Each step reads a slice, not the stack: else it were 512 times as much.
  assert weights.nbytes <= found.num_bytes < 6 * weights.nbytes


@pytest.fixture
def mesh():
  return jax.make_mesh(
    (2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )


def test_sums_over_devices_in_a_loop(mesh):
  """Each of 5 steps sums 16 x 32 floats over the 4 devices of an axis."""

  def step(x, _):
    return jax.lax.psum(x, "tensor") / 4, None

  function = jax.shard_map(
    lambda x: jax.lax.scan(step, x, length=5)[0],
    mesh=mesh,
    in_specs=PartitionSpec("data", "tensor"),
    out_specs=PartitionSpec("data", "tensor"),
    check_vma=False,
  )
  found = of_function(function, jnp.ones((32, 128)))
  assert found.by_kind() == {"all-reduce": costs.Messages(5, 5 * 16 * 32 * 4)}
  ((route, _),) = found.messages.items()
  assert route.group == (0, 1, 2, 3)


def test_gathered_weights_of_a_product(mesh):
  place = NamedSharding(mesh, PartitionSpec("tensor", None))
  rows = NamedSharding(mesh, PartitionSpec(("data", "tensor"), None))
  found = of_function(
    lambda x, w: x @ w,
    jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=rows),
    jax.ShapeDtypeStruct((256, 128), jnp.float32, sharding=place),
    out_shardings=rows,
  )
  assert found.flops == 2 * 64 * 256 * 128 / 8
  assert found.by_kind() == {"all-gather": costs.Messages(1, 256 * 128 * 4)}
