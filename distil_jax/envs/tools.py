"""Tools that a student may use between its turns, on the host."""

from collections.abc import Callable
from typing import Any, cast

from distil_jax.config import tools as sections
from distil_jax.envs import sandbox, user_functions
from distil_jax.envs.base import Tool
from distil_jax.envs.python_tool import PythonTool

# The kind that a config names, the section of its settings, and its class.
TOOLS = {"python": (sections.PythonToolConfig, PythonTool)}


def make_tool(kind: str, **settings: Any) -> Tool:
  """Makes a tool by its name.

  Args:
    kind: A key of `TOOLS`, or `module:function` for one of your own; the module
      may lie in the current directory.
    **settings: Fields of the tool's config section, without those of every
      tool, which `ToolPool` takes.

  Raises:
    ValueError: There is no such tool or setting, a value does not fit, or what
      the function returns cannot be called.
  """
  if ":" in kind:
    return build_tool(
      sections.OwnToolConfig.model_construct(function=kind, settings=settings)
    )
  for name in settings:
    if name in sections.ToolsConfig.model_fields:
      raise ValueError(
        f"tool {kind}: {name} is a setting of `ToolPool`, which asks the tool; "
        "give it there"
      )
  known = {name: section for name, (section, _) in TOOLS.items()}
  return build_tool(user_functions.read_section("tool", kind, known, settings))


def build_tool(
  config: sections.ToolConfig,
  make_sandbox: Callable[[], sandbox.Sandbox] = sandbox.make,
) -> Tool:
  """Builds a tool from its config section.

  Args:
    config: A section of `config.tools`.
    make_sandbox: Makes the sandbox, called only if programs are to be run.

  Raises:
    ValueError: The user's own function does not exist, or what it returns
      cannot be called.
  """
  if not isinstance(config, sections.OwnToolConfig):
    _, tool = TOOLS[config.kind]
    return tool(config, make_sandbox())
  made = user_functions.call_function("tool", config.function, config.settings)
  if not callable(made):
    raise ValueError(
      f"tool {config.function} made a {type(made).__name__}, which cannot be "
      "called"
    )
  return cast(Tool, made)
