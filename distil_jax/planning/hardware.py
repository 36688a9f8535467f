"""Finds the hardware of a plan: by its name, or local devices."""

import jax

from distil_jax.distributed import chip_specs
from distil_jax.planning import gpus, topologies
from distil_jax.planning.results import Hardware


def find_hardware(topology: str | None) -> Hardware:
  """Returns the devices of a slice, or those that stand in for GPUs.

  Args:
    topology: Name of the slice or the GPUs. None means the local devices.

  Raises:
    PlanError: There is no such hardware, or no compiler for it.
  """
  if topology is None:
    devices = jax.devices()
    kind = devices[0].device_kind
    return Hardware(
      f"{len(devices)} x {kind}", devices, chip_specs.by_device_kind(kind)
    )
  topologies.use_cpu_only()
  named = gpus.parse(topology)
  if named is not None:
    chip, count = named
    return Hardware(
      f"{count} x {chip.name}",
      gpus.stand_ins(count),
      chip,
      note="estimated from the CPU's program, as no GPU's is compiled here",
    )
  slice_ = topologies.parse(topology)
  name = f"{slice_.cloud_name} ({slice_.name})"
  return Hardware(name, topologies.devices(slice_), slice_.chip, slice_)
