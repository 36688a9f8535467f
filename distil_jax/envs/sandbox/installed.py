"""Makes a folder of packages that are installed beside this interpreter."""

import atexit
import functools
import importlib.metadata
import os
import pathlib
import shutil
import tempfile


@functools.cache
def folder(names: tuple[str, ...]) -> str:
  """Returns a folder with the files of packages; it is deleted at the end.

  Only these are in it, without what they depend on, so that programs see
  nothing else of this environment.

  Raises:
    LookupError: One of them is not installed.
  """
  made = tempfile.mkdtemp(prefix="sandbox-packages-")
  atexit.register(shutil.rmtree, made, ignore_errors=True)
  os.chmod(made, 0o755)
  for name in names:
    try:
      distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      raise LookupError(
        f"sandbox.packages={name} is neither a folder nor an installed "
        f"package; install it here by `pip install {name}`, or make a folder "
        f"by `pip install --target FOLDER {name}`"
      ) from None
    files = distribution.files or []
    # Scripts of a package lie outside of the folder of packages.
    tops = {x.parts[0] for x in files if x.parts[0] not in ("..", "/")}
    for top in sorted(tops):
      source = pathlib.Path(str(distribution.locate_file(top)))
      if source.is_dir():
        shutil.copytree(
          source, f"{made}/{top}", copy_function=_link, dirs_exist_ok=True
        )
      elif source.is_file():
        _link(str(source), f"{made}/{top}")
  return made


def _link(source: str, target: str) -> None:
  """Links a file, or copies it if it is on another file system."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copy2(source, target)
