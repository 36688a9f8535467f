"""The `init` command."""

import argparse
import importlib.resources
import json
import pathlib
import random
import shlex

from distil_jax import config as configs
from distil_jax.cli.options import add_command

_NUM_ROWS = {"train.jsonl": 512, "test.jsonl": 48}
_MAX_BALANCE = 99  # the embedded model knows numbers of two digits
_SCHEMA = "config.schema.json"


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_command(
    commands,
    "init",
    "write a config, data and an environment to begin your own task with",
    "my_task",
  )
  command.add_argument(
    "directory", metavar="DIRECTORY", help="the folder to make"
  )
  command.add_argument(
    "--debug", action="store_true", help="show the traceback of an error"
  )
  command.set_defaults(run=run, overrides=())


def run(arguments: argparse.Namespace) -> int:
  """Writes the files and says what to do next."""
  folder = pathlib.Path(arguments.directory)
  files = starter_files(folder)
  for name in files:
    if (folder / name).exists():
      raise configs.ConfigError(
        f"{folder / name} exists already; choose another folder"
      )
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    (folder / name).write_text(text, encoding="utf-8")
  config, is_inside = _paths(folder)["CONFIG"], _is_module(folder)
  print(f"{folder} has {', '.join(files)}\n\nnext:")
  if not is_inside and folder.resolve() != pathlib.Path.cwd():
    print(f"  cd {shlex.quote(str(folder))}")
  print(f"  distil-jax check {config}")
  print(f"  distil-jax train {config}")
  return 0


def starter_files(folder: pathlib.Path) -> dict[str, str]:
  """Returns the texts of a starter's files by name.

  Args:
    folder: where they will be; paths in the config are relative to the current
      directory if it is a package's name there, else to the folder itself.
  """
  from distil_jax.config import describe

  source = importlib.resources.files("distil_jax.cli.starter")
  text = source.joinpath("config.yaml").read_text(encoding="utf-8")
  for key, value in _paths(folder).items():
    text = text.replace(f"@{key}@", value)
  return {
    "config.yaml": text,
    "task.py": source.joinpath("task.py").read_text(encoding="utf-8"),
    **{name: _rows(name, count) for name, count in _NUM_ROWS.items()},
    _SCHEMA: json.dumps(describe.json_schema()) + "\n",
  }


def _paths(folder: pathlib.Path) -> dict[str, str]:
  """Returns what stands in the config for the places of the files."""
  name = folder.resolve().name
  if not _is_module(folder):
    return {
      "NAME": name,
      "CONFIG": "config.yaml",
      "FOLDER": "",
      "MODULE": "task",
    }
  return {
    "NAME": name,
    "CONFIG": f"{folder}/config.yaml",
    "FOLDER": f"{folder}/",
    "MODULE": f"{'.'.join(folder.parts)}.task",
  }


def _is_module(folder: pathlib.Path) -> bool:
  """Returns True if a file in the folder can be imported from here."""
  return bool(folder.parts) and all(x.isidentifier() for x in folder.parts)


def _rows(name: str, count: int) -> str:
  """Returns the rows of a data file; no problem is in both files."""
  rng = random.Random(0)
  rows: dict[str, None] = {}
  while len(rows) < sum(_NUM_ROWS.values()):
    balance = start = rng.randint(10, _MAX_BALANCE)
    changes = []
    for _ in range(3):
      change = rng.choice(
        [x for x in range(-9, 10) if x and 0 <= balance + x <= _MAX_BALANCE]
      )
      changes.append(change)
      balance += change
    rows[json.dumps({"start": start, "changes": changes})] = None
  found = list(rows)
  part = found[:count] if name == "train.jsonl" else found[-count:]
  return "\n".join(part) + "\n"
