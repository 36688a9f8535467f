"""GPUs by name, for which CPU devices stand in."""

import jax
import pytest

from distil_jax.planning import gpus, hardware
from distil_jax.planning.errors import PlanError


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("H100", ("H100", 1)),
    ("8xH100", ("H100", 8)),
    ("8 x h200", ("H200", 8)),
    ("a100:4", ("A100", 4)),
    ("B200-2", ("B200", 2)),
    (" L4 ", ("L4", 1)),
    ("2xrtx4090", ("RTX4090", 2)),
  ],
)
def test_names(name, expected):
  found = gpus.parse(name)
  assert found is not None
  assert (found[0].name, found[1]) == expected


@pytest.mark.parametrize(
  "name", ["v5p-16", "v5p:2x2x2", "v6e", "H101", "xH100", "8xH100x2", ""]
)
def test_other_names(name):
  assert gpus.parse(name) is None


@pytest.mark.parametrize("name", ["0xH100", "8xH100:8", "H100:0"])
def test_numbers_that_mean_nothing_are_refused(name):
  with pytest.raises(PlanError, match="not of the form H100, 8xH100"):
    gpus.parse(name)


@pytest.fixture(autouse=True)
def devices_in_use():
  """From then on their number stays."""
  return jax.devices()


def test_devices_of_the_cpu_stand_in():
  found = hardware.find_hardware("4xH100")
  assert found.chip is not None
  assert (found.name, len(found.devices)) == ("4 x H100", 4)
  assert found.chip.memory_bytes == 80e9


def test_more_stand_ins_than_devices_are_refused():
  with pytest.raises(PlanError, match="jax_num_cpu_devices=100"):
    gpus.stand_ins(100)
