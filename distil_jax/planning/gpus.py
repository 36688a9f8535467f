"""Finds stand-ins for GPUs by name; no GPU is needed.

`8xH100`, `H100:8` and `H100-8` are eight GPUs of one host. JAX cannot compile
for a GPU that is not there, so CPU devices stand in: what a GPU needs is
estimated from the CPU's program, whose attention keeps more than a GPU's kernel
does.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from distil_jax.distributed import chip_specs
from distil_jax.planning.errors import PlanError

_NAME = re.compile(r"(?:(\d+) ?x ?)?([a-z0-9]+?)(?:[:-](\d+))?", re.IGNORECASE)


def parse(name: str) -> tuple[chip_specs.Chip, int] | None:
  """Returns the GPU and the number of them that a name stands for.

  Args:
    name: such as `H100`, `8xH100`, `H100:8` or `H100-8`, in any case.

  Returns:
    None if the name is not that of a GPU.

  Raises:
    PlanError: the number is 0, or stands there twice.
  """
  match = _NAME.fullmatch(name.strip())
  gpus = {c.name.lower(): c for c in chip_specs.CHIPS.values() if c.is_gpu}
  if match is None or match[2].lower() not in gpus:
    return None
  before, after = match[1], match[3]
  count = int(before or after or 1)
  if (before and after) or count == 0:
    raise PlanError(
      f"topology {name!r} is not of the form H100, 8xH100 or H100:8"
    )
  return gpus[match[2].lower()], count


def stand_ins(count: int) -> Sequence[Any]:
  """Returns CPU devices to compile for.

  Args:
    count: the number of devices; jax must not have been used with fewer.

  Raises:
    PlanError: this process has fewer devices already.
  """
  # It is an error where jax is in use, with enough devices perhaps.
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", count)
  found = jax.devices("cpu")
  if len(found) < count:
    raise PlanError(
      f"this process has {len(found)} CPU devices, and {count} are to stand in "
      f"for GPUs; set jax_num_cpu_devices={count} before jax is used"
    )
  return found[:count]
