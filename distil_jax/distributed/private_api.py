"""Keeps the private names that the package needs in one place, with reasons.

Every name is looked up when it is needed, and a release that lacks one is told
apart from a failure of the run. Nothing here imports jax before it is used.
"""

import atexit
from typing import Any

from distil_jax.distributed.launch import LaunchError

_CLIENT_METHODS = (
  "blocking_key_value_get",
  "key_value_dir_get",
  "key_value_set",
  "wait_at_barrier",
)


class CoordinationService:
  """Gives access to the key-value store and the barriers of jax's service.

  jax shows this service to users only as barriers and reductions that run on
  the devices (`jax.experimental.multihost_utils`). A message that another
  process has failed must get through while a collective on the devices waits
  for that process forever, so it has to use the service itself, whose client
  is reachable through `jax._src.distributed` alone. The public agreement on
  preemption, `multihost_utils.reached_preemption_sync_point`, is not enough
  either: it hears SIGTERM but not Ctrl-C, does not say which process was asked
  to stop, and replaces the handler for the second signal.
  """

  def __init__(self, client: Any):
    """Wraps a client that is connected.

    Args:
      client: A `DistributedRuntimeClient` of jaxlib.

    Raises:
      LaunchError: This release of jax has another kind of client.
    """
    missing = [name for name in _CLIENT_METHODS if not hasattr(client, name)]
    if missing:
      raise LaunchError(_unsupported(f"no {', '.join(missing)}"))
    self._client = client

  def set(self, key: str, text: str) -> None:
    # A sign of life replaces the one before it.
    self._client.key_value_set(key, text, allow_overwrite=True)

  def list(self, folder: str) -> list[tuple[str, str]]:
    """Returns the keys below a folder with their values; waits for none."""
    return self._client.key_value_dir_get(folder)

  def wait_for(self, key: str, seconds: int) -> str:
    """Returns the value of a key, as soon as some process has set it."""
    return self._client.blocking_key_value_get(key, seconds * 1000)

  def barrier(self, name: str, seconds: int) -> None:
    self._client.wait_at_barrier(name, seconds * 1000)


def connected_service() -> tuple[CoordinationService | None, int, int]:
  """Returns what `jax.distributed.initialize` has connected.

  `jax.process_index` and `jax.process_count` would give the numbers too, but
  they start the devices, which a command may still want to configure.

  Returns:
    The service, or None if this process is the only one; the index of this
    process; and the number of processes.

  Raises:
    LaunchError: This release of jax keeps its state elsewhere.
  """
  try:
    from jax._src import distributed

    state = distributed.global_state
    client, index, count = state.client, state.process_id, state.num_processes
  except (ImportError, AttributeError) as error:
    raise LaunchError(_unsupported(str(error))) from error
  service = None if count == 1 else CoordinationService(client)
  return service, index, count


def run_exit_functions() -> None:
  """Runs what is registered with `atexit`, as the end of Python would.

  There is no public way to run these functions and then end the process
  without taking the interpreter apart. A Python without the private function
  skips them.
  """
  run = getattr(atexit, "_run_exitfuncs", None)
  if run is not None:
    run()


def _unsupported(reason: str) -> str:
  import jax

  return (
    f"jax {jax.__version__} does not offer its coordination service as "
    f"distil-jax expects ({reason}); install a release that distil-jax was "
    "tested with (0.10 to 0.12), or run on one host with --num-processes 1"
  )
