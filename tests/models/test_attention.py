"""Every kernel is the same attention, and each platform gets its own."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.models import (
  attention,
  attention_blocks,
  cached_forward,
  decoder,
  prefix_attention,
  sharding,
)
from distil_jax.models.kernels import sequence_attention
from tests import networks

LANES = 128
SHAPE = re.compile(r"f32\[([0-9,]+)\]")
splash = functools.partial(attention.splash, interpret=True)


def made_up(shape_of_heads=(4, 2), *, batch=2, length=5, size=8, seed=0):
  """Queries, keys, values and a direction, float32."""
  rng = np.random.default_rng(seed)
  heads, kv_heads = shape_of_heads
  return [
    rng.normal(size=(batch, length, n, size)).astype(np.float32)
    for n in (heads, kv_heads, kv_heads, heads)
  ]


def by_hand(query, key, value, *, window=None, scale=None):
  """Token by token and head by head, in float64."""
  query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
  attended = np.zeros(query.shape)
  share = query.shape[2] // key.shape[2]
  for b, t, n in np.ndindex(query.shape[:3]):
    first = 0 if window is None else max(t + 1 - window, 0)
    keys, values = (x[b, first : t + 1, n // share] for x in (key, value))
    logits = keys @ query[b, t, n] * (scale or query.shape[-1] ** -0.5)
    weights = np.exp(logits - logits.max())
    attended[b, t, n] = weights @ values / weights.sum()
  return attended


@pytest.mark.parametrize(
  ("heads", "length", "size"),
  [((1, 1), 1, 6), ((4, 2), 7, 6), ((6, 2), 13, 24), ((3, 3), 130, 16)],
)
@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_attention_is_that_of_a_loop(heads, length, size, implementation):
  arrays = made_up(heads, length=length, size=size)[:3]
  function = functools.partial(attention.causal, implementation=implementation)
  attended = jax.jit(function)(*arrays)
  np.testing.assert_allclose(attended, by_hand(*arrays), atol=2e-6)


@pytest.mark.parametrize(
  ("heads", "length"), [((1, 1), 1), ((4, 2), 37), ((6, 2), 200)]
)
def test_the_kernel_of_tpus_is_that_of_a_loop(heads, length):
  arrays = made_up(heads, length=length, size=LANES)[:3]
  np.testing.assert_allclose(
    jax.jit(splash)(*arrays), by_hand(*arrays), atol=1e-5
  )


@pytest.mark.parametrize("window", [1, 2, 5, 36, 37, 1000])
def test_a_window_is_that_of_a_loop(window):
  arrays = made_up((4, 2), length=37, size=LANES)[:3]
  expected = by_hand(*arrays, window=window, scale=0.05)
  for kernel in (attention.causal, splash):
    attend = functools.partial(kernel, window=window, scale=0.05)
    np.testing.assert_allclose(jax.jit(attend)(*arrays), expected, atol=1e-5)


@pytest.mark.parametrize("window", [1, 100, 600, 2000])
def test_a_window_over_long_rows_is_that_of_one_mask(window):
  """Blocks of queries that read the keys of their window alone."""
  arrays = made_up((2, 1), batch=1, length=2100, size=4)

  def in_blocks(*arrays):
    return attention.causal(*arrays, window=window, implementation="xla")

  attended, gradients = with_gradient(in_blocks)(*arrays)
  expected, expected_gradients = _one_mask(window, *arrays)
  np.testing.assert_allclose(attended, expected, atol=2e-6)
  for part, gradient in zip(gradients, expected_gradients, strict=True):
    np.testing.assert_allclose(part, gradient, atol=3e-5)


@jax.jit
def _one_mask(window, *arrays):
  """The same for any window, in one program."""
  length = arrays[0].shape[1]

  def attend(*arrays):
    mask = attention_blocks.is_readable(0, length, length, window)
    return jax.nn.dot_product_attention(*arrays, mask=mask[None, None])

  return with_gradient(attend)(*arrays)


@pytest.mark.parametrize("window", [1, 3, 6, 50])
def test_a_window_reaches_into_what_rows_share(window):
  query, key, value, _ = made_up((4, 2), batch=6, length=7, size=6)
  shared = made_up((4, 2), batch=3, length=5, size=6, seed=1)[1:3]
  lengths = np.asarray([5, 0, 2])
  attended = jax.jit(functools.partial(after_shared, window=window))(
    query, key, value, *shared, lengths
  )
  expected = after_shared_by_hand(
    query, key, value, *shared, lengths, window=window
  )
  np.testing.assert_allclose(attended, expected, atol=2e-6)


def gradient_of(attend):
  def loss(query, key, value, direction):
    return jnp.sum(attend(query, key, value) * direction)

  return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


def with_gradient(attend):
  """What is attended, and the gradients, in one program."""
  gradient = gradient_of(attend)
  return jax.jit(lambda *arrays: (attend(*arrays[:3]), gradient(*arrays)))


@pytest.mark.parametrize("length", [37, 300])
def test_the_kernel_of_tpus_has_the_gradient_of_xla(length):
  """300 tokens are padded to 384, and stand in blocks of 384."""
  arrays = made_up(length=length, size=LANES)
  expected = gradient_of(attention.xla)(*arrays)
  for found, gradient in zip(
    gradient_of(splash)(*arrays), expected, strict=True
  ):
    np.testing.assert_allclose(found, gradient, atol=2e-5)


@pytest.mark.parametrize("axes", [(2, 2, 2), (4, 2, 1)])
def test_the_kernel_of_tpus_runs_on_each_device_s_part(axes):
  """A batch of 4 is cut over 4 devices, and one of 8 ways is not."""
  arrays = made_up(batch=4, length=9, size=LANES)
  expected = gradient_of(attention.xla)(*arrays)
  with jax.set_mesh(sharding.make_mesh(*axes)):
    found = gradient_of(splash)(*arrays)
    text = jax.jit(splash).lower(*arrays[:3]).as_text()
  for part, gradient in zip(found, expected, strict=True):
    np.testing.assert_allclose(part, gradient, atol=2e-5)
  cut, heads = 4 // (axes[0] * axes[1]) or 4, 4 // axes[2]
  assert f"tensor<{cut}x{LANES}x{heads}x{LANES}xf32>" in text


@pytest.mark.parametrize(
  ("kernel", "length", "batch"),
  [
    (attention.xla, 10, 4),
    (attention.xla, 10, 3),
    (attention.xla, 1300, 2),
    (splash, 10, 4),
    (splash, 512, 2),
    (splash, 600, 3),
  ],
)
def test_devices_share_the_queries_of_a_sequence(kernel, length, batch):
  """A batch of 3 is cut nowhere; 600 tokens are no multiple of lanes."""
  size = LANES if kernel is splash else 8
  arrays = made_up(batch=batch, length=length, size=size)
  attended, expected = with_gradient(attention.xla)(*arrays)
  mesh = sharding.make_mesh(1, 2, 2, context=2)
  with jax.set_mesh(mesh):
    actual, found = with_gradient(kernel)(*arrays)
  np.testing.assert_allclose(actual, attended, atol=1e-5)
  for part, gradient in zip(found, expected, strict=True):
    np.testing.assert_allclose(part, gradient, atol=3e-5)
  if kernel is attention.xla:
    with jax.set_mesh(mesh):
      text = jax.jit(kernel).lower(*arrays[:3]).compile().as_text()
    # Each device has the logits of its own queries alone.
    local = batch // 2 if batch % 2 == 0 else batch
    shapes = {tuple(map(int, x.split(","))) for x in SHAPE.findall(text)}
    own = local * 2 * length * length // 2
    assert max(math.prod(shape) for shape in shapes) <= own


@pytest.mark.parametrize("length", [2049, 2600])
def test_a_long_row_is_read_some_queries_at_a_time(length):
  arrays = made_up((2, 1), batch=1, length=length, size=4)

  def whole(query, key, value):
    return jax.nn.dot_product_attention(query, key, value, is_causal=True)

  in_blocks, at_once = (
    jax.jit(attend).lower(*arrays[:3]).compile()
    for attend in (attention.xla, whole)
  )
  np.testing.assert_allclose(
    in_blocks(*arrays[:3]), at_once(*arrays[:3]), atol=1e-5
  )
  for part, gradient in zip(
    gradient_of(attention.xla)(*arrays),
    gradient_of(whole)(*arrays),
    strict=True,
  ):
    np.testing.assert_allclose(part, gradient, atol=3e-5)
  logits = 4 * 2 * length**2
  assert in_blocks.memory_analysis().temp_size_in_bytes < logits
  assert at_once.memory_analysis().temp_size_in_bytes >= logits


def test_bfloat16_in_the_kernel_of_tpus_stays_near_float32():
  exact = made_up(length=40, size=LANES)[:3]
  half = jax.jit(splash)(*(x.astype(jnp.bfloat16) for x in exact))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(half, np.float32), by_hand(*exact), atol=0.05
  )


def after_shared(
  query, key, value, shared_key, shared_value, lengths, **settings
):
  shared = prefix_attention.Shared(shared_key, shared_value, lengths)
  return prefix_attention.after_shared(query, key, value, shared, **settings)


def after_shared_by_hand(
  query, key, value, shared_key, shared_value, lengths, **settings
):
  """Each row by itself, as the end of its prefix and itself."""
  share = len(query) // len(lengths)
  rows = []
  for row in range(len(query)):
    length = lengths[row // share]
    begin = [
      np.asarray(x)[row // share, :length] for x in (shared_key, shared_value)
    ]
    own = [np.asarray(x)[row] for x in (key, value)]
    keys, values = (
      np.concatenate(pair) for pair in zip(begin, own, strict=True)
    )
    nothing = np.zeros((length, *query.shape[2:]))
    queries = np.concatenate([nothing, np.asarray(query)[row]])
    attended = by_hand(queries[None], keys[None], values[None], **settings)
    rows.append(attended[0, length:])
  return np.stack(rows)


@pytest.mark.parametrize(
  ("heads", "length"), [((4, 2), 3), ((1, 1), 1), ((2, 1), 520)]
)
def test_what_rows_share_is_as_if_each_had_it(heads, length):
  """Also where the queries are too many for one block."""
  query, key, value, _ = made_up(heads, batch=6, length=length, size=6)
  shared = made_up(heads, batch=3, length=5, size=6, seed=1)[1:3]
  lengths = np.asarray([5, 0, 2])
  run = jax.jit(after_shared)
  attended = run(query, key, value, *shared, lengths)
  expected = after_shared_by_hand(query, key, value, *shared, lengths)
  np.testing.assert_allclose(attended, expected, atol=2e-6)
  # What stands at the prefixes' padding changes nothing.
  counted = np.arange(5)[None, :, None, None] < lengths[:, None, None, None]
  dirty = [np.where(counted, x, np.float32(1e4)) for x in shared]
  again = run(query, key, value, *dirty, lengths)
  np.testing.assert_array_equal(again, attended)


def test_parts_merge_to_the_whole():
  rng = np.random.default_rng(2)
  logits, values = rng.normal(size=(2, 7)), rng.normal(size=(2, 7, 3))
  weights = np.exp(logits)
  parts = [
    (
      (weights[:, cut, None] * values[:, cut]).sum(1)
      / weights[:, cut].sum(1)[:, None],
      np.log(weights[:, cut].sum(1)),
    )
    for cut in (slice(3), slice(3, 4), slice(4, None))
  ]
  # A part without keys.
  parts.append((np.full((2, 3), 1e3), np.full(2, -1e38)))
  merged = jax.jit(prefix_attention.merge_parts)(*zip(*parts, strict=True))
  whole = (weights[..., None] * values).sum(1) / weights.sum(1)[:, None]
  np.testing.assert_allclose(merged, whole, rtol=1e-5)


def lowered_text(function, *arguments, platform):
  traced = jax.jit(function).trace(*arguments)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.fixture(scope="module")
def for_tpus():
  """A network whose heads suit the TPU's kernel: its shapes."""
  return decoder.make(
    networks.config_of(head_size=LANES, compute_dtype="bfloat16")
  )


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_tpus_get_their_kernel_and_other_platforms_do_not(remat):
  graphdef, template = decoder.make(
    networks.config_of(head_size=LANES, compute_dtype="bfloat16", remat=remat)
  )
  ids = jax.ShapeDtypeStruct((4, 70), jnp.int32)

  def forward(params, ids, mask):
    return decoder.hidden_states(graphdef, params, ids, mask)

  def backward(params, ids, mask):
    total = lambda p: jnp.sum(forward(p, ids, mask).astype(jnp.float32))  # noqa: E731
    return jax.grad(total)(params)

  kernels = {}
  for function in (forward, backward):
    for platform in ("tpu", "cpu"):
      text = lowered_text(function, template, ids, ids, platform=platform)
      kernels[function, platform] = text.count("tpu_custom_call")
  # Of the gradient: by queries, by keys and values, and the forward pass,
  # which is run again where layers are recomputed.
  assert kernels == {
    (forward, "tpu"): 1,
    (forward, "cpu"): 0,
    (backward, "tpu"): 4 if remat == "layer" else 3,
    (backward, "cpu"): 0,
  }


