"""The progress line, on a real terminal and in a log file."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import sys
import termios
import threading
import time
import types

import jax.numpy as jnp
import pytest

from distil_jax.training.logging import compile_ticker, progress
from distil_jax.training.logging.compile_watch import Compiled

VALUES = {
  "reward": jnp.float32(0.5),
  "loss": 9.0,
  "cost": 1.25,
  "completion_length": 45.0,
  "time/tokens_per_second": 12345.6,
}
SHOWN = "reward 0.500  cost 1.250  length 45.0  12,346 tokens/s"


@pytest.fixture(params=[(24, 80), (0, 0)], ids=["sized", "unsized"])
def terminal(request):
  """A pseudo-terminal: the writer's stream and a reader."""
  ours, theirs = pty.openpty()
  fcntl.ioctl(
    theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *request.param, 0, 0)
  )

  def read(num_reads=1000):
    data = b""
    # A ticker that is faster than this would have no end.
    for _ in range(num_reads):
      if not select.select([ours], [], [], 0.05)[0]:
        break
      data += os.read(ours, 1 << 16)
    return data.decode()

  with os.fdopen(theirs, "w") as stream:
    yield stream, read
  os.close(ours)


def test_terminal_shows_step_values_and_time_left(terminal):
  stream, read = terminal
  with progress.Progress(5000, stream=stream) as line:
    line.step(119, VALUES)
    time.sleep(0.15)  # longer than between two redraws
    line.step(120, VALUES)
  text = read()
  assert re.search(rf"120/5000  \d+:\d\d:\d\d left  {SHOWN}", text)


def test_terminal_goes_on_after_a_resume(terminal):
  stream, read = terminal
  with progress.Progress(5000, stream=stream) as line:
    time.sleep(0.15)
    line.step(4001, {})
    time.sleep(0.15)
    line.step(4002, {})
    assert "4002/5000" in read()


def test_terminal_shows_stages_and_messages(terminal):
  stream, read = terminal
  with progress.Progress(10, stream=stream) as line:
    with line.stage("evaluating", total=64) as count:
      count(12)
    line.message("3 rows skipped")
  text = read()
  assert "evaluating 0/64" in text
  assert "evaluating 12/64" in text
  assert "3 rows skipped" in text
  last = [part for part in text.split("\r") if part.strip()][-1]
  assert "evaluating" not in last


def test_what_a_thread_prints_has_lines_of_its_own(terminal, monkeypatch):
  stream, read = terminal
  monkeypatch.setattr(sys, "stderr", stream)
  with progress.Progress(10) as line, line.stage("evaluating", total=64):
    thread = threading.Thread(
      target=progress.print_line, args=["failed\ntrace"]
    )
    thread.start()
    thread.join()
  assert re.search(r"\r *\rfailed\r\ntrace\r\n", read())


def test_terminal_without_steps_shows_stages_only(terminal):
  stream, read = terminal
  with (
    progress.Progress(stream=stream) as line,
    line.stage("evaluating", total=64) as count,
  ):
    count(12)
  text = read()
  assert "evaluating 12/64" in text
  assert "None" not in text
  assert "|" not in text


@pytest.fixture
def compiler(monkeypatch):
  """A program whose compiling is said by hand; the ticker is fast."""
  watch = types.SimpleNamespace(pending=None, now=Compiled())
  for module in (compile_ticker, progress):
    monkeypatch.setattr(module, "WATCH", watch)
  monkeypatch.setattr(compile_ticker, "_INTERVAL", 0.01)
  return watch


def wait_for(condition):
  for _ in range(1000):
    if condition():
      return True
    time.sleep(0.01)
  return False


def test_terminal_shows_what_is_compiled_until_it_is(terminal, compiler):
  stream, read = terminal
  text = ""

  def shows(words):
    nonlocal text
    text += read(num_reads=1)
    return words in text.split("\r")[-1]

  with progress.Progress(10, stream=stream) as line, line.stage("evaluating"):
    compiler.pending = ("jit(decode)", 12.3)
    assert wait_for(lambda: shows("evaluating  compiling decode  12 s"))
    compiler.pending = None
    assert wait_for(lambda: not shows("compiling") and shows("evaluating"))


def test_log_file_says_what_is_compiled(compiler):
  stream = io.StringIO()
  with progress.Progress(10, stream=stream, interval=60):
    compiler.pending = ("jit(train_step)", 75.0)
    assert wait_for(stream.getvalue)
  assert stream.getvalue() == "compiling train_step  75 s\n"


def test_the_pace_of_sampling_leaves_compiling_out(monkeypatch, compiler):
  now = 100.0
  clock = types.SimpleNamespace(monotonic=lambda: now)
  monkeypatch.setattr(progress, "time", clock)
  stream = io.StringIO()
  report = progress.Progress(stream=stream).sampling(8)
  now, compiler.now = 150.0, Compiled(seconds=46.0)
  report(400, 3)
  assert stream.getvalue() == "sampling 3/8  100 tokens/s\n"


