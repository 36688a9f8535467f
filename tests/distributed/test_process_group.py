"""Agreement of several members over jax's real coordination service."""

import concurrent.futures
import contextlib
import random
import threading
import time

import jax
import pytest
from jax._src import distributed
from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

from distil_jax.distributed import heartbeat, private_api, process_group
from distil_jax.distributed.launch import LaunchError
from distil_jax.distributed.private_api import CoordinationService
from tests.commands import free_port

COUNT = 4


@contextlib.contextmanager
def group():
  """The members, each with a client of its own, in one process."""
  address = f"127.0.0.1:{free_port()}"
  service = _jax.get_distributed_runtime_service(address, COUNT)
  clients = [
    _jax.get_distributed_runtime_client(address, index, init_timeout=20)
    for index in range(COUNT)
  ]
  with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
    list(pool.map(lambda client: client.connect(), clients))
    members = [
      process_group.ProcessGroup(CoordinationService(client), index, COUNT, [])
      for index, client in enumerate(clients)
    ]
    try:
      yield members, pool
    finally:
      for member in members:
        member.stop_watching()
      list(pool.map(lambda client: client.shutdown(), clients))
  service.shutdown()


@pytest.mark.parametrize("askers", [(2,), (0, 1, 2, 3)])
def test_all_stop_at_the_same_place(monkeypatch, askers):
  monkeypatch.setattr(heartbeat, "POLL_SECONDS", 0.05)
  # As collectives do: nobody is a place ahead of another for long.
  step = threading.Barrier(COUNT)

  def work(member):
    noise = random.Random(member.index)
    for place in range(10_000):
      time.sleep(noise.random() / 200)
      if place % 3 == 0:
        step.wait(20)
      if place == 20 + 3 * member.index and member.index in askers:
        member.ask_to_stop("SIGTERM")
      try:
        member.check()
      except process_group.Stopped as stopped:
        return place, str(stopped)
    return None

  with group() as (members, pool):
    found = list(pool.map(work, members))
  places, texts = zip(*found, strict=True)
  assert len(set(places)) == 1
  assert places[0] > 20
  for text in texts:
    number = int(text.split()[1])
    assert number in askers
    assert text == f"process {number} was asked to stop by SIGTERM"


def test_all_are_told_who_differs():
  def settings(member):
    values = {"train.seed": 0, "mesh.data": 2, "jax": "0.10.2"}
    changed = {1: {"train.seed": 7}, 3: {"jax": "0.10.1", "mesh.data": None}}
    return values | changed.get(member.index, {})

  def compare(member, what, values):
    try:
      member.compare(what, values, "do the same")
    except process_group.ProcessError as error:
      return str(error)
    return None

  with group() as (members, pool):
    same = pool.map(lambda m: compare(m, "data", {"rows": [1, 2]}), members)
    assert list(same) == [None] * COUNT
    found = list(pool.map(lambda m: compare(m, "it", settings(m)), members))
  assert (
    found
    == [
      "the processes differ in it; do the same:\n"
      "  train.seed: 0 in process 0, 7 in process 1\n"
      "  mesh.data: 2 in process 0, None in process 3\n"
      "  jax: '0.10.2' in process 0, '0.10.1' in process 3"
    ]
    * COUNT
  )


def test_another_jax_is_named(monkeypatch):
  with pytest.raises(LaunchError, match="no blocking_key_value_get, key_value"):
    CoordinationService(object())
  monkeypatch.delattr(distributed, "global_state")
  with pytest.raises(LaunchError, match=f"jax {jax.__version__} does not"):
    private_api.connected_service()
