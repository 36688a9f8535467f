"""Programs that mean harm.

Each is bounded: should a wall be missing, it costs this machine hundreds of
processes and a few GB, and fails.
"""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs.sandbox import End, Job, Limits, isolation, local
from tests import cpu_time

SECRET = "the secret of this machine"
LIMITS = Limits(seconds=1, wall_seconds=1.2, memory_bytes=512 << 20)


@pytest.fixture(scope="module", params=["first choice", "user namespace"])
def sandbox(request):
  os.environ["DISTIL_JAX_SECRET"] = SECRET
  made = local.LocalSandbox(num_processes=1)
  if request.param == "user namespace":  # what whoever is not root gets
    made.close()
    found = isolation._isolation(
      isolation._bubblewrap(), isolation._interpreter(None), as_root=False
    )
    assert isolation._probe(found) is None
    made = local.LocalSandbox(num_processes=1, isolation=found)
  with made:
    yield made
  del os.environ["DISTIL_JAX_SECRET"]


def run(sandbox, program, **settings):
  """The outcome, after which the sandbox is as good as before."""
  limits = settings.pop("limits", LIMITS)
  found = sandbox.run(Job(program, limits=limits, **settings))
  after = sandbox.run(Job("print('fine')"))
  assert (after.end, after.stdout) == (End.EXITED, "fine\n"), after
  assert not leftovers(sandbox)
  return found


