"""Runs programs that nobody trusts, such as those that a model has written.

    with sandbox.make() as box:
      outcome = box.run(sandbox.Job("print(6 * 7)"))

What a program does costs its own outcome and nothing else: it has no network,
sees no files but Python's own, and its time, memory, processes and output have
limits. Whatever it leaves behind goes with it.
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
  """A sandbox by its kind.

  Args:
    kind: `bubblewrap`: namespaces of this machine's kernel. `weak`: limits, and
      system calls refused, but programs see and may change what files this
      user may.
      `remote`: another machine's, see `serving`.
    num_processes: jobs at once; None: as many as there are cores.
    python: the interpreter that programs run in; None: this one's, without
      what is installed beside Python's own library.
    packages: a folder of packages that they may import, as made by
      `pip install --target`; None: none.
    url: of a remote one.

  Raises:
    SandboxError: this machine cannot do it, or the remote one does not answer.
    ValueError: there is no such kind.
  """
  if kind not in KINDS:
    raise ValueError(f"unknown sandbox {kind!r}; known: {', '.join(KINDS)}")
  if kind == "remote":
    if not url:
      raise ValueError("sandbox kind remote needs a url")
    return remote.RemoteSandbox(url)
  return local.LocalSandbox(
    is_isolated=kind == "bubblewrap",
    num_processes=num_processes,
    python=python,
    packages=packages,
  )
