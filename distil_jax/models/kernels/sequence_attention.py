"""Kernels for attention over whole sequences, and what each one supports."""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas_splash
from jax.extend import backend

Implementation = Literal["auto", "xla", "cudnn", "splash"]

# Head sizes that cuDNN supports on every GPU that it runs on: multiples of the
# first, up to the second.
_CUDNN_STEP, _CUDNN_MOST = 8, 128
# Lanes of a TPU's vector unit.
LANES = 128
# The largest block of rows or columns of the logits that a kernel holds.
_LARGEST_BLOCK = 512


def has_cudnn() -> bool:
  """Returns True if this process computes on a CUDA GPU."""
  return "cuda" in backend.get_backend().platform_version


def check(
  implementation: Implementation,
  *,
  head_size: int,
  dtype: jax.typing.DTypeLike,
) -> None:
  """Refuses an implementation that does not support the head size or type.

  Raises:
    ValueError: Names both values and the cure.
  """
  problem = find_problem(implementation, head_size, dtype)
  if problem is not None:
    raise ValueError(
      f"attention={implementation} {problem}; use attention=auto or xla"
    )


def check_platform(implementation: Implementation, platform: str) -> None:
  """Refuses an implementation that does not run on `cpu`, `gpu` or `tpu`.

  Raises:
    ValueError: Names both values and the cure.
  """
  needed = {"cudnn": "gpu", "splash": "tpu"}.get(implementation, platform)
  if platform != needed:
    raise ValueError(
      f"attention={implementation} runs on a {needed}, and this is a "
      f"{platform}; use attention=auto or xla"
    )


def find_problem(
  implementation: Implementation, head_size: int, dtype: jax.typing.DTypeLike
) -> str | None:
  """Returns why an implementation cannot run, or None if it can.

  Args:
    implementation: Name of the implementation.
    head_size: H.
    dtype: Type of queries, keys and values.
  """
  name = jnp.dtype(dtype).name
  match implementation:
    case "cudnn":
      types = ("bfloat16", "float16")
      sizes = f"a multiple of {_CUDNN_STEP}, at most {_CUDNN_MOST}"
      is_supported = head_size % _CUDNN_STEP == 0 and head_size <= _CUDNN_MOST
    case "splash":
      types = ("bfloat16", "float32")
      sizes = f"a multiple of {LANES}"
      is_supported = head_size % LANES == 0
    case _:
      return None
  if not is_supported:
    return f"needs a head size that is {sizes}, got head_size={head_size}"
  if name not in types:
    return f"computes in {' or '.join(types)}, got compute_dtype={name}"
  return None


def by_platform(
  *, head_size: int, dtype: jax.typing.DTypeLike, has_cudnn: bool
) -> Mapping[str, Implementation]:
  """Returns the kernel that `auto` takes on each platform.

  Platforms that are not named take `xla`.

  Args:
    head_size: H.
    dtype: Type of queries, keys and values.
    has_cudnn: JAX can trace the GPU kernel only if it finds a GPU.
  """
  found = {}
  if find_problem("splash", head_size, dtype) is None:
    found["tpu"] = "splash"
  if has_cudnn and find_problem("cudnn", head_size, dtype) is None:
    found["cuda"] = "cudnn"
  return found


def splash_kernel(
  length: int,
  num_heads: int,
  count: int,
  *,
  window: int | None = None,
  interpret: bool,
):
  """Builds the TPU kernel for one device.

  Args:
    length: S, a multiple of `count * LANES`.
    num_heads: Query heads of this device.
    count: Devices that share a sequence; each has S / count of the queries.
    window: Number of tokens that each reads; None means all.
    interpret: Interprets the kernel, slowly, on any platform.
  """
  part = length // count
  # The largest block that divides a device's part: larger blocks read keys and
  # values less often.
  size = max(
    size
    for size in range(LANES, min(part, _LARGEST_BLOCK) + 1, LANES)
    if part % size == 0
  )
  shape = (length, length)
  if window is None:
    mask = pallas_splash.CausalMask(shape)
  else:
    mask = pallas_splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
  return pallas_splash.make_splash_mha(
    pallas_splash.MultiHeadMask([mask] * num_heads),
    block_sizes=_block_sizes(size),
    head_shards=1,
    q_seq_shards=count,
    interpret=interpret,
  )


def _block_sizes(size: int) -> pallas_splash.BlockSizes:
  """Returns square blocks for the forward and both backward passes."""
  return pallas_splash.BlockSizes(
    block_q=size,
    block_kv=size,
    block_q_dkv=size,
    block_kv_dkv=size,
    block_q_dq=size,
    block_kv_dq=size,
  )
