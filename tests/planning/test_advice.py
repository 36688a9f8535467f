"""Which setting is named where something does not fit."""

import dataclasses

from distil_jax.distributed import chip_specs
from distil_jax.planning import advice, memory, results, roofline
from distil_jax.planning.results import SAMPLING, TRAINING
from tests.planning.test_estimates import RUN

GIB = 2.0**30
MESH = {"data": 1, "fsdp": 8, "context": 1, "tensor": 1}


def planned(name, by_hand, temporaries, bound="memory", **changes):
  """A plan for chips of 95 GiB with one phase, GiB."""
  by_hand = {part: size * GIB for part, size in by_hand.items()}
  state = {
    part: by_hand.get(part, 0.0)
    for part in ("parameters", "teacher", "initial parameters", "optimizer")
  }
  seconds = {"compute": 1.0, "memory": 1.0, "network": 1.0, bound: 2.0}
  phase = results.Phase(
    name,
    memory.Memory(by_hand, sum(by_hand.values()), temporaries * GIB),
    None,
    roofline.Times(**seconds),
  )
  run = dataclasses.replace(RUN, mesh=MESH, rollout_mesh=MESH, **changes)
  hardware = results.Hardware("v5p-16", [None] * 8, chip_specs.CHIPS["v5p"])
  return results.Plan(hardware, run, 8_000_000_000, state, [phase])


STATE = {"parameters": 4, "teacher": 4, "optimizer": 8}


def test_what_fits_needs_no_advice():
  assert advice.advice(planned(TRAINING, STATE, 70)) == []


def test_activations_name_the_micro_batch_first():
  (line,) = advice.advice(planned(TRAINING, STATE, 90, micro_batch_size=64))
  assert line.endswith("optimizer.micro_batch_size=32")


def test_then_what_is_kept_of_layers():
  changes = {"micro_batch_size": 8, "remat": "none"}
  (line,) = advice.advice(planned(TRAINING, STATE, 90, **changes))
  assert line.endswith("model.remat=layer")


def test_then_the_mesh_and_the_chunk():
  changes = {"micro_batch_size": 8, "chunk_size": 512}
  lines = advice.advice(planned(TRAINING, STATE, 90, **changes))
  settings = "mesh.context=2 mesh.fsdp=4 optimizer.micro_batch_size=4"
  assert lines[0].endswith(settings)
  assert "mesh.tensor=2 mesh.fsdp=4" in lines[1]
  assert lines[2].endswith("objective.chunk_size=256")


def test_state_names_chips_and_types():
  state = {"parameters": 40, "teacher": 40, "optimizer": 80}
  lines = advice.advice(planned(TRAINING, state, 10))
  assert "optimizer.kind=lion" in lines[0]
  assert "model.param_dtype=bfloat16" in lines[1]
  assert lines[-1].endswith("32 chips")


def test_keys_and_values_name_slots():
  caches = {"completions' keys and values": 160}
  (line,) = advice.advice(planned(SAMPLING, caches, 5))
  # 90 GiB are left for 256 slots of 160 GiB; a fifth is kept free.
  assert line.endswith("rollout.num_slots=112")


def test_keys_and_values_name_their_type():
  caches = {"completions' keys and values": 160}
  changes = {"cache_dtype": "float32"}
  (line,) = advice.advice(planned(SAMPLING, caches, 5, **changes))
  assert "rollout.cache_dtype=bfloat16" in line


def test_sampling_that_waits_for_weights_names_heads():
  (line,) = advice.hints(planned(SAMPLING, {}, 5, bound="network"))
  assert "rollout.mesh={data: 1, fsdp: 1, tensor: 8}" in line
  assert advice.hints(planned(SAMPLING, {}, 5)) == []
