"""An argument parser whose help has examples and whose errors have cures."""

import argparse
import difflib
import re
from typing import Any, NoReturn

_UNKNOWN_COMMAND = re.compile(r"argument COMMAND: invalid choice: '(.*?)' \(")


class CommandParser(argparse.ArgumentParser):
  """Parses the command line, or the arguments of one command.

  Attributes:
    example: a call, shown at the end of the help; None shows nothing.
    command_names: what an unknown command is compared with.
  """

  def __init__(self, *arguments: Any, example: str | None = None, **settings):
    """Takes an example beside the arguments of `ArgumentParser`."""
    super().__init__(*arguments, **settings)
    self.example = example
    self.command_names: list[str] = []

  def format_help(self) -> str:
    """Returns the help, with the example after it."""
    text = super().format_help()
    return f"{text}\nexample:\n  {self.example}\n" if self.example else text

  def error(self, message: str) -> NoReturn:
    """Ends the process with a message; names the nearest command."""
    unknown = _UNKNOWN_COMMAND.match(message)
    if unknown:
      known = self.command_names
      near = difflib.get_close_matches(unknown[1], known, n=1)
      cure = f"did you mean {near[0]}? " if near else ""
      message = (
        f"there is no command {unknown[1]!r}; {cure}the commands are "
        + ", ".join(known)
      )
    super().error(message)
