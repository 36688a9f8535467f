"""Compiles fast rather than well: tests compile much and compute little."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

_FLAGS = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  # The newer code generator of loops takes three times as long.
  "--xla_cpu_use_fusion_emitters=false",
  # The workers keep all cores busy; threads of one would only add to it.
  "--xla_cpu_parallel_codegen_split_count=1",
)
_KNOWN = "DISTIL_JAX_TEST_FLAGS"
_lowering = threading.local()  # has the `context` of a thread


def fast_compile_flags() -> str:
  """Returns the flags that make this version of XLA compile fast.

  XLA aborts a process that has an unknown flag, so a separate process tries
  them. Children of this process inherit the result.
  """
  if _KNOWN not in os.environ:
    are_known = _are_known(_FLAGS)
    known = _FLAGS if are_known else [x for x in _FLAGS if _are_known([x])]
    os.environ[_KNOWN] = " ".join(known)
  return os.environ[_KNOWN]


def _are_known(flags: Sequence[str]) -> bool:
  done = subprocess.run(
    [sys.executable, "-c", "import jax; jax.devices()"],
    env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
    stderr=subprocess.DEVNULL,
  )
  return done.returncode == 0


def shared_cache() -> dict[str, str]:
  """Returns variables that let processes share what one has compiled.

  Workers inherit these variables. The folder goes with the process that made
  it; one that `JAX_COMPILATION_CACHE_DIR` names already stays, so that a later
  session reads what this one compiles. Commands that may be killed while they
  write have folders of their own: what is half written stays for good.

  Returns:
    variables of the environment.
  """
  variable = "JAX_COMPILATION_CACHE_DIR"
  folder = os.environ.get(variable)
  if folder is None:
    folder = tempfile.mkdtemp(prefix="distil_jax_compiled_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return {variable: folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def share_lowering_contexts() -> None:
  """Lowers all programs of a thread in one MLIR context.

  JAX makes one for each program and loads all dialects into it, which is a
  fifth of all that a program of a single operation takes.
  """
  from jax._src.interpreters import mlir

  make_context = getattr(mlir, "make_ir_context", None)
  if make_context is None:  # private: another version may lack it
    return

  def shared_context() -> Any:
    if not hasattr(_lowering, "context"):
      _lowering.context = make_context()
    return _lowering.context

  mlir.make_ir_context = shared_context


def forget_lowering_context() -> None:
  """Lets a context go, which keeps the constants of all its programs."""
  _lowering.__dict__.clear()
