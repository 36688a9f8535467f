"""Runs untrusted programs, such as those that a model has written.

    with sandbox.make() as programs:
      outcome = programs.run(sandbox.Job("print(6 * 7)"))

A program can affect nothing but its own outcome: it has no network, sees no
files but Python's own, and its time, memory, processes and output are limited.
Files and processes that it leaves behind are removed with it.

This package imports nothing but Python's standard library, so that it can run
on a machine that has nothing else.
"""

from distil_jax.envs.sandbox import local, remote
from distil_jax.envs.sandbox.jobs import (
  Call,
  Check,
  Checks,
  End,
  Fault,
  Job,
  Limits,
  Outcome,
  Sandbox,
  SandboxError,
  Tests,
)

KINDS = ("bubblewrap", "weak", "remote")

__all__ = [
  "KINDS",
  "Call",
  "Check",
  "Checks",
  "End",
  "Fault",
  "Job",
  "Limits",
  "Outcome",
  "Sandbox",
  "SandboxError",
  "Tests",
  "make",
]


def make(
  kind: str = "bubblewrap",
  *,
  num_processes: int | None = None,
  python: str | None = None,
  packages: str | None = None,
  url: str | None = None,
) -> Sandbox:
  """Makes a sandbox by its kind.

  Args:
    kind: `bubblewrap` isolates programs in namespaces of this machine's kernel.
      `weak` only sets limits and refuses system calls: programs can read and
      change all files that this user can. `remote` sends programs to another
      machine, see `serving`.
    num_processes: Jobs that run at once; None means one for each core.
    python: Interpreter of the programs; None means this one, without installed
      packages.
    packages: Folder of packages that programs may import, made by
      `pip install --target`; None means no packages.
    url: Address of a remote sandbox.

  Raises:
    SandboxError: This machine cannot isolate programs, or the remote sandbox
      does not answer.
    ValueError: There is no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown sandbox {kind!r}; known: {', '.join(KINDS)}")
  if kind == "remote":
    if not url:
      raise ValueError("a sandbox of kind remote needs a url; set sandbox.url")
    return remote.RemoteSandbox(url)
  return local.LocalSandbox(
    is_isolated=kind == "bubblewrap",
    num_processes=num_processes,
    python=python,
    packages=packages,
  )
