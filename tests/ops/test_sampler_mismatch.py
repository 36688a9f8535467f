"""The distance of sampler and training pass, token by token."""

import jax
import numpy as np

from distil_jax.ops import sampler_mismatch

NOW = np.float32([[-1.0, -2.0, np.nan], [-0.5, -np.inf, 7.0]])
OLD = np.float32([[-1.5, -1.9, np.inf], [-0.5, -np.inf, np.nan]])
MASK = np.array([[1, 1, 0], [1, 0, 0]])

measure = jax.jit(sampler_mismatch.measure)
merge = jax.jit(sampler_mismatch.merge)


@jax.jit
def metrics(now, old, mask):
  return sampler_mismatch.metrics(sampler_mismatch.measure(now, old, mask))


def test_it_is_that_by_hand():
  found = metrics(NOW, OLD, MASK)
  # d = 0.5, -0.1, 0
  expected = {
    "mismatch/mean": 0.6 / 3,
    "mismatch/max": 0.5,
    "mismatch/kl": (np.exp(0.5) - 1.5 + np.exp(-0.1) - 0.9) / 3,
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_what_is_as_small_as_rounding_keeps_its_digits():
  old = np.float32([[-1e-6, 2e-6]])
  found = metrics(np.float32([[0, 0]]), old, np.float32([[1, 1]]))
  np.testing.assert_allclose(found["mismatch/mean"], 1.5e-6, rtol=1e-6)
  # d²/2, to 10 %: exp(d) - 1 - d from exp would be 0, or 1e-7.
  np.testing.assert_allclose(found["mismatch/kl"], 1.25e-12, rtol=0.1)


def test_slices_together_are_the_whole():
  rng = np.random.default_rng(0)
  now, old = rng.normal(size=(2, 6, 4)).astype(np.float32)
  mask = rng.integers(0, 2, (6, 4))
  whole = measure(now, old, mask)
  merged = measure(now[:2], old[:2], mask[:2])
  for part in (slice(2, 3), slice(3, 6)):
    other = measure(now[part], old[part], mask[part])
    merged = merge(merged, other)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), merged, whole
  )


def test_without_tokens_it_is_nothing():
  for size in (3, 0):
    now, old, mask = NOW[:, :size], OLD[:, :size], 0 * MASK[:, :size]
    found = metrics(now, old, mask)
    assert all(float(x) == 0 for x in found.values())


def test_no_gradient_flows():
  gradient = jax.jit(
    jax.grad(lambda now: sum(metrics(now, OLD, MASK).values()))
  )
  np.testing.assert_array_equal(gradient(NOW), 0)
