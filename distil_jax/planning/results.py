"""What a plan consists of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distil_jax.planning.chip_specs import Chip
from distil_jax.planning.costs import Costs
from distil_jax.planning.estimates import Estimate
from distil_jax.planning.memory import Memory
from distil_jax.planning.roofline import Times
from distil_jax.planning.topologies import Slice
from distil_jax.planning.workload import Workload

READING = "reading prompts"
GROWING = "lengthening rings"
SAMPLING = "sampling"
TRAINING = "training step"


@dataclasses.dataclass(frozen=True)
class Hardware:
  """What is planned for.

  Attributes:
    name: as people call it.
    devices: to compile for.
    chip: their peaks; None: not known.
    slice_: how they are joined; None: by a switch.
  """

  name: str
  devices: Sequence[Any]
  chip: Chip | None
  slice_: Slice | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
  """One program of a training step.

  Attributes:
    name: of the phase.
    memory: bytes on a chip.
    costs: of a whole training step; None where the compiler found no room.
    times: at published peaks; None where costs or peaks are not known.
  """

  name: str
  memory: Memory
  costs: Costs | None
  times: Times | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run would take.

  Attributes:
    hardware: what is planned for.
    run: what runs there.
    num_params: of the network.
    parts: bytes on a chip of what is there whatever runs, by arithmetic.
    phases: in their order.
  """

  hardware: Hardware
  run: Workload
  num_params: int
  parts: Mapping[str, float]
  phases: Sequence[Phase]

  @property
  def room(self) -> float | None:
    """Bytes of a chip's memory; None where they are not known."""
    chip = self.hardware.chip
    return None if chip is None else chip.memory_bytes

  @property
  def fits(self) -> bool | None:
    """Whether all phases find room; None: nobody knows how much there is."""
    if self.room is None:
      return None
    return all(not self.is_too_large(phase) for phase in self.phases)

  def is_too_large(self, phase: Phase) -> bool:
    """Whether a phase finds no room."""
    if phase.memory.refused is not None:
      return True
    return self.room is not None and phase.memory.peak > self.room

  @property
  def seconds(self) -> float | None:
    """Of a training step at the least; None where a phase's are not known."""
    found = [phase.times.least for phase in self.phases if phase.times]
    return sum(found) if len(found) == len(self.phases) else None


@dataclasses.dataclass(frozen=True)
class Trial:
  """A mesh and a micro-batch, and the training step compiled for them."""

  guess: Estimate
  plan: Plan

  @property
  def overrides(self) -> list[str]:
    """Settings that say the same."""
    axes = [f"mesh.{name}={size}" for name, size in self.guess.mesh.items()]
    return [*axes, f"optimizer.micro_batch_size={self.guess.micro_batch_size}"]


@dataclasses.dataclass(frozen=True)
class Search:
  """What was tried.

  Attributes:
    hardware: what is planned for.
    num_guesses: so many were ranked by arithmetic.
    trials: those that were compiled.
  """

  hardware: Hardware
  num_guesses: int
  trials: Sequence[Trial]

  @property
  def ranked(self) -> list[Trial]:
    """Those that fit, the fastest first; then the smallest of the others."""
    return sorted(
      self.trials,
      key=lambda t: (
        not t.plan.fits,
        (t.plan.seconds or 0.0)
        if t.plan.fits
        else t.plan.phases[0].memory.peak,
      ),
    )

  @property
  def best(self) -> Trial | None:
    """None: nothing fits."""
    first = next(iter(self.ranked), None)
    return first if first and first.plan.fits else None
