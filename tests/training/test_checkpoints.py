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


@pytest.fixture
def two_steps(tmp_path):
  """Returns the folder of checkpoints of steps 3 and 4, in a run's folder."""
  folder = tmp_path / "run" / "checkpoints"
  with checkpoints.Checkpoints(folder, keep=2) as saved:
    for step in (3, 4):
      state = {"params": {"w": jnp.full(600, step) + jnp.arange(600.0)}}
      saved.save(step, state, {"note": step})
  return folder


def largest_file(folder):
  files = [path for path in folder.rglob("*") if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def truncate(folder):
  path = largest_file(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_in(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def flip_number(folder):
  flip_in(largest_file(folder))


def flip_note(folder):
  path = folder / "notes" / "metadata"
  path.write_text(path.read_text().replace('"note": 4', '"note": 5'))


def flip_manifest(folder):
  flip_in(folder / "state" / "manifest.ocdbt")


def remove_arrays(folder):
  shutil.rmtree(folder / "state")


DAMAGES = (truncate, flip_number, flip_note, flip_manifest, remove_arrays)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_checkpoint_is_named_and_skipped(two_steps, damage):
  base = {"w": jnp.zeros(600)}
  assert checkpoints.last_params(two_steps, base)[0] == 4
  damage(two_steps / "4")
  with pytest.warns(UserWarning, match="skipped the checkpoint of step 4, us"):
    step, params = checkpoints.last_params(two_steps, base)
  assert step == 3
  np.testing.assert_array_equal(params["w"], 3 + np.arange(600.0))
  # Who only reads moves nothing.
  assert (two_steps / "4").is_dir()
  damage_again = pytest.warns(UserWarning, match="it is kept in .*damaged_che")
  with damage_again, checkpoints.Checkpoints(two_steps, keep=2) as saved:
    template = checkpoints.template({"params": base})
    found = saved.read_newest(
      lambda step: (saved.notes(step), saved.restore(step, template))
    )
    assert found[0] == 3
    assert saved.steps == [3]
    # The step is made again, and can be saved.
    saved.save(4, {"params": base}, {})
  assert (two_steps.parent / checkpoints.DAMAGED / "4.0").is_dir()
  assert checkpoints.last_params(two_steps, base)[0] == 4


def test_a_chosen_step_is_read_or_refused(two_steps):
  base = {"w": jnp.zeros(600)}
  step, params = checkpoints.last_params(two_steps, base, step=3)
  assert (step, float(params["w"][0])) == (3, 3.0)
  with pytest.raises(checkpoints.CheckpointError, match=r"there are: 3, 4$"):
    checkpoints.last_params(two_steps, base, step=2)
  with pytest.raises(checkpoints.CheckpointError, match=r"there are: none$"):
    checkpoints.last_params(two_steps / "nowhere", base, step=2)
  # It is not what was asked for, so no other is used.
  flip_number(two_steps / "4")
  with pytest.raises(checkpoints.DamagedError, match="4 was made"):
    checkpoints.last_params(two_steps, base, step=4)


def test_the_best_step_is_that_with_the_highest_accuracy(two_steps):
  base = {"w": jnp.zeros(600)}
  with pytest.raises(checkpoints.CheckpointError, match="has been evaluated"):
    checkpoints.last_params(two_steps, base, step="best")
  # There is no checkpoint of step 2 any more, and none of the base model.
  (two_steps.parent / "evaluations.jsonl").write_text(
    """{"step": 0, "avg@4": 0.9}
{"step": 2, "avg@4": 0.8}
{"step": 3, "avg@4": 0.7}
{"step": 4, "avg@2": 0.5}
"""
  )
  assert checkpoints.last_params(two_steps, base, step="best")[0] == 3


def test_error_lists_all_damaged_checkpoints(two_steps):
  for step in ("3", "4"):
    truncate(two_steps / step)
  with pytest.raises(checkpoints.CheckpointError) as caught:
    checkpoints.last_params(two_steps, {"w": jnp.zeros(600)})
  assert f"{two_steps}/3" in str(caught.value)
  assert f"{two_steps}/4" in str(caught.value)


def test_a_full_device_is_no_damage(two_steps):
  """A run that went on from an older step would lose those after it."""
  with checkpoints.Checkpoints(two_steps, keep=2) as saved:

    def read(step):
      with saved._reading(step):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(checkpoints.CheckpointError, match="4 cannot be read n"):
      saved.read_newest(read)
    assert saved.steps == [3, 4]


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
  largest = largest_file(directory / "3" / "state")
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
