"""Forks a supervisor for each job from a process that has imported much.

This process reads nothing of a job but its length, so nothing of one program
can be in the memory that the next one inherits.

A job is a line `length` and as many bytes; or `length length` and two jobs, the
program's and the tests', whose processes are joined by a channel. An answer is
a line `role length` and as many bytes, one for each.
"""

# Modules that programs import, so that each is there at once after a fork.
import abc  # noqa: F401
import array  # noqa: F401
import atexit  # noqa: F401
import bisect  # noqa: F401
import collections  # noqa: F401
import copy  # noqa: F401
import dataclasses  # noqa: F401
import datetime  # noqa: F401
import decimal  # noqa: F401
import enum  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import gc
import hashlib  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import linecache  # noqa: F401
import math  # noqa: F401
import operator  # noqa: F401
import os
import queue  # noqa: F401
import random
import re  # noqa: F401
import socket
import statistics  # noqa: F401
import string  # noqa: F401
import sys
import tempfile  # noqa: F401
import threading  # noqa: F401
import time  # noqa: F401
import typing  # noqa: F401

from distil_jax.envs.sandbox.guest import confine, examine, programs, supervise

# Packages that a program shall not find imported.
_HIDDEN = ("distil_jax", "distil_jax.envs", "distil_jax.envs.sandbox")


def main() -> None:
  """Answers jobs until its standard input ends."""
  settings = json.loads(sys.argv[1])
  sys.argv = [""]
  # Supervisors inherit this open file; `lockf` locks by process, not by file.
  lock = os.open(settings["lock"], os.O_RDWR | os.O_CREAT, 0o600)
  # A program shall not import the guest, which is in memory by then.
  sys.path[:] = [x for x in sys.path if x != settings["path"]]
  if settings["packages"]:
    sys.path.append(settings["packages"])
  confine.prepare(has_namespaces=settings["has_namespaces"])
  random.seed(0)  # Every program draws the same numbers.
  gc.collect()
  # Children's collections would touch, and so copy, memory that never changes.
  gc.freeze()
  os.write(1, b"ready 0\n")
  while line := _line():
    lengths = [int(x) for x in line.split()]
    joined = socket.socketpair() if len(lengths) == 2 else (None, None)
    for length, end in zip(lengths, joined, strict=False):
      _start(length, end, joined, settings, lock)
    # A copy that stays open here would keep the channel open after one side has
    # ended, and the other side would wait until its deadline.
    for end in joined:
      if end is not None:
        end.close()
    # A slot's user, and the limit of its processes, are for one job at a time.
    for _ in lengths:
      os.wait()


def _start(length: int, end, joined, settings, lock: int) -> None:
  """Forks a supervisor and waits until it has read its job."""
  has_read, done = os.pipe()
  if confine.fork():
    os.close(done)
    # Returns once the supervisor closes its end, which its death does too.
    os.read(has_read, 1)
    os.close(has_read)
    return
  role = "program" if end is joined[0] else "tests"
  try:
    for other in joined:
      if other is not None and other is not end:
        other.close()
    job = json.loads(_exactly(length))
    os.close(done)
    os.close(has_read)
    result = _supervised(job, role, end, settings)
  # The supervisor is a copy of the process that reads jobs. It must answer and
  # end here, whatever happens, and never go on with that loop.
  except BaseException as error:
    result = {"end": "crashed", "stderr": f"{type(error).__name__}: {error}"}
  finally:
    try:
      supervise.send(1, role, result, lock)
    finally:
      # Also if the answer could not be sent.
      os._exit(0)


def _supervised(job, role: str, end, settings) -> supervise.Result:
  channel = None if end is None else end.fileno()

  def act(reports: int) -> None:
    # `supervise` moves the channel to this number.
    inner = None if channel is None else 4
    for name in [*_HIDDEN, *(n for n in sys.modules if n.startswith(_HIDDEN))]:
      sys.modules.pop(name, None)
    if role == "tests":
      assert inner is not None
      examine.examine(job, reports, inner)
    programs.run(job, reports, inner)

  return supervise.supervise(
    act,
    # Encoded in the way in which the program's standard input decodes it.
    stdin=job.get("stdin", "").encode("utf-8", "surrogateescape"),
    limits=job["limits"],
    has_namespaces=settings["has_namespaces"],
    user=settings["user"],
    channel=channel,
  )


def _line() -> bytes:
  """Reads the next line and not a byte more: a supervisor reads the rest."""
  found = b""
  while not found.endswith(b"\n"):
    piece = os.read(0, 1)
    if not piece:
      return b""
    found += piece
  return found


def _exactly(length: int) -> bytes:
  found = bytearray()
  while len(found) < length:
    piece = os.read(0, length - len(found))
    if not piece:
      raise EOFError
    found += piece
  return bytes(found)


if __name__ == "__main__":
  main()
