"""Metrics of how fast a step was, and of the memory that it took."""

import os
import pathlib
from collections.abc import Mapping

import jax

from distil_jax.distributed import chip_specs, collectives
from distil_jax.training.logging.compile_watch import Compiled
from distil_jax.training.step_work import Work


def speed_metrics(
  work: Work,
  seconds: Mapping[str, float],
  compiled: Compiled,
  *,
  num_tokens: float,
  judging_seconds: float | None,
) -> dict[str, float]:
  """Returns times, rates and utilisation of a step.

  Args:
    work: What was computed.
    seconds: Of the whole `step`, and of its phases `rollout`, `batch` and
      `update`.
    compiled: What the step compiled.
    num_tokens: Tokens of all completions, of all processes.
    judging_seconds: Time that the rollout waited for verdicts; None if the step
      learned from demonstrations.
  """
  devices = jax.device_count()
  values = {"time/step_seconds": seconds["step"]}
  if judging_seconds is not None:
    values |= {
      "time/rollout_seconds": seconds["rollout"],
      "time/batch_seconds": seconds["batch"],
      "time/update_seconds": seconds["update"],
    }
    # What is sampled before the first wait is not slower for it.
    sampling = max(seconds["rollout"] - judging_seconds, 1e-9)
    values["time/rollout_tokens_per_second"] = num_tokens / sampling / devices
  update, whole = seconds["update"], seconds["step"]
  flops = work.rollout_flops + work.update_flops
  values |= {
    "time/update_tokens_per_second": work.update_tokens / update / devices,
    "time/tokens_per_second": num_tokens / whole,
    "time/update_teraflops": work.update_flops / update / devices / 1e12,
    "time/teraflops": flops / whole / devices / 1e12,
    "time/compile_seconds": compiled.seconds,
    "time/compilations": float(compiled.num_programs),
    "time/cached_compilations": float(compiled.num_from_cache),
  }
  chip = chip_specs.by_device_kind(jax.devices()[0].device_kind)
  if chip is not None:
    peak = chip.flops / 1e12
    values["time/update_mfu"] = values["time/update_teraflops"] / peak
    values["time/mfu"] = values["time/teraflops"] / peak
  return values


def memory_metrics() -> dict[str, float]:
  """Returns the memory of devices and hosts, of the process with the most.

  A backend that does not count, such as that of CPUs, has no figure of devices.
  """
  stats = [x.memory_stats() or {} for x in jax.local_devices()]
  peak = max(x.get("peak_bytes_in_use", 0) for x in stats)
  # Whole megabytes, because integers of 32 bits are exchanged.
  found = collectives.global_maxima([peak // 10**6, _resident_bytes() // 10**6])
  names = ("memory/device_peak_gigabytes", "memory/host_gigabytes")
  return {
    name: megabytes / 1e3
    for name, megabytes in zip(names, found, strict=True)
    if megabytes
  }


def _resident_bytes() -> int:
  """Returns this process's resident memory; 0 where it is not known."""
  statm = pathlib.Path("/proc/self/statm")
  if not statm.exists():
    return 0
  return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
