"""Restricts a program's process, in three layers that hold independently.

namespaces    own processes, mounts and shared memory; network and file system
              have been taken away before
limits        memory, CPU time, size of files, open files, threads
system calls  refused if no program of the kind needs them
"""

import contextlib
import ctypes
import functools
import os
import platform
import resource
import struct
import sys

_NEWNS, _NEWIPC, _NEWPID = 0x00020000, 0x08000000, 0x20000000
_PRIVATE = 1 << 18 | 1 << 14  # MS_PRIVATE | MS_REC
_NOSUID_NODEV = 2 | 4
_CAPBSET_DROP, _NO_NEW_PRIVS, _SECCOMP = 24, 38, 22
# Threads beyond the allowed processes, because libraries start some.
_NUM_THREADS = 32
_NUM_FILES = 64
_STACK_BYTES = 64 << 20
_SHARED_BYTES = 16 << 20
_SPARE_BYTES = 16 << 10


@functools.cache
def _libc() -> ctypes.CDLL:
  # With `use_errno` the error's number is kept until it is asked for; calls of
  # the interpreter would overwrite it.
  return ctypes.CDLL(None, use_errno=True)


@functools.cache
def _python_libc() -> ctypes.PyDLL:
  """Returns a libc whose calls keep the interpreter lock, which fork needs."""
  return ctypes.PyDLL(None, use_errno=True)


def fork() -> int:
  """Forks a process of one thread, faster than `os.fork`.

  `os.fork` also cleans up after threads and draws a new seed for `random`,
  which takes a third of the time to start a program. Here a program shall draw
  the same numbers each time.

  Raises:
    OSError: No more processes are allowed.
  """
  found = _python_libc().fork()
  if found < 0:
    number = ctypes.get_errno()
    raise OSError(number, f"fork: {os.strerror(number)}")
  return found


def _check(result: int, what: str) -> None:
  if result != 0:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def enter_namespaces(file_bytes: int, input_bytes: int) -> None:
  """Makes new namespaces for the children of this process.

  The kernel removes all that the first child leaves behind (processes, files,
  shared memory) when it ends.

  Args:
    file_bytes: Size of /tmp, for all files together.
    input_bytes: Size of the standard input, which is kept under /proc.

  Raises:
    OSError: This process may not make them.
  """
  libc = _libc()
  _check(libc.unshare(_NEWNS | _NEWIPC | _NEWPID), "unshare")
  # Mounts would otherwise be passed on to the namespaces outside.
  _check(libc.mount(b"none", b"/", None, _PRIVATE, None), "mount /")
  for place, size, mode in (
    (b"/tmp", file_bytes, 0o1777),
    (b"/dev/shm", _SHARED_BYTES, 0o1777),
    # An empty /proc hides the processes of others.
    (b"/proc", input_bytes + _SPARE_BYTES, 0o755),
  ):
    # Empty files take no bytes, so the number of files is limited as well.
    options = f"size={size},nr_inodes=4096,mode={mode:o}".encode()
    _check(
      libc.mount(b"tmpfs", place, b"tmpfs", _NOSUID_NODEV, options),
      f"mount {place.decode()}",
    )


def limit(
  *, seconds: float, memory_bytes: int, file_bytes: int, num_processes: int
) -> None:
  """Lowers the kernel's limits for this process, for good."""
  # Hard and soft limit are equal: the first process of a namespace ignores the
  # signal of a soft limit, but not the kill at the hard one.
  _limit("RLIMIT_CPU", max(1, int(seconds + 0.999)))
  _limit("RLIMIT_AS", memory_bytes)
  _limit("RLIMIT_FSIZE", file_bytes)
  _limit("RLIMIT_NOFILE", _NUM_FILES)
  # With 0, a system that pipes core dumps to a program would still start it.
  _limit("RLIMIT_CORE", 1)
  # Programs raise it for deep recursion; their memory is limited anyway.
  _limit("RLIMIT_STACK", _STACK_BYTES, may_rise=True)
  # The kernel counts threads as processes.
  _limit("RLIMIT_NPROC", num_processes + _NUM_THREADS)


def _limit(name: str, value: int, *, may_rise: bool = False) -> None:
  kind = getattr(resource, name, None)
  if kind is None:
    return  # This system has no such limit.
  allowed = resource.getrlimit(kind)[1]
  if allowed != resource.RLIM_INFINITY:
    # A process may not raise its own hard limit.
    value = min(value, allowed)
  # Some systems define a limit and refuse to set it.
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(kind, (value, allowed if may_rise else value))


def drop_privileges(user: int | None) -> None:
  """Drops all capabilities for good, and changes the user if possible.

  Args:
    user: User and group to become; None keeps the present ones.
  """
  if sys.platform == "linux":
    libc, capability = _libc(), 0
    # Fails at the first number that is no capability of this kernel, or at once
    # if this process may drop none.
    while libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) == 0:
      capability += 1
  if user is not None:
    # Groups first: once the user is not root any more, they cannot be changed.
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  if sys.platform == "linux":
    libc = _libc()
    header = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
    nothing = struct.pack("IIIIII", 0, 0, 0, 0, 0, 0)
    _check(libc.capset(header, nothing), "capset")
    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


