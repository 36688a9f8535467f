"""Entries behind the tokens of two padded vocabularies count for nothing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.ops import (
  fused_statistics,
  statistics_vjp,
  teacher_candidates,
  token_statistics,
  vocabulary,
)
from distil_jax.ops.divergences import Divergence
from distil_jax.ops.token_statistics import DenseTeacher, SparseTeacher
from tests import formulas

NUM_TOKENS, VOCAB_SIZE = 5, 7
KINDS = (
  {"kind": "forward_cross_entropy"},
  {"kind": "forward_kl"},
  {"kind": "reverse_kl"},
  {"kind": "sdpo", "weight": 0.3},
  {"kind": "opsd", "weight": 0.6, "token_clip": 0.05},
)
SUPPORTS = (
  {},
  {"top_k": 3},
  {"top_k": 3, "tail": False, "top_k_of": "teacher"},
  # All tokens, but not all entries; and padding among those that are kept.
  {"top_k": NUM_TOKENS},
  {"top_k": NUM_TOKENS + 1},
)


def tile():
  """Logits `[4, 7]` each, padding as likely as tokens, and ids of tokens."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(0, 2, (2, 4, VOCAB_SIZE))
  student[1, NUM_TOKENS:] += 5
  teacher[2, NUM_TOKENS:] += 5
  return student, teacher, rng.integers(0, NUM_TOKENS, 4).astype(np.int32)


def by_formula(s, t, token, where, kind):
  """The statistics of one state, in float64: both logits cut to the tokens."""
  where = dict(where)
  if where.get("top_k", 0) >= NUM_TOKENS:
    where = {"temperature": where["temperature"]}
  known, teacher = s[:NUM_TOKENS], t[:NUM_TOKENS]
  sides = formulas.support(known, teacher, **where)
  own = formulas.log_softmax(known)
  return {
    "costs": formulas.divergence(*sides, **kind),
    "cross_entropies": formulas.divergence(*sides, "forward_cross_entropy"),
    "teacher_entropies": formulas.entropy(sides[1]),
    "log_probs": own[token],
    "entropies": formulas.entropy(own),
    "teacher_log_probs": formulas.log_softmax(teacher)[token],
  }


@pytest.mark.parametrize("kind", KINDS, ids=lambda x: x["kind"])
def test_values_and_gradients_are_those_of_logits_cut_to_the_tokens(kind):
  student, teacher, ids = tile()
  pulls = dict(
    zip(
      ("costs", "log_probs", "entropies"),
      np.random.default_rng(1).normal(size=(3, len(ids))),
      strict=True,
    )
  )
  for support, temperature in itertools.product(SUPPORTS, (1.0, 1.3)):
    where = {**support, "temperature": temperature}
    divergence = Divergence(**kind, **where, vocab_size=NUM_TOKENS)

    def total(logits, where=where):
      return sum(
        pulls[name][row] * value
        for row in range(len(ids))
        for name, value in by_formula(
          logits[row], teacher[row], ids[row], where, kind
        ).items()
        if name in pulls
      )

    with jax.enable_x64(True):
      logits = jnp.asarray(student), jnp.asarray(teacher), jnp.asarray(ids)
      found, residuals = statistics_vjp.read(*logits, divergence)
      gradient = statistics_vjp.vjp(*logits, divergence, residuals, **pulls)

      def dense(x, logits=logits, divergence=divergence):
        read = token_statistics.from_logits(x, *logits[1:], divergence)
        return sum(jnp.sum(p * getattr(read, k)) for k, p in pulls.items())

      by_autodiff = jax.grad(dense)(logits[0])
    for row in range(len(ids)):
      expected = by_formula(student[row], teacher[row], ids[row], where, kind)
      for name, value in expected.items():
        np.testing.assert_allclose(
          found[name][row], value, rtol=1e-10, atol=1e-12, err_msg=str(where)
        )
    expected = formulas.numerical_gradient(total, student)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(by_autodiff, gradient, rtol=0, atol=1e-12)


def test_padding_matters_if_it_is_not_left_out():
  student, teacher, ids = tile()
  read = jax.jit(statistics_vjp.read, static_argnums=3)
  cut, whole = (
    np.asarray(
      read(student, teacher, ids, Divergence("reverse_kl", vocab_size=size))[0][
        "costs"
      ]
    )
    for size in (NUM_TOKENS, None)
  )
  assert np.abs(cut - whole).min() > 1e-2


