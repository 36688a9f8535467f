"""`distil-jax` in a process of its own, as a user starts it."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import compiling

ROOT = pathlib.Path(__file__).resolve().parents[1]


def start(
  arguments: Sequence[str],
  compiled: pathlib.Path,
  program: Sequence[str] = ("-m", "distil_jax"),
) -> subprocess.Popen[str]:
  """Starts a command in the repository's root.

  Args:
    arguments: of the program.
    compiled: cache of compiled programs, shared to save time.
    program: what Python is to run.
  """
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PYTHONPATH": str(ROOT),
  }
  # One device, as on a user's machine, and not the eight of the tests.
  environment["XLA_FLAGS"] = compiling.QUICKLY
  return subprocess.Popen(
    [sys.executable, *program, *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(
  arguments: Sequence[str], compiled: pathlib.Path
) -> subprocess.CompletedProcess[str]:
  """Runs a command to its end."""
  with start(arguments, compiled) as process:
    try:
      out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
      process.kill()
      raise
  return subprocess.CompletedProcess(
    arguments, process.returncode, stdout=out, stderr=err
  )
