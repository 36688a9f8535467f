"""Which bytes of a checkpoint are read, and how many are held at once."""

import mmap
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from distil_jax.models import (
  hf_config,
  hf_export,
  hf_files,
  hf_shards,
  hf_weights,
  sharding,
)
from distil_jax.models.families import FAMILIES
from distil_jax.models.hf_layout import Layout
from tests.distributed.loading_process import NETWORK, template
from tests.models.bytes_read import BytesRead

SETTINGS = hf_config.to_hugging_face(NETWORK, eos_ids=(1,), pad_id=0)


@pytest.fixture(scope="module")
def params():
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: random.normal(size=x.shape).astype(x.dtype), template()
  )


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
  folder = tmp_path_factory.mktemp("checkpoint")
  hf_export.save(
    folder, params, NETWORK, config_json=SETTINGS, max_shard_bytes=9000
  )
  assert len(list(folder.glob("*.safetensors"))) > 2
  return folder


@pytest.mark.parametrize(
  ("data", "fsdp", "tensor", "context"),
  [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)],
)
def test_every_byte_is_read_once_however_the_mesh_cuts(
  folder, params, data, fsdp, tensor, context
):
  mesh = sharding.make_mesh(data, fsdp, tensor, context)
  seen = BytesRead()
  loaded = hf_weights.load(folder, template(mesh), NETWORK, copy=seen.copy)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  for path in folder.glob("*.safetensors"):
    counts = seen.counts(path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert not counts[:header].any()
    assert (counts[header:] == 1).all()


def test_a_part_is_read_alone(tmp_path):
  """By hand: a quarter of the heads of half of the inputs, in one layer."""
  mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
  place = NamedSharding(mesh, PartitionSpec(None, "x", "y"))
  leaf = jax.ShapeDtypeStruct((2, 16, 4, 6), jnp.float32, sharding=place)
  layout = FAMILIES["qwen3"].tensors["layers", "query"]
  name = layout.names(leaf.shape)[1]
  file = tmp_path / "one"
  values = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
  hf_export.safetensors.numpy.save_file({name: values}, file)
  tensor = hf_files.open_file(file)[name]
  boxes = {
    tuple((s.start, s.stop) for s in box): devices
    for box, devices in hf_shards.held_boxes(leaf)
  }
  assert boxes[(0, 2), (8, 16), (1, 2), (0, 6)] == [mesh.devices[1, 1]]
  box = (slice(1, 2), slice(8, 16), slice(1, 2), slice(0, 6))
  host = np.zeros((1, 8, 1, 6), np.float32)
  (part,) = hf_shards._parts({name: tensor}, layout, leaf.shape, box, host)
  seen = BytesRead()
  seen.copy(part.source, part.target)
  np.testing.assert_array_equal(host[0, :, 0], values[6:12, 8:16].T)
  counts = seen.counts(file)[-values.nbytes :].reshape(24, 16, 4)
  expected = np.zeros((24, 16, 4))
  expected[6:12, 8:16] = 1
  np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
  ("layout", "shape"),
  [
    (Layout("model.{}.experts.{}.up", 1), (2, 3, 4, 5)),
    (Layout("model.{}.output", 2), (2, 3, 4, 5)),
    (Layout("model.{}.bias", is_flat=True), (2, 3, 4)),
    (Layout("embedding"), (6, 4)),
  ],
)
def test_no_layout_copies_a_tensor(layout, shape):
  """A part would be read with the whole tensor otherwise."""
  tensor = np.zeros(layout.theirs(shape))
  view = layout.read(tensor, shape[layout.num_stacked :])
  assert np.shares_memory(view, tensor)


def test_progress_ends_at_the_bytes_of_the_tensors(folder):
  told = []
  hf_weights.load(
    folder,
    template(sharding.make_mesh(2, 4)),
    NETWORK,
    report=lambda *numbers: told.append(numbers),
  )
  done, totals = zip(*told, strict=True)
  num_bytes = sum(leaf.size for leaf in jax.tree.leaves(template())) * 4
  assert set(totals) == {num_bytes}
  assert list(done) == sorted(done)
  assert done[-1] == num_bytes


def test_host_holds_one_part_at_a_time(folder, monkeypatch):
  held = most = 0

  def counted(shape, dtype):
    nonlocal held, most
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    # Off the alignment at which a CPU device would take the memory over.
    start = (16 - memory.ctypes.data) % 64
    array = memory[start : start + size]
    held += size
    most = max(most, held)

    def release():
      nonlocal held
      held -= size

    weakref.finalize(memory, release)
    return array.view(dtype).reshape(shape)

  monkeypatch.setattr(hf_shards, "zeros", counted)
  mesh = sharding.make_mesh(1, 4, 2)
  hf_weights.load(folder, template(mesh), NETWORK)
  largest = max(
    np.prod(x.sharding.shard_shape(x.shape)) * 4
    for x in jax.tree.leaves(template(mesh))
  )
  assert most == largest


def test_every_bfloat16_becomes_its_float32():
  bits = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
  source = bits.view(jnp.bfloat16)
  for view in (source, source.T, source[:, 3:9], source[5:6]):
    target = np.zeros(view.shape, np.float32)
    hf_files.copy(view, target)
    expected = view.astype(np.float32)
    np.testing.assert_array_equal(
      target.view(np.uint32), expected.view(np.uint32)
    )


@pytest.mark.parametrize("limit", [1, 7, 64, 10**6])
def test_boxes_cover_an_array_once(limit):
  whole = np.zeros((3, 5, 1, 14), np.uint16)
  for view in (whole, whole.T, whole[:, 1:4, :, ::2], whole[:0]):
    seen = np.zeros(view.shape, np.int64)
    for box in hf_files.boxes(view, limit):
      seen[box] += 1
      assert view[box].nbytes <= max(limit, view.itemsize)
    assert (seen == 1).all()


def test_boxes_are_rows_of_the_file():
  tensor = np.zeros((64, 10), np.float32)
  for box in hf_files.boxes(tensor.T.reshape(10, 8, 8), 640):
    rows, columns = box[1:], box[0]
    assert columns == slice(0, 10)
    assert rows[1] == slice(0, 8)


def test_large_arrays_are_zero_and_begin_at_a_page():
  array = hf_files.zeros((3, 2**20), np.dtype(np.float32))
  assert array.ctypes.data % mmap.PAGESIZE == 0
  assert not array.any()
  array[1, 2] = 3  # can be written


def test_pages_are_given_back_and_can_be_read_again(tmp_path):
  values = np.random.default_rng(0).normal(size=(700, 33)).astype(np.float32)
  hf_export.safetensors.numpy.save_file(
    {"a": values, "b": values}, tmp_path / "f"
  )
  first, second = hf_files.open_file(tmp_path / "f").values()
  whole = (slice(0, 700), slice(0, 33))
  assert hf_files.equal(first, second, whole)
  np.testing.assert_array_equal(first.array, values)
