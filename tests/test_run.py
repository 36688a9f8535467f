"""The run of the tests ends whole, whatever ends it."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.paths import ROOT

pytestmark = pytest.mark.skipif(
  sys.platform != "linux", reason="other systems leave orphans to nobody"
)

# A test that hangs, a process in a session of its own, and a folder.
_STUCK = """
import json, os, pathlib, subprocess, sys, tempfile, time

def test_stuck():
  wait = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
  child = subprocess.Popen(wait, start_new_session=True)
  found = {
    "processes": [child.pid, os.getpid(), os.getppid()],
    "folder": tempfile.mkdtemp(),
  }
  path = pathlib.Path("found.json")
  path.with_suffix(".part").write_text(json.dumps(found))
  path.with_suffix(".part").rename(path)
  time.sleep(600)
"""
# As `make` does.
_PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"


@contextlib.contextmanager
def start(folder, *arguments, above=()):
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("PYTEST_")
  }
  # Other plugins take longer to import than a test here takes.
  environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
  script = ROOT / "tests/run.py"
  options = ("-q", "-p", "xdist.plugin", "-p", "no:cacheprovider")
  with subprocess.Popen(
    [*above, sys.executable, script, *options, *arguments],
    cwd=folder,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    preexec_fn=obey_signals,
  ) as process:
    try:
      yield process
    finally:
      process.kill()  # a test that fails must not wait for it


def obey_signals():
  """Lets signals end what starts here, also under nohup or in a script."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)


def children(process: int) -> list[int]:
  tasks = pathlib.Path(f"/proc/{process}/task")
  return [
    int(child)
    for path in tasks.glob("*/children")
    for child in path.read_text().split()
  ]


def wait_for(condition, seconds=100):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


@pytest.mark.parametrize(
  ("number", "whom"),
  [
    (signal.SIGINT, "first"),
    (signal.SIGTERM, "first"),
    (signal.SIGHUP, "first"),
    (signal.SIGKILL, "first"),
    (signal.SIGKILL, "keeper"),
    (signal.SIGKILL, "parent"),
  ],
)
def test_a_signal_leaves_nothing_behind(tmp_path, number, whom):
  (tmp_path / "test_stuck.py").write_text(_STUCK)
  above = (sys.executable, "-S", "-c", _PARENT) if whom == "parent" else ()
  with start(tmp_path, "--numprocesses=1", above=above) as process:
    wait_for((tmp_path / "found.json").exists)
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(map(is_there, found["processes"]))
    target = process.pid
    if whom == "keeper":
      (target,) = children(target)
    os.kill(target, number)
    assert process.wait(100) != 0
  # Where the first is killed, the keeper has something to do yet.
  wait_for(lambda: not any(map(is_there, found["processes"])))
  folder = pathlib.Path(found["folder"])
  wait_for(lambda: not folder.parent.exists())


def is_there(process: int) -> bool:
  try:
    return " Z " not in pathlib.Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return False


def test_a_worker_that_dies_ends_the_run(tmp_path):
  for name in ("early", "late"):
    (tmp_path / f"test_{name}.py").write_text("def test_it(): pass\n")
  (tmp_path / "test_middle.py").write_text(
    "import os\ndef test_before(): pass\ndef test_dies(): os.kill(os.getpid(), "
    "9)\ndef test_after(): pass\n"
  )
  with start(tmp_path, "--numprocesses=2") as process:
    said, _ = process.communicate(timeout=100)
  assert process.returncode == 1
  assert "crashed while running 'test_middle.py::test_dies'" in said
