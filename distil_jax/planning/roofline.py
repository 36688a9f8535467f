"""How long a program takes at the least, and what holds it up."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from distil_jax.planning import costs, topologies
from distil_jax.planning.chip_specs import Chip


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds, each as if there were nothing else to do, at published peaks.

  Attributes:
    compute: products, as if all were bfloat16.
    memory: what is read from and written to the chip's memory.
    network: messages, one after the other, every link that they can use busy.
  """

  compute: float
  memory: float
  network: float

  @property
  def least(self) -> float:
    """All three at once, the longest of them deciding."""
    return max(self.compute, self.memory, self.network)

  @property
  def bound(self) -> str:
    """What decides: `compute`, `memory` or `network`."""
    return max(
      ("compute", "memory", "network"), key=lambda name: getattr(self, name)
    )


class Machine:
  """Chips and what joins them."""

  def __init__(
    self,
    chip: Chip,
    devices: Sequence[Any],
    slice_: topologies.Slice | None = None,
  ):
    """As a program uses it.

    Args:
      chip: each of them.
      devices: in the order of the program's partitions.
      slice_: how they are joined; None: by a switch.
    """
    self.chip = chip
    self._slice = slice_
    self._places = [getattr(device, "coords", None) for device in devices]

  def times(self, found: costs.Costs) -> Times:
    """Of a program with these costs."""
    return Times(
      compute=found.flops / self.chip.flops,
      memory=found.num_bytes / self.chip.memory_bandwidth,
      network=sum(
        self._seconds(route, messages)
        for route, messages in found.messages.items()
      ),
    )

  def _seconds(self, route: costs.Route, messages: costs.Messages) -> float:
    size = len(route.group) or len(self._places)
    if route.kind == "collective-permute":
      return messages.num_bytes / self.chip.link_bandwidth
    # A ring passes on all but one's own part, for a sum twice.
    passes = 2 if route.kind == "all-reduce" else 1
    share = (size - 1) / size
    return passes * share * messages.num_bytes / self._bandwidth(route.group)

  def _bandwidth(self, group: Sequence[int]) -> float:
    """One way, of the links that join the members of a group."""
    if self._slice is None:
      return self.chip.link_bandwidth
    members = group or range(len(self._places))
    places = [self._places[i] for i in members if i < len(self._places)]
    links = sum(
      self._slice.links(axis)
      for axis in range(len(self._slice.shape))
      if len({place[axis] for place in places if place}) > 1
    )
    return max(links, 1) * self.chip.link_bandwidth