def descendants(pid):
  """Numbers of all processes that one has started, and theirs."""
  parents = {}
  for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      stat = (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:
      continue
    parents[int(entry.name)] = int(stat[1])
  found = {pid}
  while more := {p for p, parent in parents.items() if parent in found} - found:
    found |= more
  return found - {pid}


def leftovers(sandbox):
  """Processes of a sandbox where nothing runs, without its prefork's."""
  process = sandbox._all[0]._process
  # bubblewrap, its first process inside, and Python.
  deadline = time.monotonic() + 2
  while len(found := descendants(process.pid)) > 2:
    if time.monotonic() > deadline:
      return found
    time.sleep(0.01)
  return set()


@pytest.mark.parametrize(
  "program",
  [
    "while True: pass",
    "import time\ntime.sleep(60)",
    "import signal, os\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    "import time\ntime.sleep(60)",
    "import re\nre.match('(a+)+$', 'a' * 100 + 'b')",
    "import threading, time\n"
    "threading.Thread(target=time.sleep, args=(60,)).start()",
    "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "import signal\n"
    "for n in range(1, 65):\n"
    "  try: signal.signal(n, signal.SIG_IGN)\n"
    "  except (OSError, ValueError): pass\n"
    "while True: pass",
  ],
)
def test_what_never_ends_is_ended(sandbox, program):
  assert run(sandbox, program).end is End.TIMEOUT


@pytest.mark.parametrize(
  "program",
  [
    "x = 9 ** 9 ** 9",
    "x = bytearray(10 << 30)",
    "x = [bytearray(64 << 20) for _ in range(40)]",
    "x = 'a' * (1 << 34)",
    "import threading\nthreading.stack_size(1 << 30)\n"
    "for _ in range(200): threading.Thread(target=print).start()",
  ],
)
def test_memory_has_a_limit(sandbox, program):
  found = run(sandbox, program)
  assert found.end in (End.RAISED, End.TIMEOUT, End.MEMORY), found


@pytest.mark.parametrize(
  "write",
  [
    "import os\nfor _ in range(10 * 1024): os.write(1, b'x' * (1 << 20))",
    "import os\nfor _ in range(10 * 1024): os.write(2, b'x' * (1 << 20))",
    "import os\nfor _ in range(10 * 1024): os.write(3, b'x' * (1 << 20))",
    "for _ in range(10 ** 7): print('x' * 1000)",
  ],
)
def test_output_has_a_limit(sandbox, write):
  found = run(sandbox, write)
  assert found.end is End.OUTPUT
  assert len(found.stdout) <= LIMITS.output_bytes


def test_much_is_soon_read(sandbox):
  program = """
import os
for descriptor, count in ((3, 127), (1, 15), (2, 15)):
  for _ in range(count): os.write(descriptor, b"\\xff" * (1 << 16))
os._exit(0)
"""
  with cpu_time.at_most(10):
    assert run(sandbox, program, limits=Limits()).end is End.EXITED


def test_files_have_a_limit(sandbox):
  program = """
import os
for i in range(40):
  with open(f"/tmp/{i}", "wb") as file:
    for _ in range(64):
      file.write(bytes(1 << 20))
"""
  found = run(sandbox, program)
  assert found.end is not End.EXITED, found


@pytest.mark.parametrize("num_processes", [1, 8])
@pytest.mark.parametrize(
  "start",
  [
    "if not os.fork(): time.sleep(20); os._exit(0)",
    "os.posix_spawn(sys.executable, ['x', '-c', 'while 1: pass'], {})",
    "threading.Thread(target=time.sleep, args=(20,)).start()",
  ],
)
def test_bombs_stay_small(sandbox, start, num_processes):
  program = f"import os, sys, threading, time\nfor _ in range(300): {start}\n"
  limits = Limits(seconds=1, wall_seconds=1.2, num_processes=num_processes)
  found = run(sandbox, program, limits=limits)
  assert found.end in (End.RAISED, End.PROCESSES, End.TIMEOUT), found


def test_what_is_started_ends_with_the_program(sandbox):
  program = """
import os
for _ in range(4):
  if not os.fork():
    os.setsid()
    if not os.fork():
      while True: pass
    os._exit(0)
print("done")
"""
  limits = Limits(seconds=2, wall_seconds=5, num_processes=16)
  found = run(sandbox, program, limits=limits)
  assert (found.end, found.stdout) == (End.EXITED, "done\n")


@pytest.mark.parametrize(
  "whom", ["os.getppid()", "-1", "1", "0", "os.getpid()", "-os.getpgrp()", "2"]
)
def test_nobody_else_is_killed(sandbox, whom):
  prefork = sandbox._all[0]._process
  run(
    sandbox,
    f"import os\nfor n in (2, 9, 15, 19):\n  try: os.kill({whom}, n)\n"
    "  except OSError: pass",
  )
  assert sandbox._all[0]._process is (prefork or sandbox._all[0]._process)


def test_nothing_of_this_machine_is_to_be_seen(sandbox):
  home = pathlib.Path(tempfile.mkdtemp(dir=pathlib.Path.home()))
  (home / "secret").write_text(SECRET)
  program = f"""
import os
print(dict(os.environ))
for path in ("/etc/passwd", "/etc/shadow", "/root/.bashrc", "{home}/secret",
             "{__file__}", "/proc/1/environ", "/proc/self/environ",
             "/proc/self/maps", "/sys/kernel/notes", "/var/log", "/run",
             "/home", "/sandbox/distil_jax/__init__.py"):
  try:
    with open(path) as file: print(path, "OPENED", file.read())
  except OSError as error: print(path, type(error).__name__)
  try: print(path, "LISTED", os.listdir(path))
  except OSError as error: pass
print("SEEN", [x for x in os.listdir("/proc")])
"""
  try:
    found = run(sandbox, program)
  finally:
    (home / "secret").unlink()
    home.rmdir()
  assert found.end is End.EXITED
  assert "OPENED" not in found.stdout
  assert "LISTED" not in found.stdout
  assert "SEEN ['self']" in found.stdout  # with what it reads, and no more
  assert SECRET not in found.stdout + found.stderr


def test_there_is_no_network(sandbox):
  with socket.create_server(("127.0.0.1", 0)) as server:
    server.settimeout(0.2)
    port = server.getsockname()[1]
    program = f"""
import socket
for address in (("127.0.0.1", {port}), ("192.0.2.1", 80)):
  try: socket.create_connection(address, timeout=0.3); print("CONNECTED")
  except OSError as error: print(error)
"""
    found = run(sandbox, program)
    with pytest.raises(TimeoutError):
      server.accept()
  assert "CONNECTED" not in found.stdout


def test_there_are_no_sockets_that_know_no_namespaces(sandbox):
  """Such as those from a virtual machine to what runs it."""
  program = """
import ctypes
libc = ctypes.CDLL(None)
print([family for family in range(64) for kind in (1, 2, 3, 5)
       if libc.socket(family, kind, 0) >= 0])
"""
  assert run(sandbox, program).stdout == "[]\n"


def test_nothing_is_written_but_where_it_is_lost(sandbox):
  program = """
import os
for path in ("/x", "/usr/x", "/usr/lib/x", "/sandbox/x", "/etc/x",
             "/sandbox/distil_jax/x", "/proc/x",
             "/sandbox/distil_jax/envs/sandbox/guest/programs.py",
             "/dev/x", os.path.dirname(os.__file__) + "/x.py"):
  try: open(path, "w").close(); print("WRITTEN", path)
  except OSError: pass
for path in ("/tmp/left", "/dev/shm/left"):
  open(path, "w").close()
"""
  found = run(sandbox, program)
  assert found.end is End.EXITED, found
  assert "WRITTEN" not in found.stdout
  left = run(
    sandbox, "import os\nprint(os.listdir('/tmp'), os.listdir('/dev/shm'))"
  )
  assert left.stdout == "[] []\n"


def test_the_kernel_is_asked_in_vain(sandbox):
  program = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def ask(name, *args):
  ctypes.set_errno(0)
  print(name, getattr(libc, name)(*args), ctypes.get_errno())
ask("unshare", 0x10000000)
ask("unshare", 0x20000)
ask("setns", 0, 0)
ask("mount", b"x", b"/tmp", b"tmpfs", 0, None)
ask("umount2", b"/proc", 2)
ask("ptrace", 16, 1, 0, 0)
ask("memfd_create", b"x", 0)
ask("shmget", 0, 1 << 20, 0o1600)
ask("semget", 0, 32000, 0o1600)
ask("msgget", 0, 0o1600)
ask("inotify_init")
ask("inotify_init1", 0)
ask("fanotify_init", 0x200, 0)
ask("klogctl", 3, ctypes.create_string_buffer(100), 100)
ask("setuid", 0)
ask("chroot", b"/tmp")
ask("personality", 0x0400000)
if platform.machine() == "x86_64":
  ask("syscall", 56, 0x10000000 | 17, 0, 0, 0, 0)  # clone into a user namespace
  ask("syscall", 435, 0, 0)  # clone3
"""
  found = run(sandbox, program)
  lines = found.stdout.splitlines()
  assert found.end is End.EXITED, found
  assert len(lines) >= 11
  for line in lines:
    name, result, _ = line.split()
    assert result == "-1" or name == "personality", line


def test_privileges_are_gone(sandbox):
  program = """
import ctypes
libc = ctypes.CDLL(None)
print(libc.prctl(39, 0, 0, 0, 0), [n for n in range(64)
      if libc.prctl(47, 1, n, 0, 0) == 1], libc.prctl(21, 0, 0, 0, 0))
import os
try: os.setresuid(0, 0, 0); print(os.getuid() == 0 and os.open("/x", 64))
except OSError as error: print("refused")
"""
  program += "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))"
  found = run(sandbox, program)
  assert found.stdout.splitlines()[-1] == "(1, 1)"  # no dump, no dumper
  assert found.stdout.splitlines()[0] in ("1 [] 2", "1 [] 2 ")
  assert "refused" in found.stdout or found.fault is not None


@pytest.mark.parametrize(
  "program",
  [
    "import os\nos._exit(0)",
    "import os\nos._exit(7)",
    "import sys\nsys.exit('no')",
    "import os\nos.abort()",
    "import ctypes\nctypes.string_at(0)",
    "import os\nos.closerange(0, 4096)",
    "import sys\nsys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
    "import os\nos.close(1)\nprint('x')",
    "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "def f(): f()\nf()",
    "import os, sys, json\nos._exit = sys.exit = os.write = json.dumps = None",
    "import os\nos._exit = lambda code: None",
    "import builtins\nfor n in dir(builtins):\n  setattr(builtins, n, None)",
    "import sys\nsys.modules.clear()",
    "import sys\nfor n in list(sys.modules): sys.modules[n] = None",
    "import gc, sys\nsys.settrace(lambda *a: 1 / 0)\ngc.disable()",
    "class E(Exception):\n  def __str__(self): raise self\nraise E",
    "class E(Exception):\n  def __str__(self):\n    while 1: pass\nraise E",
    "raise type('x' * 10**6, (Exception,), {})('y' * 10**7)",
    "raise BaseException",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "import atexit\natexit.register(lambda: 1 / 0)",
    "x = \0",
    "s = '\u202e\u2066 evil \u2069'  # \u202d",
    "\ud800 = 1",
    "(" * 10_000,
    "x = " + "-" * 100_000 + "1",
    "x = " + "[" * 90 + "]" * 90,
    "if 1:\n" + "".join(" " * i + "if 1:\n" for i in range(1, 150)),
    "# -*- coding: nonsense -*-\nprint(1)",
    "import os\nos.chdir('/')\nos.environ.clear()",
    "import os\nfor n in range(3, 100):\n"
    '  try: os.write(n, b\'{"value": ["int", "0x1"]}\')\n'
    "  except OSError: pass",
  ],
)
def test_odd_programs_have_outcomes(sandbox, program):
  found = run(sandbox, program)
  assert found.end is not End.CRASHED, found
  assert len(found.stderr) + len(found.stdout) <= 2 * LIMITS.output_bytes


class TestAsked:
  """Of a function of the program."""

  TESTS = sandboxes.Tests("assert f(2) == 'four-of-two'", names=("f",))

  @pytest.mark.parametrize(
    "program",
    [
      "class A(str):\n  def __eq__(self, other): return True\n"
      "  __hash__ = None\ndef f(x): return A('no')",
      "class A:\n  def __eq__(self, other): return True\ndef f(x): return A()",
      "import builtins\nbuiltins.print = builtins.repr = None\n"
      "def f(x): return None",
      "def f(x):\n  import os\n  os._exit(0)",
      "def f(x):\n  import sys\n  sys.exit(0)",
      "def f(x):\n  raise SystemExit(0)",
      "def f(x):\n  raise AssertionError",
      "def f(x):\n  import os\n"
      '  os.write(4, b\'{"value": ["str", "x"]}\\n\' * 3)\n  return 1',
      "def f(x):\n  import os\n  os.write(4, b'junk\\n')\n  return 1",
      "def f(x):\n  import os\n"
      '  os.write(3, b\'{"num_passed": 1, "num_failed": 0, "failures": [], '
      '"stopped": null, "broken": null}\')\n  return 1',
      "print('{\"num_passed\": 1}')\nimport os\nos._exit(0)",
      "def f(x): return [1] * 10**7",
      "def f(x): return 'x' * 10**8",
      "def f(x):\n  y = []\n  y.append(y)\n  return y",
      "def f(x):\n  y = x\n  for _ in range(10**5): y = [y]\n  return y",
      "def f(x): return {n * ((1 << 61) - 1) for n in range(3000)}",
      "def f(x): return f",
      "def f(x): return (n for n in 'four-of-two')",
      "def f(x): yield 'four-of-two'",
      "async def f(x): return 'four-of-two'",
      "f = 'four-of-two'",
      "",
      "import sys\nsys.modules['__main__'].passed = lambda *a: None\n"
      "import distil_jax.envs.sandbox.guest.examine\n"
      "def f(x): return 1",
    ],
  )
  def test_a_wrong_answer_is_not_taken_for_right(self, sandbox, program):
    found = run(sandbox, program, tests=self.TESTS)
    checks = found.checks
    is_right = (
      found.end is End.EXITED
      and checks is not None
      and checks.num_passed == 1
      and not checks.num_failed
      and not checks.stopped_at
    )
    assert not is_right, found
    assert found.end is not End.CRASHED, found

  def test_an_error_does_not_end_a_loop_of_the_tests(self, sandbox):
    tests = sandboxes.Tests("assert all(map(f, [1, 2]))")
    for kind in ("StopIteration", "StopAsyncIteration"):
      found = run(sandbox, f"def f(x): raise {kind}", tests=tests)
      assert found.checks.num_passed == 0
      assert found.fault.type == kind

  def test_what_is_expected_is_not_to_be_found(self, sandbox):
    """Neither by looking through memory, nor later in the same process."""
    program = """
import gc, sys
def strings(x, depth=0):
  if isinstance(x, (str, bytes, bytearray)):
    yield bytes(str(x), "utf8", "replace")
  if depth < 4 and isinstance(x, (dict, list, tuple, set)):
    try:
      for y in (list(x.items()) if isinstance(x, dict) else list(x)):
        yield from strings(y, depth + 1)
    except RuntimeError: pass
def look():
  frame, found = sys._getframe(), []
  objects = gc.get_objects()
  while frame:
    objects += [frame.f_locals, frame.f_globals]
    frame = frame.f_back
  needle = b"owt-fo-ruof"
  return sum(needle in s[::-1] for o in objects for s in strings(o, 2))
def f(x): return look()
"""
    limits = Limits(seconds=10, wall_seconds=20)
    for _ in range(2):
      found = run(sandbox, program, tests=self.TESTS, limits=limits)
      assert found.checks.failures[0].returned == "0", found

  def test_a_thread_that_goes_on_does_not_hold_up_an_answer(self, sandbox):
    program = """
import threading, time
def f(x):
  threading.Thread(target=time.sleep, args=(60,)).start()
  return 'four-of-two'
"""
    found = run(sandbox, program, tests=self.TESTS)
    assert found.checks.num_passed == 1
    assert found.end is End.EXITED, "not ended at the limit"

  def test_what_a_test_itself_defines_stays_its_own(self, sandbox):
    tests = sandboxes.Tests(
      "def g(x): return 2\nassert g(1) == 2\nassert f(1) == 1", names=("f",)
    )
    program = "def g(x): return 3\ndef f(x): return 1"
    found = run(sandbox, program, tests=tests)
    assert (found.checks.num_passed, found.checks.num_failed) == (2, 0)


@pytest.mark.filterwarnings("ignore:programs are NOT isolated")
def test_the_weak_one_refuses_signals_too():
  victim = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
  program = f"""
import ctypes, os, platform, signal
libc = ctypes.CDLL(None)
numbers = dict(x86_64=(62, 200, 234), aarch64=(129, 130, 131))
kill, tkill, tgkill = numbers[platform.machine()]
libc.syscall(kill, {victim.pid}, 15)
libc.syscall(tkill, {victim.pid}, 15)
libc.syscall(tgkill, {victim.pid}, {victim.pid}, 15)
"""
  try:
    with sandboxes.make("weak", num_processes=1) as made:
      assert made.run(Job(program)).end is End.EXITED
    assert victim.poll() is None
    victim.communicate(b"\n", timeout=20)
    assert victim.returncode == 0
  finally:
    victim.kill()


def test_nothing_is_left_once_it_is_closed(tmp_path, monkeypatch):
  # Elsewhere others make and remove folders of their own.
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  before = descendants(os.getpid())
  with local.LocalSandbox(num_processes=2) as made:
    made.run(Job("print(1)"))
    assert descendants(os.getpid()) - before
    assert list(tmp_path.glob("sandbox-*"))
  assert not descendants(os.getpid()) - before
  assert not list(tmp_path.iterdir())


def test_a_prefork_that_dies_costs_one_outcome():
  with local.LocalSandbox(num_processes=1) as made:
    made.run(Job(""))
    os.killpg(made._all[0]._process.pid, 9)
    ends = [made.run(Job("print(1)")).end for _ in range(3)]
  assert ends.count(End.CRASHED) <= 1
  assert ends[-1] is End.EXITED
