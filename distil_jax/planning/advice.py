"""Suggests settings for a plan that does not fit."""

import math

from distil_jax.models import remat
from distil_jax.planning.results import (
  CACHE_GROWTH,
  PREFILL,
  SAMPLING,
  TRAINING,
  Phase,
  Plan,
)


def advice(plan: Plan) -> list[str]:
  """Returns settings with values to try; none if everything fits."""
  found: list[str] = []
  for phase in plan.phases:
    if not plan.is_too_large(phase):
      continue
    match phase.name:
      case name if name == TRAINING:
        found += _training(plan, phase)
      case name if name in (SAMPLING, CACHE_GROWTH):
        found += _sampling(plan, phase)
      case name if name == PREFILL:
        found += _prefill(plan)
  return list(dict.fromkeys(found))


def hints(plan: Plan) -> list[str]:
  """Returns settings that may be faster, for a plan that fits."""
  run = plan.run
  waits = [
    phase.name
    for phase in plan.phases
    if phase.name in (PREFILL, SAMPLING)
    and phase.times is not None
    and phase.times.bound == "network"
  ]
  num_chips = len(plan.hardware.devices)
  tensor = math.gcd(num_chips, run.num_kv_heads)
  data = num_chips // tensor
  is_cut = run.rollout_mesh.get("tensor", 1) == tensor
  if SAMPLING not in waits or is_cut or run.num_problems % data:
    return []
  return [
    f"{SAMPLING} waits for the network, because weights are gathered for every "
    f"token; sharded along heads they stay in place, if they fit: "
    f"'rollout.mesh={{data: {data}, fsdp: 1, tensor: {tensor}}}'"
  ]


def _training(plan: Plan, phase: Phase) -> list[str]:
  """Suggests how to shrink the training state, or else the activations."""
  run, capacity = plan.run, plan.capacity or 0.0
  state = sum(plan.parts.values())
  gradient = _gradient_bytes(plan)
  # A state that leaves less than a tenth for activations is too large by
  # itself, whatever the size of a micro-batch.
  if state + gradient > 0.9 * capacity:
    return _smaller_state(plan, state + gradient)
  shards = batch_shards(run.mesh)
  if run.micro_batch_size > shards:
    if run.tokens_per_micro_batch is not None:
      return [
        f"{phase.name}: activations are too large: optimizer."
        f"tokens_per_micro_batch={run.tokens_per_micro_batch // 2}"
      ]
    size = max(
      n
      for n in range(shards, run.micro_batch_size, shards)
      if run.micro_batch_size % n == 0 or n == shards
    )
    return [
      f"{phase.name}: activations are too large: optimizer.micro_batch_size="
      f"{size}"
    ]
  if run.remat not in remat.RECOMPUTES_PRODUCTS:
    return [f"{phase.name}: activations are too large: model.remat=layer"]
  found = []
  fsdp = run.mesh["fsdp"]
  for axis in ("context", "tensor"):
    if axis in run.mesh and fsdp % 2 == 0:
      size = 2 * run.mesh[axis]
      found.append(
        f"{phase.name}: one sequence per chip is too large: mesh.{axis}={size} "
        f"mesh.fsdp={fsdp // 2} "
        f"optimizer.micro_batch_size={max(shards // 2, 1)}"
      )
  if run.chunk_size is not None and run.chunk_size > 1:
    found.append(
      f"{phase.name}: to compute fewer logits at once: objective.chunk_size="
      f"{run.chunk_size // 2}"
    )
  if run.remat != "offload":
    found.append(
      f"{phase.name}: to keep the layers' inputs in the host's memory: "
      "model.remat=offload"
    )
  return found


def _gradient_bytes(plan: Plan) -> float:
  """Returns the bytes of a gradient, which is accumulated in float32."""
  size = {"float32": 4, "bfloat16": 2}[plan.run.param_dtype]
  return plan.parts["parameters"] * 4 / size


def _smaller_state(plan: Plan, needed: float) -> list[str]:
  run = plan.run
  share = f"{needed / 2**30:.1f} GiB per chip for state and gradient"
  found = []
  if run.mesh["data"] > 1:
    size = run.mesh["data"] * run.mesh["fsdp"]
    found.append(f"{share}: mesh.data=1 mesh.fsdp={size} shards them further")
  if plan.parts["optimizer"] > 1.5 * _gradient_bytes(plan):
    found.append(
      f"{share}: optimizer.kind=lion or muon keeps one moment in place of two, "
      "adafactor next to none"
    )
  if run.param_dtype == "float32":
    found.append(
      f"{share}: model.param_dtype=bfloat16 with optimizer.master_dtype=null "
      "halves parameters, but needs optimizer.stochastic_rounding=true, or "
      "else loses small updates"
    )
  chips = len(plan.hardware.devices)
  # Slices double in size, and a fifth of the memory is left for activations.
  factor = 2 ** math.ceil(
    math.log2(max(needed / (0.8 * (plan.capacity or 1)), 2))
  )
  found.append(f"{share}: {chips * factor} chips")
  return found


def _sampling(plan: Plan, phase: Phase) -> list[str]:
  run, memory = plan.run, phase.memory
  caches = sum(
    x for name, x in memory.by_hand.items() if name.startswith("completions'")
  )
  if run.cache_dtype == "float32":
    return [f"{phase.name}: rollout.cache_dtype=bfloat16 halves the KV cache"]
  rest = memory.peak - caches
  shards = batch_shards(run.rollout_mesh)
  left = (plan.capacity or 0.0) - rest
  # Temporaries grow with the slots too, so a fifth of the space is left free.
  slots = int(0.8 * left / caches * run.num_slots) if caches else 0
  # Every device has the same number of slots.
  slots -= slots % shards
  if slots >= shards:
    return [
      f"{phase.name}: the KV cache is too large: rollout.num_slots={slots}"
    ]
  found = []
  if run.num_slots > shards:
    found.append(f"{phase.name}: rollout.num_slots={shards}")
  return [
    *found,
    f"{phase.name}: use more chips, or mesh.fsdp instead of mesh.data",
  ]


def _prefill(plan: Plan) -> list[str]:
  if plan.run.mesh.get("data", 1) > 1:
    return [
      f"{PREFILL}: weights are too large: use mesh.fsdp instead of mesh.data"
    ]
  return [f"{PREFILL}: use more chips, or fewer rollout.num_problems"]


def batch_shards(mesh) -> int:
  """Returns the number of parts into which a mesh shards a batch."""
  return mesh["data"] * mesh["fsdp"]
