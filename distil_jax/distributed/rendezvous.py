"""Checks that all processes have started, before jax waits for them.

jax (0.10 and 0.12) aborts a process with a stack trace when the others do not
connect in time, and cannot say which one is missing. So the processes meet
before, at the port that jax's coordinator will use: each sends its number, and
process 0 answers all of them if they can start, or why they cannot.
"""

import contextlib
import json
import os
import socket
import time
from typing import Any

from distil_jax.distributed.launch import LaunchError, ProcessSpec

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0  # for a first line; others may connect to the port too
_MAX_BYTES = 2**16


def meet(spec: ProcessSpec, timeout: float) -> list[socket.socket]:
  """Waits until every process has started.

  Args:
    spec: Describes this process; the cluster must provide nothing.
    timeout: Seconds to wait.

  Returns:
    In process 0 the connections to all others, in each of those the connection
    to process 0. They stay open as long as both processes live.

  Raises:
    LaunchError: A process is missing, two have the same number, they expect
      different numbers of processes, or process 0 cannot be reached. All
      processes that have connected raise it.
  """
  assert spec.coordinator is not None
  host, _, port = spec.coordinator.rpartition(":")
  # IPv6 addresses are written in brackets, which `socket` does not take.
  address = (host.strip("[]"), int(port))
  deadline = time.monotonic() + timeout
  if spec.process_id == 0:
    return _accept_all(spec, address, deadline, timeout)
  return [_introduce(spec, address, deadline, timeout)]


def _accept_all(
  spec: ProcessSpec, address: tuple[str, int], deadline: float, timeout: float
) -> list[socket.socket]:
  """Waits in process 0 for the others, and sends them the result."""
  arrived: dict[int, tuple[str, socket.socket]] = {}
  reason = None
  with _listening(address[1]) as server:
    while reason is None and len(arrived) + 1 < (spec.num_processes or 0):
      # A timeout of 0 would mean not to block, which raises another error.
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        reason = _missing(spec, set(arrived) | {0}, timeout)
        break
      hello = _receive(connection, _HELLO_SECONDS)
      # Anything may connect to an open port, and must not stop the run.
      if hello is None or "id" not in hello:
        connection.close()
        continue
      reason = _objection(spec, hello, arrived)
      if reason is None:
        arrived[hello["id"]] = hello["name"], connection
      else:
        # It is not among those that have arrived, so it is answered here.
        _send(connection, {"error": reason})
  connections = [connection for _, connection in arrived.values()]
  for connection in connections:
    _send(connection, {"error": reason})
  if reason is not None:
    raise LaunchError(reason)
  return connections


def _introduce(
  spec: ProcessSpec, address: tuple[str, int], deadline: float, timeout: float
) -> socket.socket:
  """Tells process 0 the number of this process, and waits for its answer."""
  connection = _connected(spec, address, deadline, timeout)
  _send(
    connection,
    {"id": spec.process_id, "count": spec.num_processes, "name": _name()},
  )
  # Process 0 may have started its own timeout a little later.
  answer = _receive(connection, deadline - time.monotonic() + timeout)
  if answer is None or "error" not in answer:
    raise LaunchError(
      f"process 0 at {spec.coordinator} ended before all processes had "
      "connected, or is no process of this run; see its output"
    )
  if answer["error"] is not None:
    raise LaunchError(answer["error"])
  return connection


def _objection(
  spec: ProcessSpec, hello: dict[str, Any], arrived: dict[int, tuple[str, Any]]
) -> str | None:
  """Returns why a process cannot take part; None means that it can."""
  number, count = hello["id"], hello["count"]
  if count != spec.num_processes:
    return (
      f"process {number} ({hello['name']}) was started with --num-processes "
      f"{count}, process 0 ({_name()}) with {spec.num_processes}; give all of "
      "them the same"
    )
  if number in arrived or number == 0:
    other = arrived[number][0] if number in arrived else _name()
    return (
      f"two processes were started with --process-id {number}: one on {other}, "
      f"one on {hello['name']}; give each another one, from 0 to {count - 1}"
    )
  return None


def _missing(spec: ProcessSpec, arrived: set[int], timeout: float) -> str:
  missing = sorted(set(range(spec.num_processes or 0)) - arrived)
  return (
    f"{len(arrived)} of {spec.num_processes} processes came to "
    f"{spec.coordinator} within {timeout:g} s; missing: --process-id "
    f"{', '.join(map(str, missing))}. Start them too, let --num-processes say "
    "how many there are, or wait longer with --initialization-timeout"
  )


def _listening(port: int) -> socket.socket:
  try:
    # The coordinator's name may lead other hosts to an address of either kind.
    if socket.has_dualstack_ipv6():
      return socket.create_server(
        ("", port), family=socket.AF_INET6, dualstack_ipv6=True
      )
    return socket.create_server(("", port))
  except OSError as error:
    raise LaunchError(
      f"process 0 cannot listen at port {port} of --coordinator ({error}); "
      "choose another port, and the same for all processes"
    ) from error


def _connected(
  spec: ProcessSpec, address: tuple[str, int], deadline: float, timeout: float
) -> socket.socket:
  while True:
    left = deadline - time.monotonic()
    try:
      return socket.create_connection(address, timeout=max(left, 0.1))
    except OSError as error:
      # Hosts start in any order: until process 0 listens it refuses.
      if left <= 0:
        raise LaunchError(
          f"process {spec.process_id} could not reach process 0 at "
          f"{spec.coordinator} within {timeout:g} s ({error}): is it started, "
          "is that the address of its host, and is the port open?"
        ) from error
    time.sleep(_RETRY_SECONDS)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
  # If the other process has ended, its connection shows that later anyway.
  with contextlib.suppress(OSError):
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(
  connection: socket.socket, seconds: float
) -> dict[str, Any] | None:
  """Returns the message in the next line; None if there is no valid one."""
  connection.settimeout(max(seconds, 0.1))
  text = b""
  try:
    # The limit guards against what is no process of ours and sends without end.
    while not text.endswith(b"\n") and len(text) < _MAX_BYTES:
      part = connection.recv(4096)
      if not part:
        return None
      text += part
    message = json.loads(text)
  except (OSError, ValueError):
    return None
  is_ours = isinstance(message, dict) and (
    "error" in message
    or (
      isinstance(message.get("id"), int) and {"count", "name"} <= set(message)
    )
  )
  return message if is_ours else None


def _name() -> str:
  return f"{socket.gethostname()}, pid {os.getpid()}"