def test_a_policy_alone_is_read_without_padding():
  student, _, ids = tile()
  known = np.asarray([formulas.log_softmax(x[:NUM_TOKENS]) for x in student])
  hidden, identity = hidden_of(student)

  def total(hidden):
    read = fused_statistics.token_log_probs(
      hidden, identity, jnp.asarray(ids)[None], vocab_size=NUM_TOKENS
    )
    return jnp.sum(read.log_probs) + 2 * jnp.sum(read.entropies), read

  (_, read), gradient = jax.value_and_grad(total, has_aux=True)(hidden)
  own = known[np.arange(len(ids)), ids]
  entropies = [formulas.entropy(row) for row in known]
  np.testing.assert_allclose(read.log_probs[0], own, rtol=1e-5)
  np.testing.assert_allclose(read.entropies[0], entropies, rtol=1e-5)
  expected = formulas.numerical_gradient(
    lambda x: sum(
      formulas.log_softmax(row[:NUM_TOKENS])[token]
      + 2 * formulas.entropy(formulas.log_softmax(row[:NUM_TOKENS]))
      for row, token in zip(x, ids, strict=True)
    ),
    student,
  )
  np.testing.assert_allclose(gradient[0], expected, atol=1e-5)
  assert not np.asarray(gradient)[..., NUM_TOKENS:].any()


def test_all_entries_are_the_same_array():
  logits = jnp.ones((2, 3))
  for size in (None, 3, 4):
    assert vocabulary.only_tokens(logits, size) is logits


def hidden_of(logits):
  """Hidden states and an unembedding whose product is `[N, V]` logits."""
  return np.float32(logits)[None], np.eye(VOCAB_SIZE, dtype=np.float32)


def test_a_list_names_no_padding():
  _, teacher, tokens = tile()
  hidden, identity = hidden_of(teacher)
  asked = DenseTeacher((hidden,), (identity,))
  expected = np.asarray(
    [formulas.log_softmax(row[:NUM_TOKENS]) for row in teacher]
  )
  ids, log_probs, own = jax.jit(
    functools.partial(
      teacher_candidates.most_probable, size=NUM_TOKENS, vocab_size=NUM_TOKENS
    )
  )(asked, tokens[None])
  own_expected = expected[np.arange(len(tokens)), tokens]
  np.testing.assert_allclose(own[0], own_expected, rtol=1e-5)
  order = np.argsort(-expected, axis=-1)
  np.testing.assert_array_equal(ids[0], order)
  np.testing.assert_allclose(
    log_probs[0], np.take_along_axis(expected, order, -1), rtol=1e-5
  )
  # Evenly spread uniforms draw each token in proportion to its probability.
  count = 20_000
  spread = np.float32((np.arange(count) + 0.5) / count)
  uniforms = np.broadcast_to(spread, (1, len(teacher), count))
  ids, *_ = jax.jit(
    functools.partial(teacher_candidates.samples, vocab_size=NUM_TOKENS)
  )(asked, uniforms)
  ids = np.asarray(ids)
  for row, probs in enumerate(np.exp(expected)):
    shares = np.bincount(ids[0, row], minlength=VOCAB_SIZE) / count
    np.testing.assert_allclose(shares[:NUM_TOKENS], probs, atol=2 / count)
    assert not shares[NUM_TOKENS:].any()
  with pytest.raises(ValueError, match=r"6 tokens .* vocabulary has 5"):
    teacher_candidates.most_probable(
      asked, tokens[None], size=NUM_TOKENS + 1, vocab_size=NUM_TOKENS
    )


@pytest.mark.parametrize("size", [2, NUM_TOKENS])
@pytest.mark.parametrize(
  ("kind", "tail"), [("samples", False), ("top_k", True), ("top_k", False)]
)
def test_costs_of_lists_leave_out_padding(kind, tail, size):
  student, teacher, ids = tile()
  rows = [formulas.log_softmax(row[:NUM_TOKENS]) for row in teacher]
  listed = np.asarray([np.argsort(-row)[:size] for row in rows])
  log_probs = np.asarray([row[i] for row, i in zip(rows, listed, strict=True)])
  if kind == "samples":
    log_probs[:] = -np.log(size)

  @jax.jit
  def run(hidden, matrix, listed, log_probs):
    return fused_statistics.compared_with_list(
      hidden,
      matrix,
      SparseTeacher(listed, log_probs, kind),
      ids[None],
      Divergence(tail=tail, vocab_size=NUM_TOKENS),
    ).statistics()

  read = run(
    *hidden_of(student), np.int32(listed[None]), np.float32(log_probs[None])
  )
  for row in range(len(ids)):
    known = formulas.log_softmax(student[row][:NUM_TOKENS])
    weights, values = np.exp(log_probs[row]), known[listed[row]]
    expected = -np.sum(weights * values)
    if kind == "top_k" and not tail:
      expected = expected / weights.sum() + np.log(np.exp(values).sum())
    if tail and size < NUM_TOKENS:
      rest = 1 - np.exp(values).sum()
      expected -= (1 - weights.sum()) * np.log(rest)
    np.testing.assert_allclose(read.costs[0, row], expected, rtol=1e-5)
    own = known[ids[row]]
    np.testing.assert_allclose(read.log_probs[0, row], own, rtol=1e-5)
