"""What a benchmark ran on, and how it times things beside each other."""

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
  """Device, versions and commit, a line each."""
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
  """What the first device can hold; else what the host has free."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def seconds(
  functions: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, float]:
  """Median time of each function; they take turns, after a round to warm up.

  What disturbs the machine then disturbs all of them; only ratios are worth
  reading. A function that returns a float has timed itself.
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
  """Operations a second of one large matrix product in this dtype."""
  x = jnp.ones((size, size), dtype)
  product = jax.jit(lambda x: jnp.matmul(x, x)).lower(x).compile()
  measured = seconds({"product": lambda: product(x)}, rounds=rounds)
  return 2 * size**3 / measured["product"]
