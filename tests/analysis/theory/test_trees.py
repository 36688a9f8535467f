"""The two terms of the gradient, against finite differences and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.analysis.theory import trees
from tests import references

NUM_INSTANCES = 1000
WORDS, LENGTH = 2, 3


def tables(seed, num_instances, num_words=WORDS, length=LENGTH, scale=1.0):
  rng = np.random.default_rng(seed)
  shape = (num_instances, trees.num_states(num_words, length), num_words)
  logits = rng.normal(0, scale, shape)
  return logits, trees.softmax(rng.normal(0, scale, shape))


def terms(logits, teacher, length=LENGTH, **settings):
  """Both terms, summed over the completions. Shape `[..., N, V]` each."""
  local = trees.local_term(logits, teacher, length)
  score = trees.score_term(logits, teacher, length, **settings)
  return local.sum(axis=-3), score.sum(axis=-3)


def test_completions_in_order():
  ids, states = trees.completions(2, 3)
  assert ids.tolist()[:3] == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
  # 0 is the empty state, 1 and 2 follow one word, 3 to 6 two.
  assert states[:, 1].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
  assert states[:, 2].tolist() == [3, 3, 4, 4, 5, 5, 6, 6]
  assert trees.num_states(3, 3) == trees.completions(3, 3)[1].max() + 1 == 13


def test_chances_and_future_costs_by_hand():
  logits = np.log([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]])
  teacher = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
  np.testing.assert_allclose(
    trees.chances(logits, 2), [0.125, 0.125, 0.375, 0.375]
  )
  np.testing.assert_allclose(
    trees.state_costs(logits, teacher), [np.log(4), np.log(2), np.log(2)]
  )
  np.testing.assert_allclose(
    trees.future_costs(logits, teacher, 2), [[np.log(2), 0]] * 4
  )
  assert trees.expected_cost(logits, teacher, 2) == pytest.approx(np.log(8))


def test_normalised_future_costs_are_means():
  logits, teacher = tables(0, 10)
  plain = trees.future_costs(logits, teacher, LENGTH)
  means = trees.future_costs(logits, teacher, LENGTH, normalize=True)
  np.testing.assert_allclose(plain[..., 2], 0, atol=1e-12)
  np.testing.assert_allclose(means * [2, 1, 1], plain)


@pytest.mark.parametrize(("num_words", "length"), [(2, 3), (3, 3)])
def test_two_terms_make_the_gradient(num_words, length):
  logits, teacher = tables(1, NUM_INSTANCES, num_words, length)
  local, score = terms(logits, teacher, length)
  exact = np.zeros_like(logits)
  for index in np.ndindex(logits.shape[1:]):
    nudge = np.zeros(logits.shape[1:])
    nudge[index] = 1e-5
    rise = trees.expected_cost(logits + nudge, teacher, length)
    fall = trees.expected_cost(logits - nudge, teacher, length)
    exact[:, *index] = (rise - fall) / 2e-5
  np.testing.assert_allclose(local + score, exact, atol=1e-8)
  assert np.all(np.abs(score).sum(axis=(1, 2)) > 1e-3)


def cosines(first, second):
  norms = [np.sqrt(np.sum(x**2, axis=(1, 2))) for x in (first, second)]
  return np.sum(first * second, axis=(1, 2)) / (norms[0] * norms[1])


@pytest.mark.parametrize("length", [3, 4])
def test_normalised_returns_are_biased_but_less_than_none(length):
  logits, teacher = tables(2, NUM_INSTANCES, 3, length)
  local, score = terms(logits, teacher, length)
  _, normalised = terms(logits, teacher, length, normalize=True)
  none = cosines(local, local + score)
  biased = cosines(local + normalised, local + score)
  assert none.mean() < biased.mean() < 0.999
  assert biased.mean() > 0.96
  assert none.mean() < 0.94


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_has_the_gradient_of_the_enumeration(normalize):
  with jax.enable_x64():
    logits, teacher = tables(3, NUM_INSTANCES)
    ids, states = trees.completions(WORDS, LENGTH)

    def loss(student, expert, chances):
      # Each completion as often as the student writes it.
      token_losses = references.distil(
        student[states],
        jnp.log(expert)[states],
        jnp.asarray(ids),
        jnp.ones_like(ids),
        normalize=normalize,
      ).token_losses
      return jnp.sum(chances * token_losses.sum(axis=1))

    gradient = jax.jit(jax.vmap(jax.grad(loss)))(
      jnp.asarray(logits),
      jnp.asarray(teacher),
      jnp.asarray(trees.chances(logits, LENGTH)),
    )
    local, score = terms(logits, teacher, normalize=normalize)
    np.testing.assert_allclose(gradient, local + score, atol=1e-12)
