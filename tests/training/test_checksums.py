import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import sharding
from distil_jax.training import checksums


def test_checksum_is_that_of_the_formula():
  found = checksums.checksums({"a": {"w": jnp.array([[1, 2], [3, 4]])}})
  assert found == {"a/w": f"int32:{1 + 3 * 2 + 5 * 3 + 7 * 4:08x}"}


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "int32", "uint32", "int8", "bool"]
)
def test_any_changed_or_moved_element_shows(dtype):
  value = (np.arange(6) % 2).astype(jnp.dtype(dtype)).reshape(2, 3)
  expected = checksums.checksums({"w": value})
  assert checksums.changed(expected, {"w": jnp.asarray(value)}) == []
  changed = value.copy()
  changed[1, 2] = changed[1, 2] == 0
  assert checksums.changed(expected, {"w": changed}) == ["w"]
  assert checksums.changed(expected, {"w": value[:, ::-1][::-1]}) == ["w"]


def test_other_types_and_names_are_left_out():
  expected = checksums.checksums({"w": jnp.ones(2)})
  assert checksums.changed(expected, {"w": jnp.zeros(2, jnp.bfloat16)}) == []
  assert checksums.changed(expected, {"v": jnp.zeros(2)}) == []


def test_checksum_does_not_depend_on_the_mesh():
  value = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
  mesh = sharding.make_mesh(1, 4, tensor=2, devices=jax.devices()[:8])
  placed = jax.device_put(value, sharding.sharding(mesh, "embed", "vocab"))
  assert checksums.checksums([placed]) == checksums.checksums([value])