def test_prompts_are_read_by_the_kernel_of_tpus_too(for_tpus):
  graphdef, template = for_tpus
  ids = jax.ShapeDtypeStruct((4, 70), jnp.int32)

  def prefill(params, ids, mask):
    weights = cached_forward.by_layer(graphdef, params)
    return cached_forward.prefill(
      graphdef, weights, ids, mask, num_parts=1, dtype="bfloat16"
    )

  text = lowered_text(prefill, template, ids, ids, platform="tpu")
  # Of the last layer only keys and values are asked for.
  num_layers = template["layers"]["query"].shape[0]
  assert text.count("tpu_custom_call") >= num_layers - 1 > 0


@pytest.mark.parametrize(
  "changed", [{"head_size": 64}, {"compute_dtype": "float16"}]
)
def test_what_does_not_suit_the_kernel_is_left_to_xla(changed):
  sizes = {"head_size": LANES, "compute_dtype": "bfloat16", **changed}
  graphdef, template = decoder.make(networks.config_of(**sizes))
  ids = jax.ShapeDtypeStruct((4, 70), jnp.int32)
  function = functools.partial(decoder.hidden_states, graphdef)
  text = lowered_text(function, template, ids, ids, platform="tpu")
  assert "tpu_custom_call" not in text


def test_the_choice_for_another_platform_costs_nothing():
  """On a CPU a program that could run on TPUs is the one that could not."""

  def temporary(implementation):
    config = networks.config_of(
      head_size=LANES, attention=implementation, remat="none"
    )
    graphdef, template = decoder.make(config)
    ids = jax.ShapeDtypeStruct((4, 64), jnp.int32)

    def loss(params, ids, mask):
      return jnp.sum(decoder.hidden_states(graphdef, params, ids, mask))

    compiled = jax.jit(jax.grad(loss)).lower(template, ids, ids).compile()
    assert "conditional" not in compiled.as_text()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary("auto") == temporary("xla")


