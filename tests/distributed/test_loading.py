"""Two processes load a checkpoint, each the bytes of its own devices."""

import json

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from distil_jax.generation.policy_directory import resolve_directory
from distil_jax.models import decoder, hf_export
from tests import hub_server
from tests.commands import free_port, start
from tests.distributed import loading_process
from tests.distributed.loading_process import NETWORK


def own_half(name: str, tensor: np.ndarray, index: int) -> tuple[slice, ...]:
  """The part of a tensor in the file that a process of two holds: half of D."""
  half = slice(NETWORK.width // 2 * index, NETWORK.width // 2 * (index + 1))
  if "norm" in name:
    return (slice(None),)  # on every device
  if "o_proj" in name or "down_proj" in name:
    return (half, slice(None))  # the outputs are D
  return (slice(None), half)


def test_each_process_reads_its_own_bytes(tmp_path):
  random = np.random.default_rng(0)
  _, shapes = decoder.make(NETWORK)
  params = jax.tree.map(
    lambda x: random.normal(size=x.shape).astype(x.dtype), shapes
  )
  address = f"127.0.0.1:{free_port()}"
  children = []
  for index in range(2):
    folder = tmp_path / str(index)
    config = {"tie_word_embeddings": False}
    hf_export.save(
      folder, params, NETWORK, config_json=config, max_shard_bytes=9000
    )
    for path in folder.glob("*.safetensors"):
      # Whoever read another's bytes would find no numbers.
      tensors = safetensors.numpy.load_file(path)
      for name, tensor in tensors.items():
        kept = tensor[own_half(name, tensor, index)].copy()
        tensor[...] = np.nan
        tensor[own_half(name, tensor, index)] = kept
      safetensors.numpy.save_file(tensors, path)
    children.append(
      start(
        [address, index, folder],
        tmp_path / "compiled",
        program=("-m", loading_process.__name__),
        num_devices=2,
      )
    )
  for child in children:
    _, said = child.communicate(timeout=200)
    assert child.returncode == 0, said[-3000:]

  found = [np.load(tmp_path / str(i) / "found.npz") for i in range(2)]
  for path, expected in traverse_util.flatten_dict(params).items():
    parts = [file[".".join(path)] for file in found]
    # Each process has its numbers, and both together have them all.
    known = [~np.isnan(part) for part in parts]
    assert (known[0] | known[1]).all()
    for part, is_known in zip(parts, known, strict=True):
      np.testing.assert_array_equal(part[is_known], expected[is_known])
  for path in (tmp_path / "0").glob("*.safetensors"):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for index in range(2):
      expected = np.zeros(len(content), np.int64)
      for name, entry in header.items():
        if name != "__metadata__":
          begin, end = (8 + size + x for x in entry["data_offsets"])
          counts = expected[begin:end].reshape(*entry["shape"], 4)
          counts[own_half(name, counts, index)] = 1
      np.testing.assert_array_equal(found[index][path.name], expected)


# Says where it has found a model of the Hub, or why it has not.
_RESOLVING = """
import pathlib, sys
from huggingface_hub import constants
from distil_jax.distributed import launch, process_group
from distil_jax.generation.policy_directory import resolve_directory

address, index, url, cache, name = sys.argv[1:]
constants.ENDPOINT = url
constants.HUGGINGFACE_CO_URL_TEMPLATE = (
  url + "/{repo_id}/resolve/{revision}/{filename}"
)
constants.HF_HUB_CACHE = cache
spec = launch.ProcessSpec(address, 2, int(index))
try:
  with process_group.joined(spec, timeout=60):
    print(resolve_directory(name), resolve_directory(name, only_config=True))
except (ValueError, RuntimeError) as error:
  print(error, file=sys.stderr)
  process_group.exit_if_failed(1)
"""


def resolved(name, hub, tmp_path, directories):
  """What two processes, each in a folder of its own, say of a model."""
  address = f"127.0.0.1:{free_port()}"
  children = [
    start(
      [address, index, hub.url, tmp_path / "cache", name],
      tmp_path / "compiled",
      program=("-c", _RESOLVING),
      directory=directory,
    )
    for index, directory in enumerate(directories)
  ]
  found = [child.communicate(timeout=200) for child in children]
  return [child.returncode for child in children], found


def test_one_process_of_a_host_downloads(tmp_path, monkeypatch):
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.delenv("HF_TOKEN", raising=False)
  origin = resolve_directory("embedded:calculator")
  for name in ("one", "other"):
    (tmp_path / name).mkdir()
  (tmp_path / "other/acme/copied").mkdir(parents=True)
  both = [tmp_path / "one", tmp_path / "other"]
  with hub_server.served({"acme/calculator": origin}) as hub:
    codes, found = resolved("acme/calculator", hub, tmp_path, both)
    assert codes == [0, 0], found
    (first, _), (second, _) = found
    path, again = first.splitlines()[-1].split()
    assert second.splitlines()[-1] == first.splitlines()[-1]
    assert path == again
    assert path.endswith(hub_server.COMMIT)
    # One process asked, once for all and once for the config.
    assert hub.downloads() == sorted(file.name for file in origin.iterdir())
    assert sum("/revision/" in path for _, path in hub.requests) == 2

    codes, found = resolved("acme/unknown", hub, tmp_path, both)
    assert codes == [1, 1]
    assert "no model of this name" in found[0][1]
    assert "ends with process 0" in found[1][1]

    codes, found = resolved("acme/copied", hub, tmp_path, both)
    assert codes == [1, 1]
    for _, said in found:
      assert "exists for processes [1], but not for the others" in said
