"""A step that hangs shows where, once, and goes on."""

import subprocess
import sys

from distil_jax.training import watchdog
from tests.paths import ROOT

# A step that sleeps in another thread's lock, after steps that took no time.
_HANGS = """
import sys, threading, time
from distil_jax.training import watchdog

class Step:
  def waits_for_the_judge(self):
    threading.Event().wait(1.5)

said = []
dog = watchdog.Watchdog(said.append, least_seconds=0.2)
for step in range(1, 7):
  with dog.watch(step):
    pass
with dog.watch(7):
  Step().waits_for_the_judge()
with dog.watch(8):
  pass
time.sleep(1)
print(said)
"""


def test_a_step_that_hangs_shows_its_stacks_once():
  done = subprocess.run(
    [sys.executable, "-c", _HANGS],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=60,
    check=True,
  )
  assert done.stderr.count("waits_for_the_judge") == 1
  assert "most recent call first" in done.stderr
  assert done.stdout.count("step ") == 1
  assert "step 7 takes longer than 0.2 s" in done.stdout
  assert "process 0 goes on" in done.stdout


def test_the_first_steps_are_not_watched():
  said = []
  dog = watchdog.Watchdog(said.append, least_seconds=0.0)
  for step in range(5):
    with dog.watch(step):
      assert dog._timer is None
  with dog.watch(5):
    assert dog._timer is not None
  assert dog._timer is None
