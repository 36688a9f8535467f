"""Estimates time and memory of a training step for many meshes.

The estimates are rough on purpose: they only order what the compiler then
judges.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from distil_jax.distributed.chip_specs import Chip
from distil_jax.models import remat
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.planning.workload import Workload

_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Estimates a training step on a mesh.

  Attributes:
    mesh: Sizes of the mesh axes.
    micro_batch_size: Sequences whose gradient is computed at once.
    seconds: Time at published peaks, if products and messages overlap.
    network_seconds: Time of the messages alone.
    num_bytes: Memory on each chip.
  """

  mesh: Mapping[str, int]
  micro_batch_size: int
  seconds: float
  network_seconds: float
  num_bytes: float


@dataclasses.dataclass(frozen=True)
class Step:
  """Describes the training step that is estimated.

  Attributes:
    network: Sizes of the network.
    run: Numbers of the run; mesh and micro-batch size are not used.
    num_params: Parameters of the network.
    state_bytes: The training state, on all chips of a shard together.
    batch_sizes: Batches that every mesh must shard evenly.
    mini_batch_size: Sequences of an update.
    teacher: Sizes of a teacher that is another model; None means that student
      and teacher are one network.
    num_teacher_params: Parameters of such a teacher.
  """

  network: DecoderConfig
  run: Workload
  num_params: int
  state_bytes: float
  batch_sizes: Sequence[int]
  mini_batch_size: int
  teacher: DecoderConfig | None = None
  num_teacher_params: int = 0

  @property
  def networks(self) -> list[DecoderConfig]:
    """Returns the student's network, and the teacher's if it is another."""
    return [x for x in (self.network, self.teacher) if x is not None]


def estimate_all(
  axes: Sequence[str], num_chips: int, chip: Chip, step: Step
) -> list[Estimate]:
  """Estimates all meshes and micro-batch sizes that shard the step evenly.

  Args:
    axes: Names of the mesh axes.
    num_chips: Number of chips.
    chip: Peaks of each chip.
    step: The training step.

  Returns:
    The estimates, the fastest first.
  """
  compute = _flops(step) / num_chips / chip.flops
  # As if a message could use one link along every axis of the network.
  bandwidth = max(chip.num_axes, 1) * chip.link_bandwidth

  def estimate(mesh: Mapping[str, int], micro: int) -> Estimate:
    network = _network_bytes(mesh, micro, step) / bandwidth
    memory = _memory_bytes(mesh, micro, step)
    return Estimate(mesh, micro, max(compute, network), network, memory)

  found = [
    estimate(mesh, micro)
    for mesh in meshes(axes, num_chips, step)
    for micro in _micro_batch_sizes(mesh, step.mini_batch_size)
  ]
  # Between equals, prefer those with the fewest messages to overlap.
  return sorted(found, key=lambda e: (e.seconds, e.network_seconds))


def meshes(
  axes: Sequence[str], num_chips: int, step: Step
) -> Iterator[dict[str, int]]:
  """Yields all meshes that shard network and batches evenly."""
  divisors = [n for n in range(1, num_chips + 1) if num_chips % n == 0]
  for sizes in itertools.product(divisors, repeat=len(axes)):
    if math.prod(sizes) != num_chips:
      continue
    mesh = dict(zip(axes, sizes, strict=True))
    context, tensor = mesh.get("context", 1), mesh.get("tensor", 1)
    batch_shards = mesh["data"] * mesh["fsdp"] * context
    tensor_sizes = [
      size
      for network in step.networks
      for size in (
        network.num_kv_heads,
        network.num_heads,
        network.mlp_size,
        network.vocab_size,
      )
    ]
    if (
      all(size % tensor == 0 for size in tensor_sizes)
      and all(x.width % (mesh["fsdp"] * context) == 0 for x in step.networks)
      and step.run.completion_length % context == 0
      and all(size % batch_shards == 0 for size in step.batch_sizes)
    ):
      yield mesh


def _micro_batch_sizes(mesh: Mapping[str, int], whole: int) -> Iterator[int]:
  """Yields sizes with one, two, four, ... sequences on each batch shard."""
  size = mesh["data"] * mesh["fsdp"]
  while size <= whole:
    if whole % size == 0:
      yield size
    size *= 2


