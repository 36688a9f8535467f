"""`distil-jax` in a process of its own, as a user starts it."""

import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests import prefork, xla_settings
from tests.paths import ROOT

# Runs the command with few programs, each of which compiles for a second: slots
# are not given up, and all that is read of a turn has one length.
WITH_FEW_PROGRAMS = (
  "-c",
  """
import sys
from distil_jax.cli import main
from distil_jax.data import length_buckets, shared_prefixes
from distil_jax.generation import engine
engine.ladder = lambda width: [width]
shared_prefixes._NUM_WIDTHS = 1
length_buckets.SMALLEST = 10**6
sys.exit(main.main())
""",
)


def start(
  arguments: Sequence[str],
  compiled: pathlib.Path,
  program: Sequence[str] = ("-m", "distil_jax"),
  *,
  num_devices: int = 1,
  directory: pathlib.Path = ROOT,
  is_cold: bool = False,
) -> prefork.Program | subprocess.Popen[str]:
  """Starts a command in the repository's root, or elsewhere.

  Args:
    arguments: of the program.
    compiled: cache of compiled programs, shared to save time.
    program: what Python is to run.
    num_devices: that it sees.
    directory: where it runs.
    is_cold: it imports all that it needs itself, as a user's does.
  """
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  # One device, as on a user's machine, and not the eight of the tests.
  count = f"--xla_force_host_platform_device_count={num_devices}"
  environment["XLA_FLAGS"] = f"{xla_settings.fast_compile_flags()} {count}"
  command = [*program, *map(str, arguments)]
  if not is_cold:
    return prefork.start(command, environment, directory)
  return subprocess.Popen(
    [sys.executable, *command],
    cwd=directory,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def run(
  arguments: Sequence[str], compiled: pathlib.Path, **settings: Any
) -> subprocess.CompletedProcess[str]:
  """Runs a command to its end; see `start`."""
  with start(arguments, compiled, **settings) as process:
    try:
      out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
      process.kill()
      raise
  return subprocess.CompletedProcess(
    arguments, process.returncode, stdout=out, stderr=err
  )
