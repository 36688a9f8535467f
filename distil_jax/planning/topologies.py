"""Finds the devices of a TPU slice by its name; no TPU is needed.

`v5p:2x2x2` gives the shape of a slice in chips. `v5p-16` is Google Cloud's name
for the same slice: the number counts TensorCores on v4 and v5p, which have two
per chip, and chips on v5e and v6e.
"""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from distil_jax.distributed import chip_specs
from distil_jax.planning.errors import PlanError

# The usual shapes: https://docs.cloud.google.com/tpu/docs/v5p (and v4, v6e).
_SHAPES = {
  3: (
    (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8),
    (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 24),
  ),
  2: ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)),
}  # fmt: skip
# Chips along an axis from which its links close to a ring: whole cubes of 4
# (v4, v5p), or a whole pod of 16 (v5e, v6e).
_CUBE, _POD = 4, 16


@dataclasses.dataclass(frozen=True)
class Slice:
  """Describes chips of one kind that are connected by links.

  Attributes:
    chip: Peaks of each chip.
    shape: Chips along each axis of the network.
  """

  chip: chip_specs.Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def name(self) -> str:
    """Returns the name by shape, such as `v5p:2x2x2`."""
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def cloud_name(self) -> str:
    """Returns the name in Google Cloud, such as `v5p-16`."""
    return f"{self.chip.name}-{self.num_chips * self.chip.cores}"

  def links(self, axis: int) -> int:
    """Returns the links of a chip along an axis; two if they form a ring."""
    size = self.shape[axis]
    if self.chip.num_axes == 3:
      return 2 if all(n % _CUBE == 0 for n in self.shape) else 1
    return 2 if size == _POD else 1


def parse(name: str) -> Slice:
  """Returns the slice of a name such as `v5p:4x4x4` or `v5p-128`.

  Raises:
    PlanError: There is no such slice; names the nearest ones.
  """
  kind, colon, sizes = name.strip().lower().partition(":")
  if colon:
    chip = _tpu(kind)
    if not re.fullmatch(r"\d+(x\d+)*", sizes):
      raise PlanError(
        f"topology {name!r}: {sizes!r} is not of the form AxB or AxBxC; "
        + _known(chip)
      )
    shape = tuple(map(int, sizes.split("x")))
    return Slice(chip, _checked_shape(name, chip, shape))
  match = re.fullmatch(r"(.+)-(\d+)", kind)
  if not match:
    raise PlanError(
      f"topology {name!r} is none of the forms v5p:2x2x2, v5p-16 and 8xH100; "
      f"known chips: {', '.join(chip_specs.CHIPS)}"
    )
  # Google Cloud names slices of v5e in this way.
  chip = _tpu(match[1].replace("v5litepod", "v5e"))
  found = {
    math.prod(shape) * chip.cores: shape for shape in _SHAPES[chip.num_axes]
  }
  count = int(match[2])
  if count not in found:
    # As ratios, by which 16 chips are nearer to 32 than to 1.
    nearest = sorted(found, key=lambda n: abs(math.log((n + 1) / (count + 1))))
    raise PlanError(
      f"no slice {name}; nearest: "
      + ", ".join(f"{chip.name}-{n}" for n in sorted(nearest[:3]))
      + f"; another shape of the same chips: {chip.name}:"
      + "x".join("ABC"[: chip.num_axes])
    )
  return Slice(chip, found[count])


def devices(slice_: Slice) -> Sequence[Any]:
  """Returns devices to compile for; nothing can run on them.

  Raises:
    PlanError: libtpu is missing, or does not know the slice.
  """
  # Otherwise libtpu asks for the TPU machine that it runs on, and waits.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", slice_.cloud_name)
  # Nothing runs on the TPU, so several processes may load the compiler.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  settings: dict[str, Any] = {}
  if slice_.chip.cores > 1:
    # On a real slice, too, both cores of a chip are one device.
    settings["chip_config_name"] = "megacore"
  if slice_.chip.num_axes == 2 and slice_.num_chips == 1:
    settings["chips_per_host_bounds"] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(
      topology_name=slice_.name, platform="tpu", **settings
    )
  except (RuntimeError, ValueError) as error:
    if "not installed" in str(error):
      raise PlanError(_NO_LIBTPU) from error
    raise PlanError(
      f"libtpu cannot plan for {slice_.name}: {_first_line(error)}; "
      + _known(slice_.chip, slice_.num_chips)
    ) from error
  return found.devices


def use_cpu_only() -> None:
  """Keeps JAX from looking for accelerators; call it before JAX is used."""
  jax.config.update("jax_platforms", "cpu")


_NO_LIBTPU = (
  "planning for a TPU needs its compiler, libtpu, which is not installed: "
  "pip install 'jax[tpu]', or this package with its extra [plan] (Linux on "
  "x86-64; no TPU is needed)"
)


def _checked_shape(
  name: str, chip: chip_specs.Chip, shape: tuple[int, ...]
) -> tuple[int, ...]:
  if len(shape) != chip.num_axes or 0 in shape:
    raise PlanError(
      f"topology {name!r}: a slice of {chip.name} has {chip.num_axes} axes; "
      + _known(chip, math.prod(shape))
    )
  return shape


def _known(chip: chip_specs.Chip, num_chips: int | None = None) -> str:
  """Lists the usual shapes, or those with a similar number of chips."""
  shapes = list(_SHAPES[chip.num_axes])
  if num_chips:
    shapes.sort(key=lambda s: abs(math.log(math.prod(s) / num_chips)))
    shapes = sorted(shapes[:3], key=math.prod)
  named = (f"{chip.name}:{'x'.join(map(str, s))}" for s in shapes)
  return f"{'nearest' if num_chips else 'known'}: {', '.join(named)}"


def _tpus() -> list[str]:
  return [c.name for c in chip_specs.CHIPS.values() if c.num_axes]


def _tpu(kind: str) -> chip_specs.Chip:
  if kind not in _tpus():
    near = difflib.get_close_matches(kind, _tpus(), n=2, cutoff=0.3)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    raise PlanError(
      f"no TPU {kind!r} is known; {hint}known: {', '.join(_tpus())}"
    )
  return chip_specs.CHIPS[kind]


def _first_line(error: Exception) -> str:
  return str(error).strip().splitlines()[0][:200]
