"""A worker of the tests of `process_pool`, which starts fast.

python -m tests.envs.answering_worker
"""

import os
import pathlib
import socket
import sys
import time
import types

from tests.paths import ROOT


def answer(question):
  if question == "hang":
    time.sleep(3600)
  if question == "wait":
    time.sleep(0.3)
  if question == "die":
    os._exit(3)
  if question == "print":
    print("not an answer", flush=True)
  if question == "look":
    home = str(pathlib.Path.home())
    return [os.environ.get("SECRET"), os.path.exists(__file__), home]
  if question == "reach":
    with socket.socket() as made:
      return made.connect_ex(("192.0.2.1", 80))
  return [question, os.getpid()]


def _leave_out_init(name: str) -> None:
  """Lets modules of a package be imported without the package's own imports.

  Of these JAX alone takes two seconds, at each start.
  """
  package = types.ModuleType(name)
  package.__path__ = [str(ROOT.joinpath(*name.split(".")))]
  sys.modules[name] = package


if __name__ == "__main__":
  _leave_out_init("distil_jax")
  _leave_out_init("distil_jax.envs")

  from distil_jax.envs import process_pool

  process_pool.serve(answer, memory_bytes=2**33, seconds=60)
