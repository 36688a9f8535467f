"""Two runs never write into the same folder."""

import dataclasses
import json
import os
import signal
import threading

import pytest

from distil_jax import config
from distil_jax.training import lock_owner, run_lock
from tests.commands import run


def write(directory, owner):
  text = json.dumps(dataclasses.asdict(owner))
  (directory / run_lock.NAME).write_text(text)


def this_process(directory, **changed):
  return dataclasses.replace(lock_owner.this_process(directory), **changed)


def refusal(directory):
  with (
    pytest.raises(config.ConfigError) as caught,
    run_lock.held(directory),
  ):
    pass
  return str(caught.value)


def test_a_second_run_is_told_whose_the_folder_is(tmp_path):
  directory = tmp_path / "runs" / "new"
  with run_lock.held(directory):
    said = refusal(directory)
    # Refusing must not have let it go.
    assert refusal(directory) == said
  assert f"train.run_directory={directory}: another run is under way" in said
  assert f"process {os.getpid()} on " in said
  assert not list(directory.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_folder_is_free_after_every_end(tmp_path, error):
  with pytest.raises(error), run_lock.held(tmp_path):
    raise error
  with run_lock.held(tmp_path):
    assert (tmp_path / run_lock.NAME).exists()


# Takes the folder, and is killed.
_KILLED = """
import os, pathlib, signal, sys
from distil_jax.training import lock_owner, run_lock
with run_lock.held(pathlib.Path(sys.argv[1])):
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_a_lock_that_the_next_one_takes(tmp_path):
  done = run([tmp_path], tmp_path / "compiled", program=("-c", _KILLED))
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert (tmp_path / run_lock.NAME).exists()
  with run_lock.held(tmp_path):
    assert lock_owner.read(tmp_path / run_lock.NAME).pid == os.getpid()


@pytest.mark.parametrize(
  "changed",
  [
    {"started": 1},  # the process id was used again
    {"pid": 2**22 + 1},  # more than Linux gives
    {"pid": 2**22 + 1, "started": None},  # as on systems without /proc
    {"folder": 1},  # the folder was copied while its run was under way
  ],
)
def test_an_owner_that_is_gone_is_recognised(tmp_path, changed):
  write(tmp_path, this_process(tmp_path, **changed))
  with run_lock.held(tmp_path):
    pass


def test_an_owner_without_a_start_is_alive_if_its_process_is(tmp_path):
  write(tmp_path, this_process(tmp_path, started=None))
  assert "under way" in refusal(tmp_path)


def test_a_lock_that_was_cut_off_is_nobodys(tmp_path):
  (tmp_path / run_lock.NAME).write_text('{"run": "1"')
  with run_lock.held(tmp_path):
    pass


def test_another_host_keeps_the_folder_as_long_as_it_gives_signs(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(run_lock, "_PATIENCE", 0.2)
  monkeypatch.setattr(run_lock, "_POLL", 0.01)
  path = tmp_path / run_lock.NAME
  write(tmp_path, this_process(tmp_path, host="elsewhere", folder=1))
  is_done = threading.Event()

  def beat():
    while not is_done.wait(0.01):
      os.utime(path)

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    said = refusal(tmp_path)
  finally:
    is_done.set()
    thread.join()
  assert "on elsewhere since" in said
  with run_lock.held(tmp_path):
    pass
  assert "waiting up to 0.2 s for a sign of life" in capsys.readouterr().err


def test_a_run_gives_signs_of_life_and_ends_if_it_lost_its_folder(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(run_lock, "_BEAT", 0.01)
  path = tmp_path / run_lock.NAME
  own = this_process(tmp_path)
  write(tmp_path, own)
  os.utime(path, (1, 1))
  is_done, ended = threading.Event(), []
  thread = threading.Thread(
    target=run_lock._beat, args=(path, own, is_done, ended.append)
  )
  thread.start()
  while path.stat().st_mtime == 1:
    assert thread.is_alive()
  write(tmp_path, dataclasses.replace(own, run="another"))
  thread.join(timeout=10)
  assert ended == [1]
