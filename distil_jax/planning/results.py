"""Defines what a plan and a search consist of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.distributed.chip_specs import Chip
from distil_jax.planning.costs import Costs
from distil_jax.planning.estimates import Estimate
from distil_jax.planning.memory import Memory
from distil_jax.planning.roofline import Times
from distil_jax.planning.topologies import Slice
from distil_jax.planning.workload import Workload

# Names of the phases; kept plans (JSON) hold them.
PREFILL = "reading prompts"
CACHE_GROWTH = "growing KV caches"
SAMPLING = "sampling"
TRAINING = "training step"


@dataclasses.dataclass(frozen=True)
class Hardware:
  """Describes the hardware of a plan.

  Attributes:
    name: Common name.
    devices: Devices to compile for.
    chip: Peaks of each device. None means that they are not known.
    slice_: How the chips are connected. None means by a switch.
    note: How far the plan can be trusted; None means that its programs are
      those of a run.
  """

  name: str
  devices: Sequence[Any]
  chip: Chip | None
  slice_: Slice | None = None
  note: str | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
  """Describes one program of a training step.

  Attributes:
    name: Name of the phase.
    memory: Bytes on a chip.
    costs: Costs in a whole training step. None if the compiler refused the
      program because it does not fit.
    times: Times at published peaks. None if costs or peaks are not known.
  """

  name: str
  memory: Memory
  costs: Costs | None
  times: Times | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """Holds what a run would need on some hardware.

  Attributes:
    hardware: The hardware.
    run: The run.
    num_params: Parameters of the network.
    parts: Bytes on a chip of the training state, by arithmetic. It stays in
      memory during all phases.
    phases: Programs in the order in which they run.
  """

  hardware: Hardware
  run: Workload
  num_params: int
  parts: Mapping[str, float]
  phases: Sequence[Phase]

  @property
  def capacity(self) -> float | None:
    """Returns the bytes of a chip's memory; None if not known."""
    chip = self.hardware.chip
    return None if chip is None else chip.memory_bytes

  @property
  def fits(self) -> bool | None:
    """Returns True if all phases fit; None if the capacity is not known."""
    if self.capacity is None:
      return None
    return all(not self.is_too_large(phase) for phase in self.phases)

  def is_too_large(self, phase: Phase) -> bool:
    """Returns True if a phase does not fit."""
    if phase.memory.refused is not None:
      return True
    return self.capacity is not None and phase.memory.peak > self.capacity

  @property
  def seconds(self) -> float | None:
    """Returns the least time of a training step; None if not known."""
    found = [phase.times.least for phase in self.phases if phase.times]
    # A sum without one of the programs would not be a lower bound of the step.
    return sum(found) if len(found) == len(self.phases) else None


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Holds a mesh and micro-batch size with the plan compiled for them."""

  estimate: Estimate
  plan: Plan

  @property
  def overrides(self) -> list[str]:
    """Returns the settings of mesh and micro-batch size."""
    axes = [f"mesh.{name}={size}" for name, size in self.estimate.mesh.items()]
    return [
      *axes,
      f"optimizer.micro_batch_size={self.estimate.micro_batch_size}",
    ]


@dataclasses.dataclass(frozen=True)
class Search:
  """Holds the result of a mesh search.

  Attributes:
    hardware: The hardware.
    num_estimates: Number of meshes and micro-batch sizes that were estimated.
    candidates: Those that were compiled.
  """

  hardware: Hardware
  num_estimates: int
  candidates: Sequence[Candidate]

  @property
  def ranked(self) -> list[Candidate]:
    """Returns those that fit by time, then the others by memory."""
    return sorted(
      self.candidates,
      key=lambda c: (
        not c.plan.fits,
        (c.plan.seconds or 0.0)
        if c.plan.fits
        else c.plan.phases[0].memory.peak,
      ),
    )

  @property
  def best(self) -> Candidate | None:
    """Returns the fastest candidate that fits; None if none fits."""
    first = next(iter(self.ranked), None)
    return first if first and first.plan.fits else None
