"""Finds out if this process is one of several: from flags or from a cluster.

Without flags, variables or a cluster the command runs alone. jax's own
detection of clusters is used to connect the processes, but it can only be asked
by `jax.distributed.initialize`, which fails if there is no cluster. A command
has to know earlier if it runs alone, so this module looks for the same
variables. Nothing here imports jax.
"""

import dataclasses
import glob
import importlib.util
from collections.abc import Callable, Mapping

# The flag of each setting, and the variable that replaces a missing flag.
_NAMES = {
  "coordinator": ("--coordinator", "JAX_COORDINATOR_ADDRESS"),
  "num_processes": ("--num-processes", "JAX_NUM_PROCESSES"),
  "process_id": ("--process-id", "JAX_PROCESS_ID"),
}
# Slurm sets all of these for a step (`srun`), but not for the batch script.
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)
_TPU_WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_ALONE_HINT = "to run on this host alone give --num-processes 1"


class LaunchError(ValueError):
  """Says why the processes of a run cannot start together."""


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
  """Describes one process among several.

  Attributes:
    coordinator: HOST:PORT at which process 0 listens. None means that the
      cluster provides it.
    num_processes: Number of processes on all hosts. None means that the cluster
      provides it.
    process_id: Number of this process, from 0. None means that the cluster
      provides it.
    cluster: `slurm` or `tpu`. None means that everything was given by flags or
      variables.
  """

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  cluster: str | None = None

  @property
  def cluster_method(self) -> str | None:
    """Returns how jax finds missing settings; None is its way on TPUs."""
    return {None: "deactivate", "slurm": "slurm", "tpu": None}[self.cluster]

  def __str__(self) -> str:
    if self.process_id is None:
      return f"a process on a {self.cluster} cluster"
    return f"process {self.process_id} of {self.num_processes}"


def has_tpu() -> bool:
  """Returns True if this host seems to have TPUs; does not start them."""
  # Asking jax would start the TPUs, and so take them for this process.
  devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


def find(
  environ: Mapping[str, str],
  *,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  has_tpu: Callable[[], bool] = has_tpu,
) -> ProcessSpec | None:
  """Describes this process; returns None if it runs alone.

  Args:
    environ: The environment of the process.
    coordinator, num_processes, process_id: Flags of the command line. A missing
      flag is taken from `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` or
      `JAX_PROCESS_ID`. One process runs alone on any cluster.
    has_tpu: Returns True if the host has TPUs; called last.

  Raises:
    LaunchError: Only a part of the settings is given, or one is invalid.
  """
  given = {
    "coordinator": coordinator or environ.get(_NAMES["coordinator"][1]),
    "num_processes": _number("num_processes", num_processes, environ),
    "process_id": _number("process_id", process_id, environ),
  }
  if given["num_processes"] == 1 and not given["process_id"]:
    return None
  # A part of the settings is an error: taking the others from a cluster would
  # hide a flag that was forgotten.
  if any(value is not None for value in given.values()):
    return _checked_spec(**given)
  # Slurm before TPUs: a step of it knows its number of processes.
  if all(name in environ for name in _SLURM):
    return _on_slurm(environ)
  if _is_on_tpu(environ) and has_tpu():
    return _on_tpu(environ)
  return None


def _number(
  name: str, flag: int | None, environ: Mapping[str, str]
) -> int | None:
  """Returns a flag or, if it is missing, the number in its variable."""
  variable = _NAMES[name][1]
  text = environ.get(variable)
  if flag is not None or not text:
    return flag
  if not text.isdecimal():
    raise LaunchError(f"{variable}={text!r} must be a whole number")
  return int(text)


def _checked_spec(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessSpec:
  """Builds the description from settings that must all be there and fit."""
  given = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if missing:
    names = ", ".join(f"{_NAMES[n][0]} (or {_NAMES[n][1]})" for n in missing)
    found = ", ".join(f"{n}={v}" for n, v in given.items() if v is not None)
    raise LaunchError(
      f"several processes need all three of --coordinator, --num-processes and "
      f"--process-id: {found} is given, but no {names}; {_ALONE_HINT}"
    )
  assert coordinator is not None
  assert num_processes is not None
  assert process_id is not None
  host, colon, port = coordinator.rpartition(":")
  if not host or not colon or not port.isdecimal() or int(port) > 65535:
    raise LaunchError(
      f"--coordinator {coordinator} must be HOST:PORT: the address at which "
      "other hosts reach the host of process 0, and a free port there"
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise LaunchError(
      f"--process-id {process_id} must be in 0..{num_processes - 1}, for "
      f"--num-processes {num_processes}"
    )
  return ProcessSpec(coordinator, num_processes, process_id)


def _on_slurm(environ: Mapping[str, str]) -> ProcessSpec | None:
  count = int(environ["SLURM_NTASKS"])
  if count == 1:
    return None
  return ProcessSpec(
    num_processes=count,
    process_id=int(environ["SLURM_PROCID"]),
    cluster="slurm",
  )


def _is_on_tpu(environ: Mapping[str, str]) -> bool:
  """Returns True if TPUs may be used, and may span several hosts."""
  platforms = environ.get("JAX_PLATFORMS", "")
  is_wanted = not platforms or "tpu" in platforms.split(",")
  # If this is set, as on hosted notebooks, the host is no part of a slice.
  return is_wanted and (
    "TPU_SKIP_MDS_QUERY" not in environ
    or any(name in environ for name in _TPU_WORKERS)
  )


def _on_tpu(environ: Mapping[str, str]) -> ProcessSpec | None:
  """Describes a process on TPUs; returns None if there is only one host.

  On Kubernetes the environment lists the hosts. Elsewhere jax asks the metadata
  server when the processes connect.
  """
  for name in _TPU_WORKERS:
    if name in environ:
      count = len(environ[name].split(","))
      # Each slice lists its own hosts only.
      count *= int(environ.get("MEGASCALE_NUM_SLICES") or 1)
      return None if count == 1 else ProcessSpec(cluster="tpu")
  return ProcessSpec(cluster="tpu")