def test_log_file_gets_the_first_and_the_last_step_in_an_interval():
  stream = io.StringIO()
  with progress.Progress(4, stream=stream, interval=60) as line:
    for step in (1, 2, 3, 4):
      line.step(step, VALUES)
  assert stream.getvalue().splitlines() == [
    f"step 1/4  {SHOWN}",
    f"step 4/4  0:00:00 left  {SHOWN}",
  ]


def test_log_file_gets_every_step_where_steps_are_slow():
  stream = io.StringIO()
  with progress.Progress(3, stream=stream, interval=0) as line:
    for step in (1, 2, 3):
      line.step(step, {"loss": 2.0})
  assert stream.getvalue().splitlines() == [
    "step 1/3  loss 2.000",
    "step 2/3  0:00:00 left  loss 2.000",
    "step 3/3  0:00:00 left  loss 2.000",
  ]


def test_time_left_follows_recent_steps_not_the_compilation(monkeypatch):
  now = 0.0
  clock = types.SimpleNamespace(monotonic=lambda: now)
  monkeypatch.setattr(progress, "time", clock)
  stream = io.StringIO()
  line = progress.Progress(1802, stream=stream, interval=0)
  for step, now in ((1, 300.0), (2, 302.0)):  # noqa: B007, read by the clock
    line.step(step, {})
  assert stream.getvalue().splitlines() == [
    "step 1/1802",
    "step 2/1802  1:00:00 left",
  ]


def test_log_file_names_long_stages_only(monkeypatch):
  monkeypatch.setattr(progress, "_STAGE_SECONDS", 0.1)
  stream = io.StringIO()
  with progress.Progress(3, stream=stream) as line:
    with line.stage("loading"):
      pass
    with line.stage("compiling"):
      time.sleep(0.4)
  time.sleep(0.2)
  assert stream.getvalue() == "compiling\n"


def test_log_file_counts_in_long_stages():
  stream = io.StringIO()
  with (
    progress.Progress(3, stream=stream, interval=0) as line,
    line.stage("evaluating", total=2) as count,
  ):
    count(1)
    count(2)
  assert stream.getvalue() == "evaluating 1/2\nevaluating 2/2\n"


def test_log_file_never_counts_backwards(monkeypatch):
  monkeypatch.setattr(progress, "_STAGE_SECONDS", 0.1)
  counted = io.StringIO()
  with (
    progress.Progress(3, stream=counted, interval=0) as line,
    line.stage("evaluating", total=2) as count,
  ):
    count(1)
    time.sleep(0.4)
  assert counted.getvalue() == "evaluating 1/2\n"
  late = io.StringIO()
  with (
    progress.Progress(3, stream=late, interval=1e9) as line,
    line.stage("evaluating", total=2) as count,
  ):
    line.message("hello")  # so that no count is due
    count(1)
    time.sleep(0.4)
  assert late.getvalue() == "hello\nevaluating 1/2\n"


def test_other_processes_stay_silent(terminal):
  stream, read = terminal
  with progress.Progress(3, stream=stream, is_shown=False) as line:
    with line.stage("loading", total=2) as count:
      count(1)
    line.step(1, VALUES)
    line.message("hello")
  assert read() == ""


def test_an_error_passes_through_a_stage():
  stream = io.StringIO()
  with (
    pytest.raises(ZeroDivisionError),
    progress.Progress(3, stream=stream) as line,
    line.stage("dividing"),
  ):
    _ = 1 / 0


def test_log_file_says_how_much_is_loaded_if_that_takes_long(monkeypatch):
  now = 0.0
  clock = types.SimpleNamespace(monotonic=lambda: now)
  monkeypatch.setattr(progress, "time", clock)
  stream = io.StringIO()
  with progress.loading("loading weights", stream=stream) as report:
    for now, done in ((1.9, 1), (2, 2), (11.9, 6), (12, 6), (13, 8)):  # noqa: B007
      report(done * 10**9, 8 * 10**9)
  assert stream.getvalue().splitlines() == [
    "loading weights 2.0/8.0 GB  1.0 GB/s",
    "loading weights 6.0/8.0 GB  0.5 GB/s",
  ]


def test_terminal_shows_a_bar_of_what_is_loaded(terminal, monkeypatch):
  stream, read = terminal
  with progress.loading("loading weights", stream=stream) as report:
    report(10**9, 8 * 10**9)
  assert "loading" not in read()  # it took no time
  monkeypatch.setattr(progress, "_STAGE_SECONDS", 0)
  with progress.loading("loading weights", stream=stream) as report:
    time.sleep(0.15)  # longer than between two redraws
    report(2 * 10**9, 8 * 10**9)
  assert re.search(r"loading weights:  25%.*2.00G/8.00G", read())
  with progress.loading("weights", stream=stream, is_shown=False) as report:
    report(1, 2)
  assert read() == ""


def test_a_quiet_run_shows_warnings_alone(capsys):
  with progress.Progress(3, is_quiet=True) as shown:
    shown.message("step 1: held-out avg@4 50.0 %")
    shown.step(1, {"reward": 0.5})
    shown.warning("a warning")
  assert capsys.readouterr().err == "a warning\n"
