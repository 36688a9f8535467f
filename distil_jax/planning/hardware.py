"""Finds the hardware of a plan: a slice by its name, or local devices."""

import jax

from distil_jax.planning import chip_specs, topologies
from distil_jax.planning.results import Hardware


def find_hardware(topology: str | None) -> Hardware:
  """Returns the devices of a slice.

  Args:
    topology: Name of the slice. None means the local devices.

  Raises:
    PlanError: There is no such slice, or no compiler for it.
  """
  if topology is None:
    devices = jax.devices()
    kind = devices[0].device_kind
    return Hardware(
      f"{len(devices)} x {kind}", devices, chip_specs.by_device_kind(kind)
    )
  topologies.use_cpu_only()
  slice_ = topologies.parse(topology)
  name = f"{slice_.cloud_name} ({slice_.name})"
  return Hardware(name, topologies.devices(slice_), slice_.chip, slice_)