def _lengths(run: Workload) -> tuple[int, int]:
  """Returns the tokens of a student's and of a teacher's sequence."""
  student = run.prompt_length + run.completion_length
  if not run.teacher_prompt_length:
    return student, 0
  return student, run.teacher_prompt_length + run.completion_length


def _flops(step: Step) -> float:
  """Returns the operations of all chips together."""
  run = step.run
  student, teacher = _lengths(run)
  # One forward pass, two for the backward pass, and another forward pass if
  # activations of the layers are not kept.
  passes = 4 if run.remat in remat.RECOMPUTES_PRODUCTS else 3

  def one_pass(length: int, network: DecoderConfig, num_params: int) -> float:
    # Attention takes 4 · S² · N · H operations a layer, and half of that if
    # nothing is computed for tokens that come later.
    pairs = network.num_layers * network.num_heads * network.head_size
    return 2.0 * length * (num_params + length * pairs)

  own = one_pass(student, step.network, step.num_params)
  asked = one_pass(
    teacher,
    step.teacher or step.network,
    step.num_teacher_params or step.num_params,
  )
  return run.num_sequences * (passes * own + asked)


def _network_bytes(mesh: Mapping[str, int], micro: int, step: Step) -> float:
  """Returns the bytes that each chip sends."""
  network, run = step.network, step.run
  student, teacher = _lengths(run)
  tensor, context = mesh.get("tensor", 1), mesh.get("context", 1)
  param_shards = mesh["fsdp"] * context
  num_micro_batches = run.num_sequences / micro
  size = _BYTES[run.compute_dtype]
  params = step.num_params / tensor
  total = 0.0
  if param_shards > 1:
    # Parameters are gathered for each pass over each micro-batch, and its
    # gradient is scattered in float32.
    gathers = (2 if run.remat in remat.RECOMPUTES_PRODUCTS else 1) + 1
    total += num_micro_batches * params * (gathers * size + 4)
    if teacher:
      asked = (step.num_teacher_params or step.num_params) / tensor
      total += num_micro_batches * asked * size
  # Replicas sum their float32 gradients; an all-reduce sends an array twice.
  if mesh["data"] > 1:
    total += num_micro_batches * 2 * 4 * params / param_shards
  rows = run.num_sequences / (mesh["data"] * mesh["fsdp"]) / context
  # The backward pass exchanges about twice as much as the forward pass.
  tokens = rows * (3 * student + teacher)
  if tensor > 1:
    # Activations are summed after attention and after the MLP of each layer.
    total += 2 * 2 * network.num_layers * tokens * network.width * size
  if context > 1:
    # Keys and values are exchanged along the sequence.
    heads = 2 * network.num_kv_heads * network.head_size
    total += network.num_layers * tokens * context * heads * size / tensor
  return total


def _memory_bytes(mesh: Mapping[str, int], micro: int, step: Step) -> float:
  """Returns bytes on a chip: state, gradients, and one micro-batch."""
  network, run = step.network, step.run
  student, teacher = _lengths(run)
  tensor, context = mesh.get("tensor", 1), mesh.get("context", 1)
  shards = mesh["fsdp"] * context * tensor
  size = _BYTES[run.compute_dtype]
  # Beside the state: the gradient and its sum, in float32.
  state = (step.state_bytes + step.num_params * (4 + 4)) / shards
  rows = micro / (mesh["data"] * mesh["fsdp"]) / context

  def layer_of(network: DecoderConfig) -> float:
    return (
      2 * network.width * tensor
      + 2 * network.mlp_size
      + 2 * network.num_heads * network.head_size
    ) / tensor

  layer, asked = layer_of(network), layer_of(step.teacher or network)
  kept_layers = network.num_layers if run.remat == "layer" else 0
  activations = rows * student * network.width * size * kept_layers
  if run.remat not in remat.RECOMPUTES_PRODUCTS:
    activations = rows * student * layer * size * network.num_layers
  working = rows * max(student * layer, teacher * asked) * size * 3
  vocabulary = 3 * 4 * network.width * network.vocab_size / tensor
  # The last term is room for the runtime and for fragmentation.
  return state + activations + working + vocabulary + 2**29
