"""One base model for all tests of the comparison."""

import jax
import pytest

from distil_jax.analysis.comparison import base_models
from tests.analysis.comparison import tiny


@pytest.fixture(scope="session")
def trained_base():
  """Returns parameters, each step's distance from its targets, and reports."""
  reports = []
  params, excess = base_models.train(
    jax.random.key(0), tiny.PLAN, report=lambda *said: reports.append(said)
  )
  return params, excess, reports


@pytest.fixture(scope="session")
def base(trained_base):
  return trained_base[0]
