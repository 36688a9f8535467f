"""What is worth compiling, by arithmetic."""

import dataclasses
import math

import pytest

from distil_jax.distributed import chip_specs
from distil_jax.models.decoder_config import DecoderConfig
from distil_jax.planning import estimates
from distil_jax.planning.workload import Workload

NETWORK = DecoderConfig(
  vocab_size=151936,
  width=4096,
  num_layers=36,
  num_heads=32,
  num_kv_heads=8,
  head_size=128,
  mlp_size=12288,
  tie_embeddings=False,
  rope_theta=1e6,
)
RUN = Workload(
  num_problems=32,
  group_size=8,
  prompt_length=2048,
  completion_length=8192,
  teacher_prompt_length=10240,
  micro_batch_size=256,
  num_slots=256,
  cache_dtype="bfloat16",
  chunk_size=None,
  num_kv_heads=8,
  remat="layer",
  param_dtype="float32",
  compute_dtype="bfloat16",
  mesh={},
  rollout_mesh={},
)
AXES = ("data", "fsdp", "context", "tensor")
NUM_PARAMS = 8_190_000_000


def found(num_chips=8, run=RUN, batch_sizes=(32, 64)):
  step = estimates.Step(
    network=NETWORK,
    run=run,
    num_params=NUM_PARAMS,
    state_bytes=(4 + 4 + 8) * NUM_PARAMS,
    batch_sizes=batch_sizes,
    mini_batch_size=256,
  )
  return estimates.estimate_all(AXES, num_chips, chip_specs.CHIPS["v5p"], step)


def test_a_teacher_of_another_size_is_counted():
  """Half as deep and wide; its width and heads limit the meshes as well."""
  small = dataclasses.replace(
    NETWORK, width=2048, num_layers=18, num_heads=16, num_kv_heads=2
  )
  step = estimates.Step(
    network=NETWORK,
    run=RUN,
    num_params=NUM_PARAMS,
    state_bytes=(4 + 4 + 8) * NUM_PARAMS,
    batch_sizes=(32, 64),
    mini_batch_size=256,
  )
  other = dataclasses.replace(
    step, teacher=small, num_teacher_params=NUM_PARAMS // 6
  )
  chip = chip_specs.CHIPS["v5p"]
  own, asked = (
    {
      (*e.mesh.values(), e.micro_batch_size): e
      for e in estimates.estimate_all(AXES, 8, chip, x)
    }
    for x in (step, other)
  )
  assert max(mesh[3] for mesh in own) == 8
  assert max(mesh[3] for mesh in asked) == 2
  for mesh in own.keys() & asked.keys():
    assert asked[mesh].seconds < own[mesh].seconds
    assert asked[mesh].network_seconds <= own[mesh].network_seconds


def test_meshes_cut_everything_evenly():
  for estimate in found():
    mesh = estimate.mesh
    assert math.prod(mesh.values()) == 8
    assert estimate.micro_batch_size % (mesh["data"] * mesh["fsdp"]) == 0
    assert 256 % estimate.micro_batch_size == 0
  assert len({tuple(g.mesh.values()) for g in found()}) == 20


def test_batches_bound_the_meshes():
  for estimate in found(batch_sizes=(4,)):
    mesh = estimate.mesh
    assert 4 % (mesh["data"] * mesh["fsdp"] * mesh["context"]) == 0


def test_nothing_is_left_where_nothing_divides():
  assert found(num_chips=7) == []


def test_fastest_come_first():
  keys = [(estimate.seconds, estimate.network_seconds) for estimate in found()]
  assert keys == sorted(keys)


def test_state_is_a_lower_bound_of_memory():
  for estimate in found():
    mesh = estimate.mesh
    cut = mesh["fsdp"] * mesh["context"] * mesh["tensor"]
    assert estimate.num_bytes > 16 * NUM_PARAMS / cut


def test_less_at_once_takes_less():
  by_micro = {
    estimate.micro_batch_size: estimate.num_bytes
    for estimate in found()
    if estimate.mesh["fsdp"] == 8
  }
  assert by_micro[8] < by_micro[16] < by_micro[256]
  kept = dataclasses.replace(RUN, remat="none")
  largest = max(estimate.num_bytes for estimate in found(run=kept))
  assert largest > max(estimate.num_bytes for estimate in found())


def test_compute_by_hand():
  # At one sequence a chip and everything cut, products decide.
  estimate = next(g for g in found() if g.mesh["fsdp"] == 8)
  student = 10240 * (NUM_PARAMS + 10240 * 36 * 4096)
  teacher = 18432 * (NUM_PARAMS + 18432 * 36 * 4096)
  expected = 256 * 2 * (4 * student + teacher) / 8 / 459e12
  assert estimate.seconds == pytest.approx(expected)
