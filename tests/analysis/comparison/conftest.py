"""One base model for all tests of the comparison."""

import jax
import pytest

from distil_jax.analysis.comparison import base_models
from tests.analysis.comparison import tiny


@pytest.fixture(scope="session")
def trained_base():
  """Parameters, how far from its targets each step was, and what was told."""
  told = []
  params, excess = base_models.train(
    jax.random.key(0), tiny.PLAN, report=lambda *said: told.append(said)
  )
  return params, excess, told


@pytest.fixture(scope="session")
def base(trained_base):
  return trained_base[0]
