"""Where the time of a run goes, by cause, and what it compiled."""

import threading
import types

import jax
import jax.numpy as jnp
import pytest

from distil_jax import config
from distil_jax.distributed import chip_specs
from distil_jax.training.logging import compile_watch, run_clock, speed_metrics
from distil_jax.training.logging.compile_watch import Compiled
from distil_jax.training.step_work import Work

NO_PROFILE = config.parse({}).profile


class Time:
  """A clock that is moved by hand."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  """A moved clock; what is compiled is said by hand too."""
  clock = Time()
  watch = types.SimpleNamespace(now=Compiled(), settle=lambda: None)
  monkeypatch.setattr(run_clock, "time", clock)
  monkeypatch.setattr(run_clock, "WATCH", watch)
  clock.watch = watch
  return clock


def compile_for(clock, seconds):
  clock.now += seconds
  before = clock.watch.now
  clock.watch.now = Compiled(before.seconds + seconds, before.num_programs + 1)


def make_step(clock, run, *, compiling, judging):
  with run.each_step(1) as times:
    with times.phase("rollout"):
      clock.now += 5 + judging
    with times.phase("batch"):
      clock.now += 1
    with times.phase("update"):
      compile_for(clock, compiling)
      clock.now += 2
    times.stop()
  return run.step_metrics(
    Work(update_tokens=200, rollout_flops=8e12, update_flops=80e12),
    num_tokens=100,
    judging_seconds=judging,
  )


def test_all_seconds_have_one_cause(clock, tmp_path):
  run = run_clock.RunClock(NO_PROFILE, tmp_path)
  clock.now += 3
  with run.lost("evaluation"):
    compile_for(clock, 10)
    clock.now += 7
    with run.lost("checkpoint"):
      clock.now += 2
  make_step(clock, run, compiling=4, judging=1)
  expected = {
    "useful": 8,
    "evaluation": 7,
    "checkpoint": 2,
    "compile": 14,
    "judge_wait": 1,
    "other": 3,
  }
  assert run.seconds == expected
  assert sum(run.seconds.values()) == clock.now - 100
  text = run_clock.sentence(run.seconds, Compiled(14, 9, 4))
  assert text == (
    "goodput 22.9 % of 35 s; lost: compile 40.0 %, evaluation 20.0 %, "
    "other 8.6 %, checkpoint 5.7 %, judge wait 2.9 %; programs: 9, of "
    "which 4 were in the cache"
  )
  # A later process goes on with what a checkpoint says, and restores first.
  later = run_clock.RunClock(NO_PROFILE, tmp_path)
  with later.lost("restore"):
    clock.now += 6
  later.resumed(expected)
  assert later.seconds == {**expected, "restore": 6}


def test_a_step_has_times_rates_and_utilisation(clock, tmp_path, monkeypatch):
  run = run_clock.RunClock(NO_PROFILE, tmp_path)
  devices = jax.device_count()
  found = make_step(clock, run, compiling=4, judging=1)
  # The whole step takes 13 seconds, the rollout 6 and the update 6.
  assert {k: v for k, v in found.items() if k.startswith("time/")} == {
    "time/step_seconds": 13,
    "time/rollout_seconds": 6,
    "time/batch_seconds": 1,
    "time/update_seconds": 6,
    "time/rollout_tokens_per_second": 100 / 5 / devices,
    "time/update_tokens_per_second": 200 / 6 / devices,
    "time/tokens_per_second": 100 / 13,
    "time/update_teraflops": 80 / 6 / devices,
    "time/teraflops": 88 / 13 / devices,
    "time/compile_seconds": 4,
    "time/compilations": 1,
    "time/cached_compilations": 0,
  }
  assert 0.01 < found["memory/host_gigabytes"] < 1000
  assert "memory/device_peak_gigabytes" not in found  # CPUs do not count
  chip = chip_specs.CHIPS["H100"]
  device = types.SimpleNamespace(
    device_kind=chip.device_kind,
    memory_stats=lambda: {"peak_bytes_in_use": 3 * 10**9},
  )
  monkeypatch.setattr(jax, "devices", lambda: [device])
  monkeypatch.setattr(jax, "local_devices", lambda: [device])
  found = make_step(clock, run, compiling=4, judging=1)
  assert found["time/update_mfu"] == pytest.approx(80 / 6 / devices / 989)
  assert found["time/mfu"] == pytest.approx(88 / 13 / devices / 989)
  assert found["memory/device_peak_gigabytes"] == 3


def test_demonstrations_have_no_rollout():
  found = speed_metrics.speed_metrics(
    Work(), {"step": 2, "update": 1}, Compiled(), num_tokens=8,
    judging_seconds=None,
  )  # fmt: skip
  assert found["time/tokens_per_second"] == 4
  assert not {"time/rollout_seconds", "time/update_seconds"} & set(found)


def test_compilations_are_counted_and_nested_time_once(monkeypatch):
  watch, clock = compile_watch.WATCH, Time()
  watch.settle()
  before = watch.now
  monkeypatch.setattr(compile_watch, "time", clock)

  def told(event, end, seconds, **details):
    clock.now = end
    watch._on_duration(event, seconds, **details)

  # A function that is traced within another, then lowered and compiled.
  told(compile_watch._TRACE, 103, 2)
  told(compile_watch._TRACE, 106, 6)
  told(compile_watch._LOWER, 107, 1, fun_name="update")
  clock.now = 110
  assert watch.pending == ("update", 3)
  told(compile_watch._COMPILE, 117, 10)
  assert watch.pending is None
  assert watch.now.since(before).seconds == pytest.approx(17)
  # Other threads compile beside, and nobody waits for them.
  other = threading.Thread(target=told, args=(compile_watch._COMPILE, 130, 9))
  other.start()
  other.join()
  found = watch.now.since(before)
  assert (found.seconds, found.num_programs) == (pytest.approx(17), 2)


def test_jax_tells_what_it_compiles():
  watch = compile_watch.WATCH
  watch.settle()
  before = watch.now
  step = jax.jit(lambda x: jnp.tanh(x) * 3.25)
  x = jnp.ones((3, 7))
  step(x)
  first = watch.now.since(before)
  assert first.num_programs >= 1
  assert first.seconds > 0
  before = watch.now
  step(x)
  assert watch.now == before


def test_the_chosen_steps_are_traced_with_their_phases(tmp_path):
  section = config.parse({"profile": {"start_step": 2, "num_steps": 2}}).profile
  run = run_clock.RunClock(section, tmp_path / "profile")
  for step in range(1, 6):
    with run.each_step(step) as times, times.phase(f"phase_{step}"):
      pass
  run.close()
  (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
  profile = jax.profiler.ProfileData.from_file(str(path))
  names = {
    event.name
    for plane in profile.planes
    for line in plane.lines
    for event in line.events
  }
  assert {x for x in names if x.startswith("phase_")} == {"phase_2", "phase_3"}
  assert any(x.startswith("train") for x in names)


def test_a_trace_that_a_failure_ends_is_written(tmp_path):
  section = config.parse({"profile": {"start_step": 1, "num_steps": 9}}).profile
  run = run_clock.RunClock(section, tmp_path)
  with run.each_step(1):
    pass
  run.close()
  assert list(tmp_path.rglob("*.xplane.pb"))
  run.close()
