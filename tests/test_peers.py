"""The talk with another library's sampler, with none installed."""

import sys

import pytest

from benchmarks import peers
from tests import commands

# Benchmarks are not installed with the package.
sys.path.append(str(commands.ROOT))


SIZES = dict.fromkeys(peers.SIZES, 8)
PROMPTS = [[1, 2, 3], [4, 5, 6]]
# Repeats the seed, and talks on stdout, as libraries do.
WORKER = """
import numpy as np
from benchmarks.peers import worker

class Sampler:
  def __init__(self, sizes):
    print("loading", sizes["width"])
    self.calls = 0

  def generate(self, prompt_ids, num_tokens, temperature, seed):
    self.calls += 1
    print("call", self.calls, "at", temperature)
    {body}
    return np.full((len(prompt_ids), num_tokens), seed)

  def check(self, prompt_ids, completion_ids):
    return dict(greedy=1.0, calls=self.calls)

worker.serve("counting", Sampler, packages=("numpy",))
"""


def peer(body="pass", **settings):
  return peers.Peer(
    "fake",
    sys.executable,
    SIZES,
    program=("-c", WORKER.format(body=body)),
    **settings,
  )


def test_seconds_are_of_a_warm_call():
  body = "import time; time.sleep(0.5 if self.calls <= 2 else 0.0)"
  with peer(body) as fake:
    assert 0 <= fake.generate(PROMPTS, 4, 1.0, 7) < 0.5
    assert fake.description["name"] == "counting"
    assert list(fake.description["versions"]) == ["numpy"]


def test_each_case_is_warmed_once_and_completions_come_back():
  with peer() as fake:
    first = fake.check(PROMPTS, 4, 1.0, 7)
    assert first["completion_ids"] == [[7] * 4] * 2
    assert [
      first["calls"],
      fake.check(PROMPTS, 4, 1.0, 8)["calls"],
      fake.check(PROMPTS, 4, 0.0, 8)["calls"],
    ] == [3, 4, 7]


def test_a_missing_environment_names_the_command_that_makes_it(tmp_path):
  missing = peers.Peer("tunix", tmp_path / "python", SIZES)
  with pytest.raises(peers.PeerError, match=r"pip install -r .*/tunix\.txt"):
    missing.generate(PROMPTS, 4, 1.0, 0)


def test_a_worker_that_dies_is_quoted_and_started_anew():
  with peer("assert seed, 'no seed'") as fake:
    with pytest.raises(peers.PeerError, match=r"died(.|\n)*no seed"):
      fake.generate(PROMPTS, 4, 1.0, 0)
    assert fake.generate(PROMPTS, 4, 1.0, 1) >= 0


def test_a_worker_that_never_starts_is_quoted():
  with (
    peers.Peer("fake", sys.executable, SIZES, program=("-c", "1 / 0")) as fake,
    pytest.raises(peers.PeerError, match="ZeroDivisionError"),
  ):
    fake.generate(PROMPTS, 4, 1.0, 0)


def test_a_worker_that_hangs_is_ended():
  with (
    peer("import time; time.sleep(60)", timeout=2.0) as fake,
    pytest.raises(peers.PeerError, match="no answer within 2 s"),
  ):
    fake.generate(PROMPTS, 4, 1.0, 0)


def test_missing_tokens_are_refused():
  with (
    peer("num_tokens -= 1") as fake,
    pytest.raises(peers.PeerError, match="generated 6 tokens, not 8"),
  ):
    fake.generate(PROMPTS, 4, 1.0, 0)


def test_prompts_of_two_lengths_and_unknown_sizes_are_refused():
  with pytest.raises(ValueError, match=r"one length, not \[1, 2\]"):
    peer().generate([[1], [1, 2]], 4, 1.0, 0)
  with pytest.raises(ValueError, match="depth"):
    peers.Peer("tunix", sys.executable, {**SIZES, "depth": 1})


@pytest.mark.parametrize("name", peers.NAMES)
def test_what_the_command_installs_is_there(name):
  folder = peers.ROOT / "benchmarks" / "peers"
  assert (folder / f"{name}.txt").exists()
  assert (folder / f"{name}_worker.py").exists()
  assert str(peers.python(name)).endswith(f".peers/{name}/bin/python")
