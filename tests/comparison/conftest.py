"""One base model for all tests of the comparison."""

import jax
import pytest
import tiny

from distil_jax.comparison import bases


@pytest.fixture(scope="session")
def trained_base():
  """Parameters, and how far from its targets each step was."""
  return bases.train(
    jax.random.key(0),
    family=tiny.FAMILY,
    config=tiny.NETWORK,
    num_steps=250,
    batch_size=64,
    learning_rate=8e-3,
  )


@pytest.fixture(scope="session")
def base(trained_base):
  return trained_base[0]
