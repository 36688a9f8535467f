"""Measures how fast a checkpoint is loaded, and how much memory that takes.

  python -m benchmarks.loading

The checkpoint has the shapes of Qwen3-4B with fewer layers, in bfloat16, tied,
in files of at most 1 GB; it is made in a temporary folder. Each row is a
process of its own. `cold` rows first drop the files from the system's cache;
`rate` is bytes of the files a second, and `of read` is that as a share of the
rate at which the same files are read into a buffer that is thrown away, cold or
warm. `cpu s` is the time that the process's threads ran, which other work on
the machine disturbs less.

`extra` is the peak of the resident memory over that before loading and that of
the parameters, which on a CPU are in the same memory; `of shard` is that as a
multiple of the largest part of a parameter that a device holds. `disk` is what
came from the disk, as a share of what was asked for.

The first table loads whole parameters; `before` is what this package did in its
first version. The second reads an eighth of each row of the projections, which
is what a process of eight needs of a parameter that is cut along its inputs.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

_SIZES = {
  "vocab_size": 151_936,
  "width": 2560,
  "num_heads": 32,
  "num_kv_heads": 8,
  "head_size": 128,
  "mlp_size": 9728,
}
_PROJECTION = "mlp.up_proj"
_BUFFER_BYTES = 2**24


def network(num_layers: int, dtype: str):
  """Returns the sizes of the network."""
  from distil_jax.models import decoder_config

  return decoder_config.DecoderConfig(
    **_SIZES,
    num_layers=num_layers,
    tie_embeddings=True,
    rope_theta=1e6,
    param_dtype=dtype,
  )


def make(folder: pathlib.Path, num_layers: int) -> None:
  """Writes the checkpoint; run in a process of its own, which it fills."""
  import jax

  from distil_jax.models import decoder, hf_config, hf_export

  config = network(num_layers, "bfloat16")
  random = np.random.default_rng(0)

  def values(leaf):
    # Any bits that are finite numbers; drawing normal ones takes minutes.
    bits = random.integers(0, 0x4000, leaf.shape, np.uint16)
    return bits.view(leaf.dtype)

  _, template = decoder.make(config)
  hf_export.save(
    folder,
    jax.tree.map(values, template),
    config,
    config_json=hf_config.to_hugging_face(config, eos_ids=(0,), pad_id=0),
    max_shard_bytes=10**9,
  )


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob("*.safetensors"))


def drop_from_cache(folder: pathlib.Path) -> None:
  for path in files(folder):
    with path.open("rb") as file:
      os.fsync(file.fileno())
      os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def status(name: str) -> int:
  """Returns a figure of this process's memory in bytes."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(name + ":"):
      return int(line.split()[1]) * 1024
  raise KeyError(name)


def from_disk() -> int:
  """Returns the bytes that this process has had read from disks."""
  for line in pathlib.Path("/proc/self/io").read_text().splitlines():
    if line.startswith("read_bytes:"):
      return int(line.split()[1])
  raise KeyError("read_bytes")


def read_through(folder: pathlib.Path, options) -> int:
  """Reads the files one after the other into one buffer."""
  del options
  buffer = bytearray(_BUFFER_BYTES)
  num_bytes = 0
  for path in files(folder):
    with path.open("rb", buffering=0) as file:
      while count := file.readinto(buffer):
        num_bytes += count
  return num_bytes


def read_to_memory(folder: pathlib.Path, options) -> int:
  """Reads the files into memory of their size, which is what loading must do.

  New memory costs more time than copying.
  """
  del options
  from distil_jax.models import hf_files

  kept = []
  for path in files(folder):
    memory = hf_files.zeros((path.stat().st_size,), np.dtype(np.uint8))
    with path.open("rb", buffering=0) as file:
      done = 0
      while count := file.readinto(memory[done : done + _BUFFER_BYTES]):
        done += count
    kept.append(memory)
  return sum(memory.nbytes for memory in kept)


def template_of(options) -> Any:
  """Returns shapes, types and, on several devices, shardings."""
  import jax

  from distil_jax.models import decoder, sharding

  config = network(options.layers, options.dtype)
  _, template = decoder.make(config)
  if options.devices == 1:
    return template
  mesh = sharding.make_mesh(
    1, options.devices // options.tensor, options.tensor
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    template,
    decoder.shardings(mesh, template),
  )


def ours(folder: pathlib.Path, options) -> Any:
  from distil_jax.models import hf_files, hf_shards, hf_weights

  hf_shards._NUM_THREADS = options.threads
  if options.keeps_pages:
    hf_files._give_back = lambda file, view: None
  config = network(options.layers, options.dtype)
  return hf_weights.load(folder, template_of(options), config)


