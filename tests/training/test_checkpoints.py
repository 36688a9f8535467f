import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import sharding
from distil_jax.training import checkpoints


@pytest.fixture
def directory(tmp_path):
  state = {"params": {"w": jnp.arange(6.0)}, "step": jnp.int32(3)}
  with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
    saved.save(3, state, {"note": "x"})
  return tmp_path


def read(directory, size):
  template = checkpoints.template({"w": jnp.zeros(size)})
  with checkpoints.Checkpoints(directory) as saved:
    return saved.read_params(3, template)


@pytest.mark.parametrize("part", ["state", "notes"])
def test_a_checkpoint_that_lacks_a_part_is_named(directory, part):
  shutil.rmtree(directory / "3" / part)
  state = {"params": {"w": jnp.zeros(6)}, "step": jnp.int32(0)}
  template = checkpoints.template(state)
  with checkpoints.Checkpoints(directory, keep=2) as saved:

    def read_all():
      saved.notes(3)
      saved.restore(3, template)

    with pytest.raises(checkpoints.CheckpointError, match=f"{directory}/3 was"):
      read_all()


def test_parameters_of_another_model_are_refused(directory):
  assert read(directory, 6)["w"].tolist() == [0, 1, 2, 3, 4, 5]
  for size in (4, 8):
    with pytest.raises(checkpoints.CheckpointError, match="another model"):
      read(directory, size)


def test_truncated_arrays_are_named(directory):
  files = [p for p in (directory / "3" / "state").rglob("*") if p.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:-20])
  with pytest.raises(checkpoints.CheckpointError, match="is damaged"):
    read(directory, 6)


def test_notes_come_back_without_the_layout(directory):
  with checkpoints.Checkpoints(directory) as saved:
    assert saved.notes(3) == {"note": "x"}


def test_a_newer_layout_is_refused(directory, monkeypatch):
  version = checkpoints.LAYOUT_VERSION + 1
  monkeypatch.setattr(checkpoints, "LAYOUT_VERSION", version)
  with checkpoints.Checkpoints(directory, keep=2) as saved:
    saved.save(4, {"params": {"w": jnp.zeros(6)}}, {"note": "new"})
  monkeypatch.undo()
  template = checkpoints.template({"w": jnp.zeros(6)})
  with checkpoints.Checkpoints(directory) as saved:
    for read_step in (
      lambda: saved.notes(4),
      lambda: saved.restore(4, {"params": template}),
      lambda: saved.read_params(4, template),
    ):
      with pytest.raises(
        checkpoints.CheckpointError,
        match=rf"4 has layout version {version}, .* up to {version - 1}",
      ):
        read_step()


def on_mesh(num_devices, value=None):
  """A matrix cut both ways over the first devices, or its template."""
  mesh = sharding.make_mesh(
    1,
    max(num_devices // 2, 1),
    tensor=min(num_devices, 2),
    devices=jax.devices()[:num_devices],
  )
  place = sharding.sharding(mesh, "embed", "vocab")
  if value is not None:
    return jax.device_put(value, place)
  return jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)


def test_a_checkpoint_goes_from_mesh_to_mesh(tmp_path):
  """From 8 devices to 2, to 1 and back."""
  value = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
  sizes = (8, 2, 1, 8)
  state = {"w": on_mesh(8, value)}
  for step, num_devices in enumerate(sizes):
    with checkpoints.Checkpoints(tmp_path, keep=1) as saved:
      if step:
        template = {"w": on_mesh(num_devices)}
        state = saved.restore(step - 1, template)
        assert len(state["w"].sharding.device_set) == num_devices
      np.testing.assert_array_equal(state["w"], value)
      saved.save(step, state, {})
