"""A vocabulary that is cut over devices: same numbers, and it stays cut."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax import objectives
from distil_jax.models import sharding
from distil_jax.objectives import logits_layout
from distil_jax.ops import chunking, credit, fused_statistics, token_statistics
from distil_jax.ops.divergences import Divergence
from tests import references

B, T, D, V, GROUP_SIZE, TOP_K = 8, 6, 16, 520, 4, 5
DIVERGENCES = {
  "forward cross-entropy": Divergence(),
  "reverse KL": Divergence("reverse_kl"),
  "SDPO": Divergence("sdpo", weight=0.3, temperature=1.2),
  "OPSD": Divergence("opsd", weight=0.6, token_clip=0.02, temperature=1.3),
  "student's top-k": Divergence(top_k=TOP_K),
  "teacher's top-k": Divergence(
    "reverse_kl", top_k=TOP_K, top_k_of="teacher", tail=False
  ),
}
MESHES = {
  "tensor_8": {"data": 1, "fsdp": 1, "tensor": 8},
  "fsdp_2_tensor_4": {"data": 1, "fsdp": 2, "tensor": 4},
  "data_2_fsdp_2_tensor_2": {"data": 2, "fsdp": 2, "tensor": 2},
  "fsdp_2_context_2_tensor_2": {"fsdp": 2, "context": 2, "tensor": 2},
}
# What moves between devices that share parameters, and the axes that say so.
HOWS = {
  "states move": ("copies", "vocab_by_all"),
  "weights move": ("batch", "vocab_by_context"),
}
# Both ways where parameters are cut along two axes; one of each elsewhere.
CASES = [
  ("tensor_8", "states move"),
  *(("fsdp_2_tensor_4", how) for how in HOWS),
  ("data_2_fsdp_2_tensor_2", "weights move"),
  *(("fsdp_2_context_2_tensor_2", how) for how in HOWS),
]
CREDIT = {"baseline": "leave_one_out", "group_size": GROUP_SIZE}


def inputs():
  rng = np.random.default_rng(0)
  shapes = {"h": (B, T, D), "w": (D, V), "g": (B, T, D + 2), "u": (D + 2, V)}
  arrays = {k: rng.normal(0, 1, s).astype("f4") for k, s in shapes.items()}
  lengths = np.array([6, 3, 1, 5, 6, 2, 0, 4])
  candidates = np.argsort(rng.normal(size=(B, T, V)), -1)[..., :TOP_K]
  return arrays | {
    "ids": rng.integers(0, V, (B, T)).astype("i4"),
    "mask": (np.arange(T) < lengths[:, None]).astype("f4"),
    "candidates": candidates.astype("i4"),
    "log_probs": np.log(rng.dirichlet(np.ones(TOP_K + 1), (B, T)))[
      ..., :TOP_K
    ].astype("f4"),
  }


def surrogate(later, statistics, mask):
  """A loss with credit over time and group, made of all that has slopes."""
  costs = objectives.token_costs(statistics, mask, cost="cross_entropy")
  scores, _, later = references.score_weights_before(
    costs, mask, later, **CREDIT
  )
  losses = objectives.feedback_losses(statistics, mask, scores)
  entropies = jnp.where(mask > 0, statistics.entropies, 0.0)
  return losses + 0.3 * entropies, (later, scores)


def sources(x, h, w):
  """Every way to read statistics, by name."""
  batch, vocab = sharding.for_logits(B, T, V)
  w, u = (sharding.constrain(m, None, vocab) for m in (w, x["u"]))
  teacher = token_statistics.DenseTeacher((x["g"],), (u,))
  top_k_fn = functools.partial(sharding.top_k, batch=batch, vocab=vocab)
  compared = functools.partial(
    fused_statistics.compared, h, w, teacher, x["ids"], top_k_fn=top_k_fn
  )
  found = {name: compared(d, x["mask"]) for name, d in DIVERGENCES.items()}
  for kind, divergence in (
    ("samples", Divergence()),
    ("top_k", Divergence("sdpo", weight=0.5)),
  ):
    lists = token_statistics.SparseTeacher(
      x["candidates"], x["log_probs"], kind
    )
    found[kind] = fused_statistics.compared_with_list(
      h, w, lists, x["ids"], divergence, x["mask"]
    )
  return found


def gradients(x):
  """Value, scores, and gradients by `fused_loss` and by `statistics`."""

  def total(name, h, w, is_streamed):
    source = sources(x, h, w)[name]
    settings = {"chunk_size": 4, "layout": logits_layout.layout(h, w)}
    later = credit.nothing_later(B)
    if is_streamed:
      return source.tiled(**settings).fused_loss(surrogate, x["mask"], later)
    losses, (_, scores) = surrogate(
      later, source.tiled(**settings).statistics(), x["mask"]
    )
    return jnp.sum(losses), scores

  return {
    (name, is_streamed): jax.value_and_grad(
      functools.partial(total, name, is_streamed=is_streamed),
      (0, 1),
      has_aux=True,
    )(x["h"], x["w"])
    for name, is_streamed in [
      *((name, True) for name in (*DIVERGENCES, "samples", "top_k")),
      ("forward cross-entropy", False),
      ("student's top-k", False),
    ]
  }


@functools.cache
def in_float64():
  """From logits, by autodiff; lists have tests of their own."""

  def total(divergence, h, w, x):
    statistics = token_statistics.from_logits(
      h @ w, x["g"] @ x["u"], x["ids"], divergence
    )
    losses, (_, scores) = surrogate(
      credit.nothing_later(B, jnp.float64), statistics, x["mask"]
    )
    return jnp.sum(losses), scores

  with jax.enable_x64(True):
    wide = {
      k: jnp.asarray(v, jnp.float64 if v.dtype == np.float32 else None)
      for k, v in inputs().items()
    }
    return {
      name: jax.jit(
        jax.value_and_grad(
          functools.partial(total, divergence), (0, 1), has_aux=True
        )
      )(wide["h"], wide["w"], wide)
      for name, divergence in DIVERGENCES.items()
    }


@functools.cache
def on_mesh(name, how):
  """Results, and the text of the compiled program."""
  mesh = sharding.make_mesh(**MESHES[name])
  states = ("batch", None, "embed_by_context")
  axes = {"w": ("embed", "vocab"), "u": (None, "vocab"), "h": states}
  with jax.set_mesh(mesh), pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharding, "for_logits", lambda *sizes: HOWS[how])
    batch, vocab = (sharding.num_shards(axis) for axis in HOWS[how])
    # Two blocks of two columns in each chunk of four.
    patch.setattr(chunking, "_BLOCK", 2 * B * V // batch // vocab)
    placed = {
      key: jax.device_put(
        value, sharding.sharding(mesh, *axes.get(key, ("batch",)))
      )
      for key, value in inputs().items()
    }
    compiled = jax.jit(gradients).lower(placed).compile()
    return compiled(placed), compiled.as_text()


def assert_close(actual, expected, tolerance=1e-5):
  actual, expected = np.asarray(actual), np.asarray(expected)
  error = np.max(np.abs(actual - expected))
  assert error <= tolerance * np.max(np.abs(expected)), error


@pytest.mark.parametrize(("mesh", "how"), CASES)
def test_the_numbers_are_those_of_whole_logits_in_float64(mesh, how):
  results, _ = on_mesh(mesh, how)
  for (name, _), actual in results.items():
    if name in DIVERGENCES:
      jax.tree.map(assert_close, actual, in_float64()[name])


@pytest.mark.parametrize("kind", ["samples", "top_k"])
def test_lists_are_read_the_same_on_every_mesh(kind):
  first, *others = (on_mesh(*case)[0][kind, True] for case in CASES)
  for other in others:
    jax.tree.map(assert_close, other, first)


def collectives(text, kind):
  """Shapes and places in the source of a kind of collective."""
  pattern = (
    rf" = \(?\w+\[([\d,]*)\].* {kind}(?:-start)?\(.*op_name=\"([^\"]*)\""
  )
  return [
    ([int(size) for size in dims.split(",") if size], place)
    for dims, place in re.findall(pattern, text)
  ]


def part_of(mesh, how):
  """Tokens of the vocabulary on one device."""
  with jax.set_mesh(sharding.make_mesh(**MESHES[mesh])):
    return V // sharding.num_shards(HOWS[how][1])


@pytest.mark.parametrize(("mesh", "how"), CASES)
def test_neither_logits_nor_the_unembedding_are_gathered(mesh, how):
  _, text = on_mesh(mesh, how)
  part = part_of(mesh, how)
  gathered = collectives(text, "all-gather")
  assert gathered  # candidates of top-k, of each device
  sizes = MESHES[mesh]
  num_row_shards = sizes["fsdp"] * sizes.get("context", 1)
  for shape, place in gathered:
    assert np.prod(shape) <= D * part, place
    if V in shape:
      # A device's rows of the parameter, on their way to its columns, as large
      # as its part of either; tokens have a third axis.
      assert how == "weights move", place
      assert shape == [D // num_row_shards, V], place
      continue
    if part in shape:
      # Rows of a part of the vocabulary, once, before time is cut.
      assert how == "weights move"
      assert MESHES[mesh]["fsdp"] > 1
      assert "while" not in place
      assert shape == [D, part]


@pytest.mark.parametrize(("mesh", "how"), CASES)
def test_the_gradient_of_the_unembedding_is_summed_once(mesh, how):
  _, text = on_mesh(mesh, how)
  part = part_of(mesh, how)
  summed = collectives(text, "all-reduce") + collectives(text, "reduce-scatter")
  assert summed
  for shape, place in summed:
    if part in shape:
      assert "while" not in place, (shape, place)


def test_a_gather_would_be_seen():
  mesh = sharding.make_mesh(**MESHES["tensor_8"])
  with jax.set_mesh(mesh):
    logits = jax.ShapeDtypeStruct(
      (T, B, V),
      jnp.float32,
      sharding=sharding.sharding(mesh, None, "batch", "vocab"),
    )

    def gathered(top_k):
      compiled = jax.jit(top_k, static_argnums=1).lower(logits, TOP_K).compile()
      return [
        shape for shape, _ in collectives(compiled.as_text(), "all-gather")
      ]

    assert [T, B, V] in gathered(jax.lax.top_k)
    assert gathered(sharding.top_k)
    assert [T, B, V] not in gathered(sharding.top_k)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("k", [1, 5, 200])
def test_top_k_of_a_cut_vocabulary(mesh, k):
  # Whole numbers: many are equal, within a part and across.
  logits = np.random.default_rng(1).integers(0, 9, (3, B, V)).astype("f4")
  with jax.set_mesh(sharding.make_mesh(**MESHES[mesh])):
    actual = jax.jit(sharding.top_k, static_argnums=1)(logits, k)
  jax.tree.map(
    np.testing.assert_array_equal,
    tuple(actual),
    tuple(jax.lax.top_k(jnp.asarray(logits), k)),
  )


@pytest.mark.parametrize(("batch", "vocab"), HOWS.values(), ids=HOWS)
def test_top_k_of_logits_that_are_cut_otherwise(batch, vocab):
  logits = np.random.default_rng(1).integers(0, 9, (3, B, V)).astype("f4")
  mesh = sharding.make_mesh(**MESHES["fsdp_2_context_2_tensor_2"])
  with jax.set_mesh(mesh):
    place = sharding.sharding(mesh, None, batch, vocab)
    top_k = functools.partial(sharding.top_k, batch=batch, vocab=vocab)
    actual = jax.jit(top_k, static_argnums=1)(jax.device_put(logits, place), 9)
  expected = jax.lax.top_k(jnp.asarray(logits), 9)
  jax.tree.map(np.testing.assert_array_equal, tuple(actual), tuple(expected))


def test_what_moves_is_what_there_is_less_of():
  def axes(sizes, *logits):
    with jax.set_mesh(sharding.make_mesh(**sizes)):
      return sharding.for_logits(*logits)

  assert sharding.for_logits(8, 100, 64) == ("batch", "vocab")
  fsdp = {"data": 2, "fsdp": 4}
  # 2 x 31 tokens of each copy against 64 rows of the unembedding.
  assert axes(fsdp, 4, 31, 64) == ("copies", "vocab_by_all")
  assert axes(fsdp, 4, 32, 64) == ("batch", "vocab_by_context")
  assert axes({"data": 8, "fsdp": 1}, 8, 1, 64) == ("batch", "vocab")
  # 65 rows are not to be cut.
  assert axes(fsdp, 4, 1, 65) == ("batch", "vocab_by_context")
  context = {"fsdp": 4, "context": 2}
  assert axes(context, 4, 31, 130) == ("batch", "vocab_by_context")
  assert axes(context, 4, 31, 131) == ("batch", "vocab")


def test_top_k_of_what_cannot_be_cut():
  logits = np.random.default_rng(2).normal(size=(2, 3, 7)).astype("f4")
  with jax.set_mesh(sharding.make_mesh(**MESHES["fsdp_2_tensor_4"])):
    actual = jax.jit(sharding.top_k, static_argnums=1)(logits, 4)
  jax.tree.map(
    np.testing.assert_array_equal,
    tuple(actual),
    tuple(jax.lax.top_k(jnp.asarray(logits), 4)),
  )
