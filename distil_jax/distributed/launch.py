"""Which of several processes this one is: as it was told, or as a cluster says.

On one machine nothing is said and no cluster is found, and a command runs as if
there were no others. Nothing here imports jax.
"""

import dataclasses
import glob
import importlib.util
from collections.abc import Callable, Mapping

# What the flags are called; and the environment, where a flag is not given.
_NAMES = {
  "coordinator": ("--coordinator", "JAX_COORDINATOR_ADDRESS"),
  "num_processes": ("--num-processes", "JAX_NUM_PROCESSES"),
  "process_id": ("--process-id", "JAX_PROCESS_ID"),
}
# Of a step of Slurm (`srun`); a batch script itself has not all of them.
_SLURM = (
  "SLURM_JOB_ID",
  "SLURM_STEP_NODELIST",
  "SLURM_NTASKS",
  "SLURM_PROCID",
  "SLURM_LOCALID",
)
_TPU_WORKERS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_ALONE = "to run on this host alone give --num-processes 1"


class LaunchError(ValueError):
  """A process that does not know its place; the message says why."""


@dataclasses.dataclass(frozen=True)
class ProcessSpec:
  """Of one process among several.

  Attributes:
    coordinator: HOST:PORT where process 0 listens; None: the cluster knows it.
    num_processes: of all hosts; None: the cluster knows it.
    process_id: from 0; None: the cluster knows it.
    cluster: who knows, `slurm` or `tpu`; None: all was said.
  """

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None
  cluster: str | None = None

  @property
  def cluster_method(self) -> str | None:
    """How jax is to find what was not said; None: as on any TPU."""
    return {None: "deactivate", "slurm": "slurm", "tpu": None}[self.cluster]

  def __str__(self) -> str:
    if self.process_id is None:
      return f"a process on a {self.cluster} cluster"
    return f"process {self.process_id} of {self.num_processes}"


def has_tpu() -> bool:
  """Whether this host has TPUs, as far as one sees without starting them."""
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
  """This process's place; None: it is alone.

  Args:
    environ: of the process.
    coordinator, num_processes, process_id: as given on the command line. What
      is not given is taken from `JAX_COORDINATOR_ADDRESS`,
      `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`. One process is alone,
      whatever cluster it is on.
    has_tpu: asked last.

  Raises:
    LaunchError: only a part is said, or it cannot be.
  """
  said = {
    "coordinator": coordinator or environ.get(_NAMES["coordinator"][1]),
    "num_processes": _number("num_processes", num_processes, environ),
    "process_id": _number("process_id", process_id, environ),
  }
  if said["num_processes"] == 1 and not said["process_id"]:
    return None
  if any(value is not None for value in said.values()):
    return _said(**said)
  if all(name in environ for name in _SLURM):
    return _on_slurm(environ)
  if _is_on_tpu(environ) and has_tpu():
    return _on_tpu(environ)
  return None


def _number(
  name: str, given: int | None, environ: Mapping[str, str]
) -> int | None:
  variable = _NAMES[name][1]
  text = environ.get(variable)
  if given is not None or not text:
    return given
  if not text.isdecimal():
    raise LaunchError(f"{variable}={text!r} must be a whole number")
  return int(text)


def _said(
  coordinator: str | None, num_processes: int | None, process_id: int | None
) -> ProcessSpec:
  said = {
    "coordinator": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
  }
  missing = [name for name, value in said.items() if value is None]
  if missing:
    names = ", ".join(f"{_NAMES[n][0]} (or {_NAMES[n][1]})" for n in missing)
    found = ", ".join(f"{n}={v}" for n, v in said.items() if v is not None)
    raise LaunchError(
      f"several processes need all three of --coordinator, --num-processes and "
      f"--process-id: there is {found}, but no {names}; {_ALONE}"
    )
  assert coordinator is not None
  assert num_processes is not None
  assert process_id is not None
  host, colon, port = coordinator.rpartition(":")
  if not host or not colon or not port.isdecimal() or int(port) > 65535:
    raise LaunchError(
      f"--coordinator {coordinator} must be HOST:PORT, the host of process 0 "
      "as the others reach it and a free port there"
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
  """Whether TPUs are wanted, and may be part of something larger."""
  platforms = environ.get("JAX_PLATFORMS", "")
  is_wanted = not platforms or "tpu" in platforms.split(",")
  # Where this is set, as on hosted notebooks, a host stands for itself.
  return is_wanted and (
    "TPU_SKIP_MDS_QUERY" not in environ
    or any(name in environ for name in _TPU_WORKERS)
  )


def _on_tpu(environ: Mapping[str, str]) -> ProcessSpec | None:
  """On Kubernetes the environment counts the hosts; elsewhere jax asks."""
  for name in _TPU_WORKERS:
    if name in environ:
      count = len(environ[name].split(","))
      count *= int(environ.get("MEGASCALE_NUM_SLICES") or 1)
      return None if count == 1 else ProcessSpec(cluster="tpu")
  return ProcessSpec(cluster="tpu")
