"""What is planned for: a slice by its name, or the devices at hand."""

import jax

from distil_jax.planning import chip_specs, topologies
from distil_jax.planning.results import Hardware


def hardware(topology: str | None) -> Hardware:
  """Devices by the name of a slice; None: those at hand.

  Raises:
    ValueError: there is no such slice, or no compiler for it.
  """
  if topology is None:
    devices = jax.devices()
    kind = devices[0].device_kind
    return Hardware(
      f"{len(devices)} x {kind}", devices, chip_specs.by_device_kind(kind)
    )
  topologies.only_host()
  found = topologies.parse(topology)
  name = f"{found.cloud_name} ({found.name})"
  return Hardware(name, topologies.devices(found), found.chip, found)
