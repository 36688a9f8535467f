"""The warm process: starts a supervisor for each job, as it comes.

It reads nothing of a job but its length. What one program was given can so be
no more in the memory of the next than in that of a machine just started.

A job is a line `length` and so many bytes, or `length length` and two jobs,
the program's and the tests', whose processes are joined by a channel. An answer
is a line `role length` and so many bytes, one for each.
"""

# What programs import: each is there at once.
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

_HIDDEN = ("distil_jax", "distil_jax.envs", "distil_jax.envs.sandbox")


def main() -> None:
  """Until its standard input ends."""
  settings = json.loads(sys.argv[1])
  sys.argv = [""]
  # Between processes that share its open file a lock does not count.
  lock = os.open(settings["lock"], os.O_RDWR | os.O_CREAT, 0o600)
  sys.path[:] = [x for x in sys.path if x != settings["path"]]
  if settings["packages"]:
    sys.path.append(settings["packages"])
  confine.warm_up(has_namespaces=settings["has_namespaces"])
  random.seed(0)  # every program draws the same numbers
  gc.collect()
  gc.freeze()  # children do not touch, and so copy, what they never change
  os.write(1, b"ready 0\n")
  while line := _line():
    lengths = [int(x) for x in line.split()]
    joined = socket.socketpair() if len(lengths) == 2 else (None, None)
    for length, end in zip(lengths, joined, strict=False):
      _start(length, end, joined, settings, lock)
    for end in joined:
      if end is not None:
        end.close()
    for _ in lengths:
      os.wait()


def _start(length: int, end, joined, settings, lock: int) -> None:
  """A supervisor, and waits until it has read its job."""
  has_read, tell = os.pipe()
  if confine.fork():
    os.close(tell)
    os.read(has_read, 1)
    os.close(has_read)
    return
  role = "program" if end is joined[0] else "tests"
  try:
    for other in joined:
      if other is not None and other is not end:
        other.close()
    job = json.loads(_exactly(length))
    os.close(tell)
    os.close(has_read)
    result = _supervised(job, role, end, settings)
  except BaseException as error:
    result = {"end": "crashed", "stderr": f"{type(error).__name__}: {error}"}
  finally:
    try:
      supervise.send(1, role, result, lock)
    finally:
      os._exit(0)


def _supervised(job, role: str, end, settings) -> supervise.Result:
  channel = None if end is None else end.fileno()

  def act(reports: int) -> None:
    inner = None if channel is None else 4
    for name in [*_HIDDEN, *(n for n in sys.modules if n.startswith(_HIDDEN))]:
      sys.modules.pop(name, None)
    if role == "tests":
      assert inner is not None
      examine.examine(job, reports, inner)
    programs.run(job, reports, inner)

  return supervise.supervise(
    act,
    stdin=job.get("stdin", "").encode("utf-8", "surrogateescape"),
    limits=job["limits"],
    has_namespaces=settings["has_namespaces"],
    user=settings["user"],
    channel=channel,
  )


def _line() -> bytes:
  """The next line, and not a byte more."""
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
