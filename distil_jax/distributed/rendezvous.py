"""Whether all processes have come, before jax waits for them.

Jax itself ends a process without a word to Python when others do not come. So
they meet before, at the port that its coordinator will have: each says who it
is, and process 0 says to all whether they can begin, or why not.
"""

import contextlib
import json
import os
import socket
import time
from typing import Any

from distil_jax.distributed.launch import LaunchError, ProcessSpec

_RETRY_SECONDS = 0.2
_HELLO_SECONDS = 5.0  # a stranger at the port says nothing
_LONGEST = 2**16


def call(place: ProcessSpec, timeout: float) -> list[socket.socket]:
  """Returns when every process is here.

  Args:
    place: of this process; all of it is said.
    timeout: seconds.

  Returns:
    connections: in process 0 to all others, in each of those to process 0. They
    stay open as long as both live.

  Raises:
    LaunchError: some do not come, one comes twice, they expect another number,
      or process 0 cannot be reached. All that came raise it.
  """
  assert place.coordinator is not None
  host, _, port = place.coordinator.rpartition(":")
  address = (host.strip("[]"), int(port))
  deadline = time.monotonic() + timeout
  if place.process_id == 0:
    return _ask(place, address, deadline, timeout)
  return [_answer(place, address, deadline, timeout)]


def _ask(
  place: ProcessSpec, address: tuple[str, int], deadline: float, timeout: float
) -> list[socket.socket]:
  """Process 0 waits for the others, and tells them what it found."""
  come: dict[int, tuple[str, socket.socket]] = {}
  reason = None
  with _listening(address[1]) as server:
    while reason is None and len(come) + 1 < (place.num_processes or 0):
      server.settimeout(max(deadline - time.monotonic(), 0.01))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        reason = _missing(place, set(come) | {0}, timeout)
        break
      hello = _receive(connection, _HELLO_SECONDS)
      if hello is None or "id" not in hello:
        connection.close()
        continue
      reason = _objection(place, hello, come)
      if reason is None:
        come[hello["id"]] = hello["name"], connection
      else:
        _send(connection, {"error": reason})
  connections = [connection for _, connection in come.values()]
  for connection in connections:
    _send(connection, {"error": reason})
  if reason is not None:
    raise LaunchError(reason)
  return connections


def _answer(
  place: ProcessSpec, address: tuple[str, int], deadline: float, timeout: float
) -> socket.socket:
  """Another process says who it is, and waits for the answer."""
  connection = _connected(place, address, deadline, timeout)
  _send(
    connection,
    {"id": place.process_id, "count": place.num_processes, "name": _name()},
  )
  # Process 0 may have begun to wait a little later.
  found = _receive(connection, deadline - time.monotonic() + timeout)
  if found is None or "error" not in found:
    raise LaunchError(
      f"process 0 at {place.coordinator} ended, or is no process of this run, "
      "before all had come; see its output"
    )
  if found["error"] is not None:
    raise LaunchError(found["error"])
  return connection


def _objection(
  place: ProcessSpec, hello: dict[str, Any], come: dict[int, tuple[str, Any]]
) -> str | None:
  number, count = hello["id"], hello["count"]
  if count != place.num_processes:
    return (
      f"process {number} ({hello['name']}) was started with --num-processes "
      f"{count}, process 0 ({_name()}) with {place.num_processes}; give all of "
      "them the same"
    )
  if number in come or number == 0:
    other = come[number][0] if number in come else _name()
    return (
      f"two processes were started with --process-id {number}: one on {other}, "
      f"one on {hello['name']}; give each another one, from 0 to {count - 1}"
    )
  return None


def _missing(place: ProcessSpec, come: set[int], timeout: float) -> str:
  missing = sorted(set(range(place.num_processes or 0)) - come)
  return (
    f"{len(come)} of {place.num_processes} processes came to "
    f"{place.coordinator} within {timeout:g} s; missing: --process-id "
    f"{', '.join(map(str, missing))}. Start them too, let --num-processes say "
    "how many there are, or wait longer with --initialization-timeout"
  )


def _listening(port: int) -> socket.socket:
  try:
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
  place: ProcessSpec, address: tuple[str, int], deadline: float, timeout: float
) -> socket.socket:
  while True:
    left = deadline - time.monotonic()
    try:
      return socket.create_connection(address, timeout=max(left, 0.1))
    except OSError as error:
      if left <= 0:
        raise LaunchError(
          f"process {place.process_id} could not reach process 0 at "
          f"{place.coordinator} within {timeout:g} s ({error}): is it started, "
          "is that the address of its host, and is the port open?"
        ) from error
    time.sleep(_RETRY_SECONDS)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
  # Whoever is gone by now will be missed in other ways.
  with contextlib.suppress(OSError):
    connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(
  connection: socket.socket, seconds: float
) -> dict[str, Any] | None:
  """One line; None where none comes, or one of somebody else."""
  connection.settimeout(max(seconds, 0.1))
  text = b""
  try:
    while not text.endswith(b"\n") and len(text) < _LONGEST:
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
