"""Computes the least time of a program and the resource that bounds it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from distil_jax.distributed.chip_specs import Chip
from distil_jax.planning import costs, topologies


@dataclasses.dataclass(frozen=True)
class Times:
  """Holds the seconds that each resource needs at published peaks.

  Attributes:
    compute: Matrix products, as if all were in bfloat16.
    memory: Bytes read from and written to the chip's memory.
    network: Messages one after the other, each using all links that it can.
  """

  compute: float
  memory: float
  network: float

  @property
  def least(self) -> float:
    """Returns the time if all three overlap completely."""
    return max(self.compute, self.memory, self.network)

  @property
  def bound(self) -> str:
    """Returns the slowest: `compute`, `memory` or `network`."""
    return max(
      ("compute", "memory", "network"), key=lambda name: getattr(self, name)
    )


class Machine:
  """Describes chips and the network between them."""

  def __init__(
    self,
    chip: Chip,
    devices: Sequence[Any],
    slice_: topologies.Slice | None = None,
  ):
    """Describes the chips that run a program.

    Args:
      chip: Peaks of each chip.
      devices: Devices in the order of the program's partitions.
      slice_: How the chips are connected. None means by a switch.
    """
    self.chip = chip
    self._slice = slice_
    self._coordinates = [getattr(device, "coords", None) for device in devices]

  def times(self, program: costs.Costs) -> Times:
    """Returns the times of a program with these costs."""
    return Times(
      compute=program.flops / self.chip.flops,
      memory=program.num_bytes / self.chip.memory_bandwidth,
      network=sum(
        self._seconds(route, messages)
        for route, messages in program.messages.items()
      ),
    )

  def _seconds(self, route: costs.Route, messages: costs.Messages) -> float:
    size = len(route.group) or len(self._coordinates)
    # A chip sends to one other, over one link.
    if route.kind == "collective-permute":
      return messages.num_bytes / self.chip.link_bandwidth
    # On a ring each chip passes on all parts but its own; an all-reduce does
    # so twice, to add the parts and to spread the sums.
    passes = 2 if route.kind == "all-reduce" else 1
    share = (size - 1) / size
    return passes * share * messages.num_bytes / self._bandwidth(route.group)

  def _bandwidth(self, group: Sequence[int]) -> float:
    """Returns the bandwidth between the members of a group, one way.

    Links along an axis help only if the group spans that axis.
    """
    if self._slice is None:
      # A switch connects every pair of chips at the speed of their one link.
      return self.chip.link_bandwidth
    members = group or range(len(self._coordinates))
    coordinates = [
      self._coordinates[i] for i in members if i < len(self._coordinates)
    ]
    links = sum(
      self._slice.links(axis)
      for axis in range(len(self._slice.shape))
      if len({c[axis] for c in coordinates if c}) > 1
    )
    # A group of one chip, or one without coordinates, spans no axis.
    return max(links, 1) * self.chip.link_bandwidth