def before(folder: pathlib.Path, options) -> Any:
  """Loads as the first version did: every tensor whole, then a host stack."""
  import contextlib

  import jax
  import safetensors
  from flax import traverse_util

  from distil_jax.models.families import FAMILIES

  leaves = traverse_util.flatten_dict(template_of(options))
  params = {}
  with contextlib.ExitStack() as opened:
    tensors = {}
    for path in files(folder):
      file = opened.enter_context(safetensors.safe_open(path, "numpy"))
      tensors |= dict.fromkeys(file.keys(), file)
    for path, leaf in leaves.items():
      layout = FAMILIES["qwen3"].tensors[path]
      host = np.empty(leaf.shape, leaf.dtype)
      layers = host if layout.num_stacked else host[None]
      for layer, name in enumerate(layout.names(leaf.shape)):
        tensor = tensors[name].get_tensor(name)
        layers[layer] = layout.read(tensor, layers.shape[1:])
      if leaf.sharding is None:
        params[path] = jax.numpy.asarray(host)
      else:
        params[path] = jax.make_array_from_callback(
          host.shape, leaf.sharding, lambda index, host=host: host[index]
        )
  return params


def projections(folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
  """Returns the file and the name of one projection of each layer."""
  import safetensors

  found = []
  for path in files(folder):
    with safetensors.safe_open(path, "numpy") as file:
      names = file.keys()
      found += [(path, name) for name in names if _PROJECTION in name]
  return found


def whole_rows(folder: pathlib.Path, options) -> int:
  """Reads the projections whole, as one who cuts them on the host."""
  del options
  import safetensors

  num_bytes = 0
  for path, name in projections(folder):
    with safetensors.safe_open(path, "numpy") as file:
      num_bytes += file.get_tensor(name).nbytes
  return num_bytes


def get_slice(folder: pathlib.Path, options) -> int:
  """Reads the first eighth of the columns with safetensors' own slices."""
  del options
  import safetensors

  num_bytes = 0
  for path, name in projections(folder):
    with safetensors.safe_open(path, "numpy") as file:
      size = file.get_slice(name).get_shape()[1]
      num_bytes += file.get_slice(name)[:, : size // 8].nbytes
  return num_bytes


def mapped_columns(folder: pathlib.Path, options) -> int:
  """Reads the first eighth of the columns as `load` does."""
  import concurrent.futures

  from distil_jax.models import hf_files

  num_bytes = 0
  with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
    for path, name in projections(folder):
      tensor = hf_files.open_file(path)[name]
      source = tensor.array[:, : tensor.shape[1] // 8]
      target = np.zeros(source.shape, source.dtype)
      part = hf_files.Part(source, target, tensor.file)
      hf_files.copy_parts([part], pool, hf_files.copy, lambda count: None)
      num_bytes += target.nbytes
  return num_bytes


def pread_columns(folder: pathlib.Path, options) -> int:
  """Reads the first eighth of each row with a system call of its own."""
  del options
  from distil_jax.models import hf_files

  num_bytes = 0
  for path, name in projections(folder):
    tensor = hf_files.open_file(path)[name]
    width = tensor.shape[1] * tensor.array.itemsize
    with path.open("rb", buffering=0) as file:
      for row in range(tensor.shape[0]):
        part = os.pread(file.fileno(), width // 8, tensor.offset + row * width)
        num_bytes += len(part)
  return num_bytes


WAYS: dict[str, Callable[..., Any]] = {
  way.__name__: way
  for way in (
    read_through,
    read_to_memory,
    ours,
    before,
    whole_rows,
    get_slice,
    mapped_columns,
    pread_columns,
  )
}


def measure(options) -> dict[str, float]:
  """Runs one way in this process; returns its figures."""
  import jax

  # Imported here, so that no way is charged for it.
  from distil_jax.models import decoder, hf_weights  # noqa: F401

  folder = pathlib.Path(options.folder)
  largest = 0
  if options.way in ("ours", "before"):
    jax.block_until_ready(jax.numpy.ones(8) + 1)  # starts the backend
    for leaf in jax.tree.leaves(template_of(options)):
      shape = leaf.shape
      if leaf.sharding is not None:
        shape = leaf.sharding.shard_shape(shape)
      largest = max(largest, int(np.prod(shape)) * leaf.dtype.itemsize)
  if options.cache == "cold":
    drop_from_cache(folder)
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
  resident, disk = status("VmRSS"), from_disk()
  start, begun = time.perf_counter(), time.process_time()
  found = jax.block_until_ready(WAYS[options.way](folder, options))
  seconds = time.perf_counter() - start
  cpu_seconds = time.process_time() - begun
  num_bytes, params = found, 0
  if not isinstance(found, int):
    num_bytes = sum(path.stat().st_size for path in files(folder))
    params = sum(x.nbytes for x in jax.tree.leaves(found))
  return {
    "seconds": seconds,
    "cpu": cpu_seconds,
    "bytes": num_bytes,
    "extra": status("VmHWM") - resident - params,
    "largest": largest,
    "disk": from_disk() - disk,
  }


# Way, and the options in which it differs from a plain one.
_LOADS: tuple[tuple[str, str, dict[str, Any]], ...] = (
  ("read through", "read_through", {}),
  ("read to memory", "read_to_memory", {}),
  ("load", "ours", {}),
  ("load, 1 thread", "ours", {"threads": 1}),
  ("load, pages kept", "ours", {"keeps_pages": True}),
  ("load to float32", "ours", {"dtype": "float32"}),
  ("load, 8 devices", "ours", {"devices": 8}),
  ("load, 2 x 4 devices", "ours", {"devices": 8, "tensor": 4}),
  ("before", "before", {}),
  ("before, to float32", "before", {"dtype": "float32"}),
  ("before, 8 devices", "before", {"devices": 8}),
)
_COLUMNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
  ("whole tensors", "whole_rows", {}),
  ("eighth: get_slice", "get_slice", {}),
  ("eighth: mapped", "mapped_columns", {}),
  ("eighth: mapped, 1 thread", "mapped_columns", {"threads": 1}),
  ("eighth: pread", "pread_columns", {}),
)
_HEAD = (
  "way",
  "cache",
  "s",
  "cpu s",
  "rate MB/s",
  "of read",
  "extra MB",
  "of shard",
  "disk",
)


def run(
  folder: str, way: str, cache: str, options, changes
) -> dict[str, float]:
  """Returns the figures of a process that has taken the median time."""
  flags = {
    "way": way,
    "folder": folder,
    "cache": cache,
    "layers": options.layers,
    "threads": options.threads,
  } | {name: x for name, x in changes.items() if name != "keeps_pages"}
  command = [sys.executable, "-m", "benchmarks.loading"]
  command += [f"--{name}={value}" for name, value in flags.items()]
  command += ["--keeps-pages"] if "keeps_pages" in changes else []
  count = changes.get("devices", 1)
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
  }
  found = [
    json.loads(
      subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE
      ).stdout
    )
    for _ in range(options.rounds)
  ]
  return sorted(found, key=lambda row: row["seconds"])[len(found) // 2]


def cells(name: str, cache: str, row, read_rate: float | None) -> list[str]:
  """Returns a row of the table as text."""
  rate = row["bytes"] / row["seconds"]
  largest = row["largest"]
  return [
    name,
    cache,
    f"{row['seconds']:.2f}",
    f"{row['cpu']:.2f}",
    f"{rate / 1e6:.0f}",
    f"{rate / read_rate:.0%}" if read_rate else "–",
    f"{row['extra'] / 1e6:.0f}",
    f"{row['extra'] / largest:.2f}" if largest else "–",
    f"{row['disk'] / row['bytes']:.0%}",
  ]


def report(folder: pathlib.Path, options) -> list[str]:
  """Measures all rows; prints and returns the lines of the tables."""
  from benchmarks import machine

  lines = []

  def say(*texts: str) -> None:
    lines.extend(texts)
    print("\n".join(texts), flush=True)

  size = sum(path.stat().st_size for path in files(folder))
  say(
    machine.description(),
    f"{os.cpu_count()} cores; {options.layers} layers of Qwen3-4B, "
    f"{size / 1e9:.2f} GB in {len(files(folder))} files, median of "
    f"{options.rounds} processes, {options.threads} threads",
  )
  for table in (_LOADS, _COLUMNS):
    say("", "| " + " | ".join(_HEAD) + " |", "|" + " --- |" * len(_HEAD))
    read_rates: dict[str, float] = {}
    for name, way, changes in table:
      for cache in ("cold", "warm"):
        row = run(str(folder), way, cache, options, changes)
        if way == "read_through":
          read_rates[cache] = row["bytes"] / row["seconds"]
        texts = cells(name, cache, row, read_rates.get(cache))
        say("| " + " | ".join(texts) + " |")
  return lines


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.loading",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--layers", type=int, default=6, help="of the 36")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--threads", type=int, default=8)
  parser.add_argument("--save", help="also write the tables into this file")
  one = parser.add_argument_group("one row", "what a process of a row is told")
  one.add_argument("--way", choices=[*WAYS, "make"])
  one.add_argument("--folder")
  one.add_argument("--cache", choices=["cold", "warm"], default="warm")
  one.add_argument("--devices", type=int, default=1)
  one.add_argument("--tensor", type=int, default=1)
  one.add_argument("--dtype", default="bfloat16")
  one.add_argument("--keeps-pages", action="store_true")
  return parser.parse_args()


def main() -> None:
  options = parse()
  if options.way == "make":
    make(pathlib.Path(options.folder), options.layers)
  elif options.way:
    print(json.dumps(measure(options)))
  else:
    with tempfile.TemporaryDirectory() as folder:
      run_make = [sys.executable, "-m", "benchmarks.loading", "--way=make"]
      run_make += [f"--folder={folder}", f"--layers={options.layers}"]
      subprocess.run(run_make, check=True)
      lines = report(pathlib.Path(folder), options)
    if options.save:
      pathlib.Path(options.save).write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
  main()
