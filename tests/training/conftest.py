"""Fixtures for tests that train."""

import pytest

from distil_jax.generation import engine


@pytest.fixture(scope="module")
def one_width():
  """Gives up no slots: each number of them is a program that compiles long."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, "ladder", lambda width: [width])
    yield
