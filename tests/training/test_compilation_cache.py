"""Compiled programs are kept where a setting says, within a bound."""

import os
import pathlib
import time

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from distil_jax import config
from distil_jax.training.logging.compile_watch import WATCH
from distil_jax.training.setup import compilation_cache

NAMES = (
  "jax_compilation_cache_dir",
  "jax_compilation_cache_max_size",
  "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def unset(monkeypatch):
  """Takes the tests' own cache away, and gives it back."""
  before = {name: getattr(jax.config, name) for name in NAMES}
  for name in NAMES:
    monkeypatch.delenv(name.upper(), raising=False)
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()


def enable(**settings):
  section = config.parse({"compilation": settings}).compilation
  return compilation_cache.enable(section)


def compile_again():
  """Compiles one program twice; returns how often the cache had it."""
  before = WATCH.now
  for _ in range(2):
    # A function of its own, which jax has not compiled in this process.
    jax.jit(lambda x: jnp.sin(x) * 7.125 - x)(
      jnp.ones((2, 5))
    ).block_until_ready()
    jax.clear_caches()
  return WATCH.now.since(before).num_from_cache


def test_a_program_that_was_compiled_once_is_read(tmp_path):
  folder = tmp_path / "programs"
  assert enable(cache_directory=str(folder), max_cache_gigabytes=0.5) == folder
  assert jax.config.jax_compilation_cache_max_size == 500_000_000
  assert compile_again() >= 1
  kept = {path.name.rpartition("-")[0] for path in folder.glob("*-cache")}
  assert kept == {
    path.name.rpartition("-")[0] for path in folder.glob("*-atime")
  }
  # Without a cache nothing is read, although the folder is there.
  assert enable(cache_directory=None) is None
  assert compile_again() == 0


def test_the_default_is_a_folder_of_the_user(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert enable() == tmp_path / "distil_jax/compilation"
  monkeypatch.delenv("XDG_CACHE_HOME")
  monkeypatch.setenv("HOME", str(tmp_path))
  expected = tmp_path / ".cache/distil_jax/compilation"
  assert compilation_cache.default_directory() == expected


def test_a_folder_that_jax_was_told_of_stays_as_it_is(tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  assert enable() == tmp_path
  assert jax.config.jax_compilation_cache_max_size == -1
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_a_folder_that_cannot_be_made_costs_the_cache_alone(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.warns(UserWarning, match="set compilation.cache_directory"):
    assert enable(cache_directory=str(tmp_path / "file/programs")) is None
  assert jax.config.jax_compilation_cache_dir is None


def test_what_a_killed_process_left_is_removed(tmp_path):
  def write(name: str, *, age: float) -> pathlib.Path:
    path = tmp_path / name
    path.write_bytes(b"12345678")
    os.utime(path, (time.time() - age,) * 2)
    return path

  whole = [write("a-cache", age=999), write("a-atime", age=999)]
  under_way = write("b-cache", age=1)
  broken = write("c-cache", age=999)
  enable(cache_directory=str(tmp_path))
  assert all(path.exists() for path in (*whole, under_way))
  assert not broken.exists()
