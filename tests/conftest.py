"""Strict settings for all tests; they must stand before jax is imported."""

import gc
import os
import pathlib
import signal
import time

from tests import garbage, xla_settings

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
  (
    os.environ.get("XLA_FLAGS", ""),
    xla_settings.fast_compile_flags(),
    "--xla_force_host_platform_device_count=8",
  )
)
os.environ.update(xla_settings.shared_cache())
# Where in the source each operation of a program comes from costs a few per
# cent of all time. Only plans read it, for the names of kernels.
os.environ["JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS"] = "0"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
xla_settings.share_lowering_contexts()


# These take longest, or are long and would be among the last; where they begin
# first, no worker waits for another.
_FIRST = (
  "test_hosts",
  "test_commands",
  "test_compare",
  "test_engine",
  "test_golden_runs",
  "test_gradient_noise",
  "test_resume",
  "test_shared_prefixes",
  "test_student_tokens",
  "test_teacher_models",
  "test_train_step",
  "test_trainer",
  "test_two_processes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  items.sort(key=lambda item: item.path.stem not in _FIRST)


def pytest_collection_finish() -> None:
  garbage.collect_rarely()


@pytest.fixture
def interruptible():
  """Lets SIGINT interrupt this process and those that it starts.

  One that a script starts in the background, or nohup, ignores it.
  """
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, before)


# XLA maps each program in about six pieces. The more of them there are, the
# longer everything takes that throws exceptions in C++, which are looked up in
# the code of all programs: beside 1,600 programs the next one took 1.6 times as
# long to compile as the first on an idle machine, and several times as long on
# a busy one. Within a file more of them pay, because its tests share programs.
_MANY_MAPS = 1_500
_TOO_MANY_MAPS = 9_000


@pytest.fixture(scope="module", autouse=True)
def few_programs():
  """Lets the programs of a file go, if they are many: the next has its own."""
  yield
  if _num_memory_maps() > _MANY_MAPS:
    _forget_programs()


# Seconds; to count the maps after each short test would cost more than these.
_SHORT = 0.3


@pytest.fixture(autouse=True)
def few_memory_maps():
  """Lets programs go within a file too, before they slow down the next ones.

  XLA would also die where it may map no more (`vm.max_map_count`, 65530 by
  default).
  """
  begun = time.monotonic()
  yield
  if time.monotonic() - begun < _SHORT:
    return
  if _num_memory_maps() > _TOO_MANY_MAPS:
    _forget_programs()


def _num_memory_maps() -> int:
  maps = pathlib.Path("/proc/self/maps")
  return maps.read_bytes().count(b"\n") if maps.exists() else 0


def _forget_programs() -> None:
  jax.clear_caches()
  xla_settings.forget_lowering_context()
  gc.collect()
