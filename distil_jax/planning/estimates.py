"""Meshes and micro-batches by arithmetic: what is worth compiling.

Rough on purpose: it orders what a compiler then judges.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.planning.chip_specs import Chip
from distil_jax.planning.workload import Workload

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A way to arrange a training step.

  Attributes:
    mesh: sizes of its axes.
    micro_batch_size: sequences whose gradient is computed at once.
    seconds: at published peaks, products and messages at once.
    network_seconds: messages alone.
    num_bytes: on a chip.
  """

  mesh: Mapping[str, int]
  micro_batch_size: int
  seconds: float
  network_seconds: float
  num_bytes: float


def estimate_all(
  axes: Sequence[str],
  num_chips: int,
  chip: Chip,
  network: DecoderConfig,
  run: Workload,
  num_params: int,
  num_copies: int,
  batch_sizes: Sequence[int],
  mini_batch_size: int,
) -> list[Estimate]:
  """All that cut batches and network evenly, the fastest first.

  Args:
    axes: of the mesh.
    num_chips: that there are.
    chip: each of them.
    network: its sizes.
    run: what runs; its mesh and micro-batch do not matter.
    num_params: of the network.
    num_copies: of the parameters besides the student's.
    batch_sizes: all must be cut evenly over a mesh's batch axes.
    mini_batch_size: sequences of an update.
  """
  compute = _compute(network, run, num_params) / num_chips / chip.flops
  bandwidth = max(chip.num_axes, 1) * chip.link_bandwidth

  def guess(mesh: Mapping[str, int], micro: int) -> Estimate:
    sent = _network(mesh, micro, network, run, num_params) / bandwidth
    needed = _memory(mesh, micro, network, run, num_params, num_copies)
    return Estimate(mesh, micro, max(compute, sent), sent, needed)

  found = [
    guess(mesh, micro)
    for mesh in meshes(axes, num_chips, network, run, batch_sizes)
    for micro in _micro_batches(mesh, mini_batch_size)
  ]
  # Of those as fast, the ones with least to overlap.
  return sorted(found, key=lambda g: (g.seconds, g.network_seconds))


def meshes(
  axes: Sequence[str],
  num_chips: int,
  network: DecoderConfig,
  run: Workload,
  batch_sizes: Sequence[int],
) -> Iterator[dict[str, int]]:
  """All sizes of the axes that cut everything evenly; see `guesses`."""
  divisors = [n for n in range(1, num_chips + 1) if num_chips % n == 0]
  for sizes in itertools.product(divisors, repeat=len(axes)):
    if math.prod(sizes) != num_chips:
      continue
    mesh = dict(zip(axes, sizes, strict=True))
    context, tensor = mesh.get("context", 1), mesh.get("tensor", 1)
    parts = mesh["data"] * mesh["fsdp"] * context
    by_tensor = (
      network.num_kv_heads,
      network.num_heads,
      network.mlp_size,
      network.vocab_size,
    )
    if (
      all(size % tensor == 0 for size in by_tensor)
      and network.width % (mesh["fsdp"] * context) == 0
      and run.completion_length % context == 0
      and all(size % parts == 0 for size in batch_sizes)
    ):
      yield mesh


def _micro_batches(mesh: Mapping[str, int], whole: int) -> Iterator[int]:
  """One sequence for each part of the batch, two, four, ..."""
  size = mesh["data"] * mesh["fsdp"]
  while size <= whole:
    if whole % size == 0:
      yield size
    size *= 2


def _lengths(run: Workload) -> tuple[int, int]:
  """Tokens of a student's and of a teacher's sequence."""
  student = run.prompt_length + run.completion_length
  if not run.teacher_prompt_length:
    return student, 0
  return student, run.teacher_prompt_length + run.completion_length


def _compute(network: DecoderConfig, run: Workload, num_params: int) -> float:
  """FLOP of all chips together."""
  student, teacher = _lengths(run)
  # Forward, two backward, and forward again where layers are not kept.
  passes = 4 if run.remat == "layer" else 3
  pairs = network.num_layers * network.num_heads * network.head_size

  def one_pass(length: int) -> float:
    return 2.0 * length * (num_params + length * pairs)

  return run.num_sequences * (passes * one_pass(student) + one_pass(teacher))


def _network(
  mesh, micro, network: DecoderConfig, run: Workload, num_params
) -> float:
  """Bytes that a chip sends."""
  student, teacher = _lengths(run)
  tensor, context = mesh.get("tensor", 1), mesh.get("context", 1)
  cut = mesh["fsdp"] * context
  num_slices = run.num_sequences / micro
  size = _BYTES[run.compute_dtype]
  of_params = num_params / tensor
  total = 0.0
  if cut > 1:
    gathers = (2 if run.remat == "layer" else 1) + 1 + (teacher > 0)
    total += num_slices * of_params * (gathers * size + 4)
  if mesh["data"] > 1:
    total += num_slices * 2 * 4 * of_params / cut
  rows = run.num_sequences / (mesh["data"] * mesh["fsdp"]) / context
  tokens = rows * (3 * student + teacher)
  if tensor > 1:
    total += 2 * 2 * network.num_layers * tokens * network.width * size
  if context > 1:
    heads = 2 * network.num_kv_heads * network.head_size
    total += network.num_layers * tokens * context * heads * size / tensor
  return total


def _memory(
  mesh, micro, network: DecoderConfig, run: Workload, num_params, num_copies
) -> float:
  """Bytes on a chip: state, gradients, and one micro-batch's activations."""
  student, teacher = _lengths(run)
  tensor, context = mesh.get("tensor", 1), mesh.get("context", 1)
  cut = mesh["fsdp"] * context * tensor
  kept = _BYTES[run.param_dtype]
  size = _BYTES[run.compute_dtype]
  state = num_params * ((1 + num_copies) * kept + 8 + 4 + 4) / cut
  rows = micro / (mesh["data"] * mesh["fsdp"]) / context
  layer = (
    2 * network.width * tensor
    + 2 * network.mlp_size
    + 2 * network.num_heads * network.head_size
  ) / tensor
  kept_layers = network.num_layers if run.remat == "layer" else 0
  of_layers = rows * student * network.width * size * kept_layers
  if run.remat == "none":
    of_layers = rows * student * layer * size * network.num_layers
  working = rows * max(student, teacher) * layer * size * 3
  vocabulary = 3 * 4 * network.width * network.vocab_size / tensor
  return state + of_layers + working + vocabulary + 2**29