# Refused system calls, with their numbers on x86_64 and on aarch64.
_REFUSED = {
  "unshare": (272, 97),
  "setns": (308, 268),
  "mount": (165, 40),
  "umount2": (166, 39),
  "pivot_root": (155, 41),
  "chroot": (161, 51),
  "fsopen": (430, 430),
  "open_tree": (428, 428),
  "move_mount": (429, 429),
  "mount_setattr": (442, 442),
  "ptrace": (101, 117),
  "process_vm_readv": (310, 270),
  "process_vm_writev": (311, 271),
  "bpf": (321, 280),
  "perf_event_open": (298, 241),
  "userfaultfd": (323, 282),
  "io_uring_setup": (425, 425),
  "add_key": (248, 217),
  "request_key": (249, 218),
  "keyctl": (250, 219),
  "open_by_handle_at": (304, 265),
  "memfd_create": (319, 279),  # Memory that no limit counts.
  "memfd_secret": (447, 447),
  "shmget": (29, 194),
  "semget": (64, 190),
  "msgget": (68, 186),
  # Each event queue takes a few MB that no limit counts.
  "inotify_init": (253, 26),
  "inotify_init1": (294, 26),
  "fanotify_init": (300, 262),
  # Some socket families, such as that of virtual machines, ignore namespaces.
  # asyncio needs only `socketpair`, which is another call.
  "socket": (41, 198),
  "syslog": (103, 116),
}
# Also refused without namespaces, because they reach processes of others.
_REFUSED_OUTSIDE = {
  "kill": (62, 129),
  "tkill": (200, 130),
  "tgkill": (234, 131),
  "rt_tgsigqueueinfo": (297, 240),
  "pidfd_send_signal": (424, 424),
  "rt_sigqueueinfo": (129, 138),
  "setpriority": (141, 140),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_FORK, _VFORK = 57, 58  # Only x86_64 has these.
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000
_NEW_ANYTHING = 0x7E020000 | 0x80  # All CLONE_NEW* flags.
_THREAD = 0x00010000
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_EPERM, _ENOSYS = 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def refuse_system_calls(*, has_namespaces: bool, num_processes: int) -> bool:
  """Installs a filter of system calls that cannot be removed again.

  Args:
    has_namespaces: If False, signals are refused as well.
    num_processes: With 1, threads can be started but no processes.

  Returns:
    True if this system has such filters and knows this machine's architecture.
  """
  found = _program(has_namespaces, num_processes)
  return found is not None and _libc().prctl(_SECCOMP, 2, found[0], 0, 0) == 0


@functools.cache
def _program(
  has_namespaces: bool, num_processes: int
) -> tuple[bytes, ctypes.Array[ctypes.c_char]] | None:
  """Returns the filter for the kernel, and the array that it points to."""
  known = _ARCHITECTURES.get(platform.machine())
  if sys.platform != "linux" or known is None:
    return None
  column, audit = known
  calls = dict(_REFUSED)
  if not has_namespaces:
    calls |= _REFUSED_OUTSIDE
  # Some architectures have only the newer of two calls, under both names here.
  refused = sorted({numbers[column] for numbers in calls.values()})
  if num_processes == 1 and column == 0:
    refused += [_FORK, _VFORK]
  code = _filter(
    audit,
    refused,
    clone=_CLONE[column],
    clone3=_CLONE3[column],
    has_x32=column == 0,
    only_threads=num_processes == 1,
  )
  lines = b"".join(struct.pack("HBBI", *line) for line in code)
  array = ctypes.create_string_buffer(lines, len(lines))
  # The array is returned too, because the filter points into it.
  return struct.pack("HxxxxxxP", len(code), ctypes.addressof(array)), array


def prepare(*, has_namespaces: bool) -> None:
  """Fills the caches that each forked process would otherwise fill itself."""
  if sys.platform == "linux":
    _libc()
  _ = _python_libc().fork  # Looks the function up.
  _program(has_namespaces, 1)


def _filter(
  audit: int,
  refused: list[int],
  *,
  clone: int,
  clone3: int,
  has_x32: bool,
  only_threads: bool,
) -> list[tuple[int, int, int, int]]:
  """Returns a Berkeley packet filter: code, jumps if true and not, operand."""
  # The architecture comes first: on another one these numbers mean other calls.
  code = [
    (_LOAD, 0, 0, 4),  # The architecture.
    (_EQUAL, 1, 0, audit),
    (_RETURN, 0, 0, _KILL),
    (_LOAD, 0, 0, 0),  # The number of the call.
  ]
  # x32 passes for x86_64 but has numbers of its own, beyond those listed.
  if has_x32:
    code += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
  for number in refused:
    code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
  # The flags of clone3 lie in memory, which a filter cannot read. Libraries
  # fall back to clone if there is no clone3.
  code += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _ENOSYS)]
  flags = [
    (_LOAD, 0, 0, 16),  # The low half of the first argument.
    (_ANY_OF, 0, 1, _NEW_ANYTHING),
    (_RETURN, 0, 0, _EPERM),
  ]
  if only_threads:
    flags += [(_ANY_OF, 1, 0, _THREAD), (_RETURN, 0, 0, _EPERM)]
  code += [(_EQUAL, 0, len(flags), clone), *flags]
  return [*code, (_RETURN, 0, 0, _ALLOW)]
