"""Names of slices."""

import pytest

from distil_jax.planning import topologies
from distil_jax.planning.errors import PlanError


@pytest.mark.parametrize(
  ("name", "shape", "cloud_name"),
  [
    ("v5p:2x2x2", (2, 2, 2), "v5p-16"),
    ("v5p-16", (2, 2, 2), "v5p-16"),
    ("v5p-8", (2, 2, 1), "v5p-8"),
    ("v4-128", (4, 4, 4), "v4-128"),
    ("V5P:4X4X4", (4, 4, 4), "v5p-128"),
    ("v5e-16", (4, 4), "v5e-16"),
    ("v5litepod-16", (4, 4), "v5e-16"),
    ("v6e-256", (16, 16), "v6e-256"),
    ("v6e:2x4", (2, 4), "v6e-8"),
  ],
)
def test_names(name, shape, cloud_name):
  found = topologies.parse(name)
  assert (found.shape, found.cloud_name) == (shape, cloud_name)
  assert topologies.parse(found.name) == found


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("v5p-12", ["v5p-8", "v5p-16", "v5p:AxBxC"]),
    ("v5x:2x2", ["v5e", "v5p", "known: v4, v5e, v5p, v6e"]),
    ("v5p:4x4", ["3 axes", "nearest:", "v5p:2x2x4"]),
    ("v6e:4x4x4", ["2 axes", "v6e:8x8"]),
    ("v5p:4y4", ["AxBxC", "v5p:2x2x1"]),
    ("v5p:0x2x2", ["v5p:2x2x1"]),
    ("v5p", ["v5p-16", "v5p:2x2x2"]),
    ("H100-8", ["no TPU"]),
  ],
)
def test_unknown_names_are_refused_with_the_nearest(name, words):
  with pytest.raises(PlanError) as error:
    topologies.parse(name)
  for word in words:
    assert word in str(error.value)


def test_links_close_to_rings_in_whole_cubes_and_pods():
  links = {
    name: [topologies.parse(name).links(axis) for axis in range(2)]
    for name in ("v5p:2x2x2", "v5p:4x4x4", "v5e:8x16", "v5e:16x16")
  }
  assert links == {
    "v5p:2x2x2": [1, 1],
    "v5p:4x4x4": [2, 2],
    "v5e:8x16": [1, 2],
    "v5e:16x16": [2, 2],
  }
