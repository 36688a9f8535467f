"""Bytes on a chip: of shapes with shardings, and as compilers say them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from distil_jax.planning import memory

# As the compiler for TPUs says it.
REFUSAL = (
  "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in "
  "memory space hbm. Used 63.80G of 30.75G hbm. Exceeded hbm capacity by "
  "33.05G."
)


@pytest.fixture
def mesh():
  return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def shape(mesh, sizes, dtype, *axes):
  place = NamedSharding(mesh, PartitionSpec(*axes))
  return jax.ShapeDtypeStruct(sizes, dtype, sharding=place)


def test_trees_by_hand(mesh):
  tree = {
    "cut twice": shape(mesh, (16, 8), jnp.float32, "a", "b"),
    "cut once": shape(mesh, (16, 8), jnp.bfloat16, None, "b"),
    "everywhere": shape(mesh, (3,), jnp.int32),
    "nowhere": jax.ShapeDtypeStruct((5,), jnp.int8),
    "nothing": None,
  }
  assert memory.tree_bytes(tree) == 16 * 8 * 4 / 8 + 16 * 8 * 2 / 4 + 12 + 5


def test_keys_are_two_words(mesh):
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
  place = NamedSharding(mesh, PartitionSpec("a"))
  tree = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=place)
  assert memory.tree_bytes(tree) == 4 * 2 * 4


def test_program_by_its_compiler(mesh):
  x = shape(mesh, (64, 64), jnp.float32, "a", "b")
  add = jax.jit(lambda x, y: x + y, donate_argnums=0)
  compiled = add.lower(x, x).compile()
  found = memory.from_compiled(
    compiled, {"both": 2 * memory.tree_bytes(x)}, 100.0
  )
  assert found.arguments == found.arguments_by_hand == 2 * 64 * 64 * 4 / 8
  # The result takes the place of the first argument.
  assert found.peak == pytest.approx(100 + found.arguments, abs=64)


def test_refusal_says_what_would_be_needed():
  found = memory.from_refusal(RuntimeError(REFUSAL), {"state": 5.0}, 2**30)
  assert found is not None
  assert found.refused == 63.80 * 2**30
  assert found.peak == 64.80 * 2**30
  assert memory.from_refusal(RuntimeError("INTERNAL: broken"), {}, 0.0) is None