@pytest.mark.parametrize(
  ("head_size", "dtype", "has_cudnn", "expected"),
  [
    (128, "bfloat16", True, {"tpu": "splash", "cuda": "cudnn"}),
    (128, "bfloat16", False, {"tpu": "splash"}),
    (128, "float32", True, {"tpu": "splash"}),
    (128, "float16", True, {"cuda": "cudnn"}),
    (128, "float64", True, {}),
    (256, "bfloat16", True, {"tpu": "splash"}),
    (64, "bfloat16", True, {"cuda": "cudnn"}),
    (20, "bfloat16", True, {}),
  ],
)
def test_each_platform_gets_what_suits(head_size, dtype, has_cudnn, expected):
  """JAX traces the kernel of GPUs where it finds one, and so nowhere here."""
  found = sequence_attention.by_platform(
    head_size=head_size, dtype=dtype, has_cudnn=has_cudnn
  )
  assert found == expected


@pytest.mark.parametrize(
  ("implementation", "size", "dtype", "message"),
  [
    ("splash", 64, "float32", r"multiple of 128, got head_size=64; .*auto"),
    ("splash", 128, "float16", r"bfloat16 or float32, got compute_dtype=fl"),
    ("cudnn", 20, "bfloat16", r"multiple of 8, at most 128, got head_size=20"),
    ("cudnn", 256, "bfloat16", r"at most 128, got head_size=256; .*xla"),
    ("cudnn", 64, "float32", r"bfloat16 or float16, got compute_dtype=float32"),
    ("cudnn", 64, "bfloat16", r"runs on a gpu, and this is a cpu; .*auto"),
  ],
)
def test_a_kernel_that_cannot_run_says_why(
  implementation, size, dtype, message
):
  arrays = [x.astype(dtype) for x in made_up(size=size)[:3]]
  with pytest.raises(
    ValueError, match=f"attention={implementation} .*" + message
  ):
    attention.causal(*arrays, implementation=implementation)


@pytest.mark.parametrize(
  ("implementation", "platform", "needed"),
  [("cudnn", "tpu", "gpu"), ("splash", "gpu", "tpu"), ("splash", "cpu", "tpu")],
)
def test_a_kernel_of_another_platform_is_refused(
  implementation, platform, needed
):
  sequence_attention.check_platform(implementation, needed)
  for always in ("auto", "xla"):
    sequence_attention.check_platform(always, platform)
  with pytest.raises(ValueError, match=f"on a {needed}, .* is a {platform}"):
    sequence_attention.check_platform(implementation, platform)
