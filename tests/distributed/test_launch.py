"""Which process this is, and whether all have come."""

import concurrent.futures
import socket
import time

import pytest

from distil_jax.distributed import launch, rendezvous
from tests.commands import free_port

SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "node[1-2]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}
SAID = launch.ProcessSpec("10.0.0.1:1234", 2, 1)


def find(environ, is_tpu=False, **said):
  return launch.find(environ, has_tpu=lambda: is_tpu, **said)


@pytest.mark.parametrize(
  ("environ", "is_tpu"),
  [
    ({}, False),
    ({**SLURM, "SLURM_NTASKS": "1"}, False),
    # A batch script is no step, though it has most of the variables.
    ({k: v for k, v in SLURM.items() if "STEP" not in k}, False),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, True),
    ({"TPU_SKIP_MDS_QUERY": "1"}, True),
    ({"JAX_PLATFORMS": "cpu"}, True),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, False),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
  ],
)
def test_one_machine_is_alone(environ, is_tpu):
  assert find(environ, is_tpu) is None


def test_clusters_are_found():
  found = find(SLURM)
  assert found == launch.ProcessSpec(
    num_processes=4, process_id=3, cluster="slurm"
  )
  assert found.cluster_method == "slurm"
  assert str(found) == "process 3 of 4"
  for environ in (
    {"TPU_WORKER_HOSTNAMES": "a,b"},
    {"TPU_PROCESS_ADDRESSES": "a:1,b:1", "TPU_SKIP_MDS_QUERY": "1"},
    {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
    {},
  ):
    found = find(environ, is_tpu=True)
    assert found == launch.ProcessSpec(cluster="tpu")
    assert found.cluster_method is None


def test_what_is_said_goes_before_what_is_found():
  said = {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}
  variables = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
  }
  other = {**variables, "JAX_PROCESS_ID": "0", **SLURM}
  assert find(SLURM, **said) == find(variables) == find(other, **said) == SAID
  assert SAID.cluster_method == "deactivate"
  assert find(SLURM, num_processes=1) is None
  assert find({"JAX_NUM_PROCESSES": "1"}, is_tpu=True) is None


@pytest.mark.parametrize(
  ("said", "text"),
  [
    ({"process_id": 1}, "no --coordinator"),
    ({"coordinator": "a:1", "num_processes": 2}, "no --process-id"),
    ({"num_processes": 2}, "--num-processes 1"),
    (
      {"coordinator": "a", "num_processes": 2, "process_id": 0},
      "must be HOST:PORT",
    ),
    (
      {"coordinator": "a:99999", "num_processes": 2, "process_id": 0},
      "must be HOST:PORT",
    ),
    (
      {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
      r"--process-id 2 must be in 0\.\.1",
    ),
  ],
)
def test_half_a_place_is_refused(said, text):
  with pytest.raises(launch.LaunchError, match=text):
    find({}, **said)
  with pytest.raises(launch.LaunchError, match="JAX_PROCESS_ID='x'"):
    find({"JAX_PROCESS_ID": "x"})


def meet(*places, timeout=20):
  """Returns each process's answer: None, or why they cannot begin."""

  def come(place):
    try:
      for connection in rendezvous.meet(place, timeout):
        connection.close()
    except launch.LaunchError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(come, places))


def places(port, *numbers, count=3):
  address = f"127.0.0.1:{port}"
  return [launch.ProcessSpec(address, count, number) for number in numbers]


def test_all_that_come_begin():
  port = free_port()
  assert meet(*places(port, 2, 0, 1)) == [None] * 3
  assert meet(*places(port, 0, 1, count=2)) == [None] * 2  # at once again


def test_those_that_are_missing_are_named():
  found = meet(*places(free_port(), 0, 2), timeout=1)
  assert found[0] == found[1]
  assert "2 of 3 processes" in found[0]
  assert "missing: --process-id 1." in found[0]


def test_a_number_that_stands_twice_is_named():
  port = free_port()
  address = places(port, 0, 1, 1)
  for found in meet(*address):
    assert "two processes were started with --process-id 1" in found
  # The second to listen cannot.
  found = meet(*places(port, 0, 0), timeout=1)
  assert any(f"cannot listen at port {port}" in text for text in found)


def test_another_number_of_processes_is_named():
  port = free_port()
  first, second = meet(*places(port, 0), *places(port, 1, count=2))
  assert first == second
  assert "--num-processes 2" in first
  assert "with 3" in first


def test_a_coordinator_that_is_not_there_is_named():
  port = free_port()
  (found,) = meet(*places(port, 1), timeout=0.5)
  assert f"could not reach process 0 at 127.0.0.1:{port} within 0.5 s" in found
  assert "refused" in found


def test_strangers_at_the_port_are_passed_over(monkeypatch):
  monkeypatch.setattr(rendezvous, "_HELLO_SECONDS", 0.2)
  port = free_port()

  def stranger(text):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
      try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
          connection.sendall(text)
          connection.recv(1)
        return
      except OSError:
        time.sleep(0.05)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    first = pool.submit(meet, *places(port, 0))
    for text in (b"GET / HTTP/1.0\r\n\r\n", b"[]\n", b'{"id": 1}\n', b"half"):
      stranger(text)
    assert meet(*places(port, 1, 2)) == [None] * 2
    assert first.result() == [None]
