"""Lists the published peaks of chips."""

import dataclasses

_GB, _GIB = 1e9, 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Holds the peaks of one chip.

  Attributes:
    name: Common name.
    flops: Peak of bfloat16 matrix products, FLOP/s.
    memory_bytes: Size of its memory.
    memory_bandwidth: Bytes/s.
    link_bandwidth: Bytes/s of one link to another chip, one way.
    num_axes: Dimensions of the network, with two links each. 0 means a switch,
      to which there is one link.
    cores: TensorCores per chip in the names of slices.
    device_kind: Name that JAX gives the device.
  """

  name: str
  flops: float
  memory_bytes: float
  memory_bandwidth: float
  link_bandwidth: float
  num_axes: int
  device_kind: str
  cores: int = 1

  @property
  def is_gpu(self) -> bool:
    """True for GPUs, which a switch or a bus connects."""
    return self.num_axes == 0


# Makers publish the bandwidth of all links and both directions together.
CHIPS = {
  chip.name: chip
  for chip in (
    # https://docs.cloud.google.com/tpu/docs/v4; the links are in
    # https://arxiv.org/abs/2304.01433, table 4: six of 50 GB/s.
    Chip("v4", 275e12, 32 * _GIB, 1200 * _GB, 50 * _GB, 3, "TPU v4", cores=2),
    # https://docs.cloud.google.com/tpu/docs/v5e: 400 GB/s for four links.
    Chip("v5e", 197e12, 16 * _GIB, 819 * _GB, 50 * _GB, 2, "TPU v5 lite"),
    # https://docs.cloud.google.com/tpu/docs/v5p: 1200 GB/s for six links.
    Chip("v5p", 459e12, 95 * _GIB, 2765 * _GB, 100 * _GB, 3, "TPU v5", cores=2),
    # https://docs.cloud.google.com/tpu/docs/v6e: 800 GB/s for four links.
    Chip("v6e", 918e12, 32 * _GIB, 1638 * _GB, 100 * _GB, 2, "TPU v6 lite"),
    # https://www.nvidia.com/en-us/data-center/a100 (SXM, 80 GB).
    Chip(
      "A100", 312e12, 80 * _GB, 2039 * _GB, 300 * _GB, 0,
      "NVIDIA A100-SXM4-80GB",
    ),
    # https://www.nvidia.com/en-us/data-center/h100 (SXM; without sparsity).
    Chip(
      "H100", 989e12, 80 * _GB, 3350 * _GB, 450 * _GB, 0,
      "NVIDIA H100 80GB HBM3",
    ),
    # https://www.nvidia.com/en-us/data-center/h200 (SXM; without sparsity).
    Chip("H200", 989e12, 141 * _GB, 4800 * _GB, 450 * _GB, 0, "NVIDIA H200"),
    # https://www.nvidia.com/en-us/data-center/hgx (B200; without sparsity).
    Chip("B200", 2250e12, 180 * _GB, 7700 * _GB, 900 * _GB, 0, "NVIDIA B200"),
    # https://www.nvidia.com/en-us/data-center/l4 (without sparsity); by PCIe.
    Chip("L4", 121e12, 24 * _GB, 300 * _GB, 32 * _GB, 0, "NVIDIA L4"),
    # NVIDIA's whitepaper on the Ada architecture, appendix A; by PCIe.
    Chip(
      "RTX4090", 165e12, 24 * _GB, 1008 * _GB, 32 * _GB, 0,
      "NVIDIA GeForce RTX 4090",
    ),
  )
}  # fmt: skip


def by_device_kind(kind: str) -> Chip | None:
  """Returns the chip of a JAX device; None if its peaks are not known."""
  return next((c for c in CHIPS.values() if c.device_kind == kind), None)
