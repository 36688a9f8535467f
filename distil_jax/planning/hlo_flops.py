"""Counts floating-point operations of matrix products.

The published peak of a chip counts only these.
"""

import functools
import math
import re

import numpy as np

from distil_jax.planning.hlo import Array, Computation, Instruction

# Number of [queries, keys, head size] products in kernels whose bodies a
# program does not show, by a part of their names.
_ATTENTION_KERNELS = {
  "splash_mha_fwd": 2,
  "splash_mha_dq": 3,
  "splash_mha_dkv": 4,
}
_COST = re.compile(r'"?flops"?:\s*"?(\d+)')


def flops(computation: Computation, instruction: Instruction) -> float | None:
  """Returns the operations of one instruction.

  Returns:
    Operations of products; 0 for other operations, and None for a kernel whose
    operations are not known.
  """
  match instruction.opcode:
    case "dot":
      return _dot(computation, instruction)
    case "convolution":
      return _convolution(computation, instruction)
    case "custom-call":
      return _kernel(computation, instruction)
  return 0.0


def _dot(computation: Computation, instruction: Instruction) -> float:
  (left,) = computation.arrays_of(instruction)[0]
  contracted = instruction.sizes("lhs_contracting_dims")
  # A multiplication and an addition for each contracted entry of each result.
  return 2.0 * instruction.arrays[0].size * _sizes(left, contracted)


def _convolution(computation: Computation, instruction: Instruction) -> float:
  """Returns the operations of a convolution.

  On TPUs the compiler turns every `dot` into one. Products with padding, or
  with the gaps of a dilation, are not computed.
  """
  (left,), (right,) = computation.arrays_of(instruction)[:2]
  output = instruction.arrays[0]
  labels = instruction.attribute("dim_labels") or ""
  # In `bf_io->bf` the letters name batch and features, input and output;
  # digits, where there are any, are the axes of the window.
  left_axes, rest = labels.split("_")
  right_axes, output_axes = rest.split("->")
  pairs = 1
  for axis, window in enumerate(_windows(instruction)):
    label = str(axis)
    pairs *= _pairs(
      left.shape[left_axes.index(label)],
      output.shape[output_axes.index(label)],
      window,
    )
  outputs = (
    output.shape[output_axes.index("b")] * output.shape[output_axes.index("f")]
  )
  return 2.0 * pairs * outputs * right.shape[right_axes.index("i")]


_Window = tuple[int, int, int, int, int]


def _windows(instruction: Instruction) -> list[_Window]:
  """Returns size, stride, padding and dilations of each window axis."""
  window = instruction.attribute("window") or "{}"
  sizes = _window_field(window, "size", [])
  count = len(sizes)
  ones = ["1"] * count
  fields = (
    sizes,
    _window_field(window, "stride", ones),
    # Padding before the first input moves the windows. That after the last only
    # adds outputs, whose number is known.
    [pad.split("_")[0] for pad in _window_field(window, "pad", ["0"] * count)],
    _window_field(window, "lhs_dilate", ones),
    _window_field(window, "rhs_dilate", ones),
  )
  return [tuple(map(int, axis)) for axis in zip(*fields, strict=True)]  # pyright: ignore[reportReturnType]


def _window_field(window: str, name: str, default: list[str]) -> list[str]:
  match = re.search(rf"\b{name}=([\d_x\-]+)", window)
  return match[1].split("x") if match else default


@functools.lru_cache(maxsize=4096)
def _pairs(size: int, num_outputs: int, window: _Window) -> int:
  """Returns the pairs of output and window column that meet an input."""
  width, stride, padding, left_dilation, right_dilation = window
  # A plain product, the common case, needs no loop.
  if width == 1 and stride == 1 and padding == 0 and left_dilation == 1:
    return num_outputs
  last = (size - 1) * left_dilation
  starts = np.arange(num_outputs, dtype=np.int64) * stride - padding
  count = 0
  for column in range(width):
    positions = starts + column * right_dilation
    # Between the inputs are the gaps of a dilation, which are not multiplied.
    is_inside = (positions >= 0) & (positions <= last)
    count += int((is_inside & (positions % left_dilation == 0)).sum())
  return count


def _kernel(computation: Computation, instruction: Instruction) -> float | None:
  target = instruction.attribute("custom_call_target") or ""
  if "matmul" in target or "gemm" in target.lower():
    return _library_product(computation, instruction)
  if "tpu_custom_call" not in target:
    # Calls of other libraries, such as sorting, compute no products.
    return None if "cudnn" in target.lower() else 0.0
  if cost := _COST.search(instruction.text[:100_000]):
    return float(cost[1])
  name = next((k for k in _ATTENTION_KERNELS if k in _label(instruction)), None)
  if name is None:
    return None
  return _causal_attention(computation, instruction, _ATTENTION_KERNELS[name])


def _label(instruction: Instruction) -> str:
  """Returns the text that names a kernel, without its long body."""
  metadata = instruction.attribute("metadata") or ""
  return f"{instruction.name} {metadata}"


def _library_product(
  computation: Computation, instruction: Instruction
) -> float:
  """Returns the operations of a product that a library computes.

  Without a note of the contracted axes it is the last one of the left operand.
  """
  left = computation.arrays_of(instruction)[0][0]
  match = re.search(
    r'lhs_contracting_dimensions"?:\s*\[([^\]]*)\]', instruction.text
  )
  axes = tuple(map(int, re.findall(r"\d+", match[1]))) if match else (-1,)
  return 2.0 * instruction.arrays[0].size * _sizes(left, axes)


def _causal_attention(
  computation: Computation, instruction: Instruction, num_products: int
) -> float:
  """Returns the operations of causal attention: half of all pairs.

  The largest operand are the queries, `[..., N, S, H]`; keys have fewer heads.
  """
  arrays = [x for xs in computation.arrays_of(instruction) for x in xs]
  queries = max(
    (x for x in arrays if len(x.shape) >= 3 and x.dtype in ("bf16", "f32")),
    key=lambda x: x.size,
  )
  # Sequences attend to themselves, so there are as many keys as queries.
  keys = queries.shape[-2]
  return num_products * 2.0 * queries.size * keys / 2


def _sizes(array: Array, axes: tuple[int, ...]) -> int:
  return math.prod(array.shape[axis] for axis in axes)
