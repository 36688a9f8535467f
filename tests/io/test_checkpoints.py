import shutil

import jax.numpy as jnp
import pytest

from distil_jax.io import checkpoints, datasets


def iterator():
  return datasets.batches(range(8), batch_size=2, seed=0, num_epochs=None)


@pytest.fixture
def directory(tmp_path):
  state = {"params": {"w": jnp.arange(6.0)}, "step": jnp.int32(3)}
  with checkpoints.Checkpoints(tmp_path, keep=2) as saved:
    saved.save(3, state, iterator(), {"note": "x"})
  return tmp_path


def read(directory, size):
  template = checkpoints.template({"w": jnp.zeros(size)})
  with checkpoints.Checkpoints(directory) as saved:
    return saved.read_params(3, template)


@pytest.mark.parametrize("part", ["state", "data", "notes"])
def test_a_checkpoint_that_lacks_a_part_is_named(directory, part):
  shutil.rmtree(directory / "3" / part)
  state = {"params": {"w": jnp.zeros(6)}, "step": jnp.int32(0)}
  template = checkpoints.template(state)
  with checkpoints.Checkpoints(directory, keep=2) as saved:

    def read_all():
      saved.notes(3)
      saved.restore(3, template, iterator())

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
