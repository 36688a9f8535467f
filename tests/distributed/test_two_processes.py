"""Two processes sample what one samples, each its own problems."""

import contextlib

import jax
import numpy as np

from distil_jax.models import sharding
from tests import commands
from tests.distributed import sampling_process


def test_two_processes_sample_what_one_samples(tmp_path):
  address = f"127.0.0.1:{commands.free_port()}"
  program = ("-m", sampling_process.__name__)
  with contextlib.ExitStack() as started:
    children = [
      started.enter_context(
        commands.start(
          [address, i, tmp_path / f"{i}.npz"],
          tmp_path / "compiled",
          program,
          num_devices=2,
        )
      )
      for i in range(2)
    ]
    try:
      for child in children:
        _, said = child.communicate(timeout=300)
        assert child.returncode == 0, said[-3000:]
    finally:
      for child in children:
        child.kill()
  mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])
  one = sampling_process.sample(mesh, slice(None))
  parts = [np.load(tmp_path / f"{i}.npz") for i in range(2)]
  for name, expected in one.items():
    both = np.concatenate([part[name] for part in parts])
    np.testing.assert_array_equal(both, expected, err_msg=name)
  # Of failures alone, all of which one of the processes has.
  assert len(set(one["critiques"][:8])) > 4
  assert set(one["critiques"][8:]) == {""}
  # The tool has spoken to one of the processes alone.
  assert one["turns"][:8].max() > 1
  assert one["turns"][8:].max() == 1
  assert one["tokens"][0] == (one["episodes"] >= 0).sum()
  # All rows at once, on another mesh, are those of a few slots.
  assert (one["another mesh"] == one["few slots"]).all()
  for name in ("stop strings", "truncated"):
    assert (one[name] != one["few slots"]).any()
