"""Two processes sample what one samples, each its own problems."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np

from distil_jax.models import sharding
from tests import commands
from tests.distributed import sampling_process


def test_two_processes_sample_what_one_samples(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  # The flags that stand are those of this process; the children add theirs.
  environment = {
    **os.environ,
    "XLA_FLAGS": "",
    "DISTIL_JAX_TEST_DEVICES": "2",
  }
  program = ("-m", sampling_process.__name__)
  children = [
    subprocess.Popen(
      [sys.executable, *program, address, str(i), tmp_path / f"{i}.npz"],
      env=environment,
      cwd=commands.ROOT,
      stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]
  for child in children:
    _, said = child.communicate(timeout=300)
    assert child.returncode == 0, said.decode()[-3000:]
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
  assert (one["few slots"] == one["plain"]).all()
  assert (one["another mesh"] == one["plain"]).all()
  assert (one["stop strings"] != one["plain"]).any()
