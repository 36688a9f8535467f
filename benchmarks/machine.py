"""Describes the machine of a benchmark, and times functions in turn."""

import os
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

import distil_jax
from distil_jax.analysis.comparison import study
from distil_jax.training.logging import run_info


def description() -> str:
  """Returns device, versions and commit, one line each."""
  revision = run_info.source_revision(pathlib.Path(distil_jax.__file__).parent)
  commit = "no commit"
  if revision:
    commit = revision["commit"] + (" (changed)" if revision["dirty"] else "")
  return "\n".join(
    [
      f"device: {study.device_name()}",
      f"jax {jax.__version__}, numpy {np.__version__}",
      f"commit: {commit}",
    ]
  )


def memory_bytes() -> int:
  """Returns the bytes of the first device, else the free ones of the host."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def seconds(
  functions: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, float]:
  """Returns the median time of each function, timed in turn after a warm-up.

  Whatever disturbs the machine then disturbs all of them, so only ratios are
  reliable. A function that returns a float has timed itself.
  """
  times = {name: [] for name in functions}
  for turn in range(rounds + 1):
    for name, function in functions.items():
      start = time.perf_counter()
      found = jax.block_until_ready(function())
      taken = time.perf_counter() - start
      if turn:
        times[name].append(found if isinstance(found, float) else taken)
  return {name: float(np.median(values)) for name, values in times.items()}


def product_rate(dtype: str, *, rounds: int, size: int = 4096) -> float:
  """Returns the operations per second of a large matrix product."""
  x = jnp.ones((size, size), dtype)
  product = jax.jit(lambda x: jnp.matmul(x, x)).lower(x).compile()
  measured = seconds({"product": lambda: product(x)}, rounds=rounds)
  return 2 * size**3 / measured["product"]
