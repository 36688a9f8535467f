"""What holds a program up, by hand."""

import dataclasses

import pytest

from distil_jax.distributed import chip_specs
from distil_jax.planning import costs, roofline, topologies

V5P = chip_specs.CHIPS["v5p"]
LINK = V5P.link_bandwidth


@dataclasses.dataclass(frozen=True)
class Device:
  coords: tuple[int, int, int]


def machine(name="v5p:2x2x2"):
  found = topologies.parse(name)
  x, y, z = found.shape
  places = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
  return roofline.Machine(found.chip, [Device(p) for p in places], found)


def seconds(kind, group, num_bytes, name="v5p:2x2x2"):
  route = costs.Route(kind, group)
  messages = {route: costs.Messages(1, num_bytes)}
  return machine(name).times(costs.Costs(messages=messages)).network


def test_bound_is_what_takes_longest():
  found = machine().times(costs.Costs(flops=459e12, num_bytes=2 * 2765e9))
  assert (found.compute, found.memory) == (1, 2)
  assert (found.least, found.bound) == (2, "memory")


def test_messages_use_the_links_that_join_a_group():
  along_x, plane, cube = (0, 1), (0, 1, 2, 3), tuple(range(8))
  assert seconds("all-gather", along_x, LINK) == pytest.approx(1 / 2)
  assert seconds("all-gather", plane, LINK) == pytest.approx(3 / 4 / 2)
  assert seconds("reduce-scatter", cube, LINK) == pytest.approx(7 / 8 / 3)
  # A sum goes round twice.
  assert seconds("all-reduce", cube, LINK) == pytest.approx(2 * 7 / 8 / 3)
  assert seconds("collective-permute", (0, 1), LINK) == 1
  # No group is named where all take part.
  assert seconds("all-gather", (), LINK) == seconds("all-gather", cube, LINK)


def test_rings_have_both_directions():
  group = (0, 1, 2, 3)
  found = seconds("all-gather", group, LINK, "v5p:4x4x4")
  assert found == pytest.approx(3 / 4 / 2)


def test_kinds_of_devices_have_peaks():
  assert (
    chip_specs.by_device_kind("NVIDIA H100 80GB HBM3")
    is chip_specs.CHIPS["H100"]
  )
  assert chip_specs.by_device_kind("cpu") is None
