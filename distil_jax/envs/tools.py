"""Tools: what a student may use between its turns, on the host."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

from distil_jax.envs import registry
from distil_jax.envs.python_tool import PythonTool
from distil_jax.types import Problem

TOOLS = {"python": PythonTool}


class Tool(Protocol):
  """Answers what the student has written."""

  def __call__(
    self, problem: Problem, turns: Sequence[str], outputs: Sequence[str]
  ) -> str | None:
    """What the student is shown next; called by several threads at once.

    Args:
      problem: what was asked; others read it too, so it stays as it is.
      turns: the student's texts so far, the newest last; at least one.
      outputs: what the tool has said between them, before it was cut: one less.

    Returns:
      None where the last turn asks nothing of the tool: the episode is over.
    """
    ...


def make_tool(kind: str, **settings: Any) -> Tool:
  """Makes a tool by its name.

  Args:
    kind: a key of `TOOLS`, or `module:function` for one of your own; the module
      may lie in the current directory.
    **settings: of that tool.

  Raises:
    ValueError: there is no such tool, it has no such setting, a setting has a
      value that it cannot have, or what the function returns cannot be called.
  """
  made = registry.make("tool", kind, TOOLS, settings)
  if not callable(made):
    raise ValueError(
      f"tool {kind} made a {type(made).__name__}, which cannot be called"
    )
  return cast(Tool, made)
