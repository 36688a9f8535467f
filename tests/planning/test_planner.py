"""Plans: of the devices at hand, and of TPUs that are not here."""

import dataclasses
import json
import platform
import sys

import jax
import pytest

from distil_jax import config
from distil_jax.cli import main
from distil_jax.distributed import chip_specs
from distil_jax.generation import engine
from distil_jax.planning import (
  abstract_inputs,
  advice,
  mesh_search,
  report,
  results,
  topologies,
)
from distil_jax.planning import hardware as planning_hardware
from distil_jax.planning import planner as planning_planner
from distil_jax.training.logging.progress import Progress

SETTINGS = {
  "name": "tiny",
  "model": {
    "directory": "runs/nowhere",
    "create": {
      "vocab_size": 512,
      "width": 64,
      "num_layers": 3,
      "num_heads": 4,
      "num_kv_heads": 2,
      "head_size": 16,
      "mlp_size": 128,
    },
  },
  "mesh": {"fsdp": 4, "tensor": 2},
  "rollout": {
    "num_problems": 8,
    "group_size": 4,
    "max_prompt_length": 32,
    "max_completion_length": 128,
    "num_slots": 16,
  },
  "teacher": {"parameters": "ema", "max_prompt_length": 64},
  "optimizer": {"micro_batch_size": 8},
}


def planner(hardware=None, **changes):
  settings = config.parse({**SETTINGS, **changes})
  hardware = hardware or planning_hardware.find_hardware(None)
  network = planning_planner.load_network(settings, None)
  return planning_planner.Planner(settings, hardware, network, Progress(None))


@pytest.fixture(scope="module")
def planned():
  return planner().plan()


def phase(planned, name):
  return next(found for found in planned.phases if found.name == name)


def test_arguments_by_hand_are_those_of_the_compiler(planned):
  names = [found.name for found in planned.phases]
  assert names == [
    results.PREFILL,
    results.CACHE_GROWTH,
    results.SAMPLING,
    results.TRAINING,
  ]
  for found in planned.phases:
    by_hand = found.memory.arguments_by_hand
    assert by_hand == pytest.approx(found.memory.arguments, rel=0.1), found.name


def test_a_plan_for_gpus_says_that_it_is_an_estimate(planned):
  gpus = planning_hardware.find_hardware("8xH100")
  text = report.to_text(dataclasses.replace(planned, hardware=gpus))
  assert "8 x H100, mesh" in text
  assert "estimated from the CPU's program" in text


def test_with_a_tool_each_row_has_a_prompt_of_its_own(planned):
  """As long as what may be said to it: 16 rows of 160 tokens for 8 of 32."""
  create = {**SETTINGS["model"]["create"], "num_layers": 1}
  made = planner(
    model={**SETTINGS["model"], "create": create},
    tools={"max_output_tokens": 32},
  )
  name = "prompts' keys and values"
  alone, shared = (
    phase(found, results.SAMPLING).memory.by_hand[name]
    for found in (made.build_plan(made.sampling_phases()), planned)
  )
  # All but the last token of each, of one layer in place of three.
  assert alone * 3 / shared == pytest.approx(16 * 159 / (8 * 31))
  assert made.run.prompt_length == 32


def test_state_by_hand_is_a_part_of_the_parameters(planned):
  # Norms are on every device; all else is cut over all 8.
  norms = 3 * (64 + 64 + 16 + 16) + 64
  a_copy = 4 * ((planned.num_params - norms) / 8 + norms)
  counters = 2 * 4  # of the optimiser
  for name, expected in (
    ("parameters", a_copy),
    ("teacher", a_copy),
    ("optimizer", 2 * a_copy + counters),
  ):
    assert planned.parts[name] == expected, name


def test_keys_and_values_by_hand(planned):
  by_hand = phase(planned, results.SAMPLING).memory.by_hand
  a_token = 3 * 2 * 2 * 16 * 4  # layers, keys and values, heads, size, bytes
  # Four parts of the batch, two of the heads.
  assert by_hand["completions' keys and values"] == 16 * 128 * a_token / 8
  assert by_hand["prompts' keys and values"] == 8 * 31 * a_token / 8


def test_operations_of_a_training_step_by_hand(planned):
  """Products that a step makes, counted from the network's sizes."""
  student, teacher, learned = 32 + 128, 64 + 128, 128
  layer = 64 * (4 + 2 + 2 + 4) * 16 + 3 * 64 * 128
  vocabulary = 64 * 512
  down = 128 * 64  # the last product of a layer is not made again

  def attention(length):
    return 2 * length * length * 4 * 16  # all pairs: no kernel on a CPU

  expected = 2 * (
    3 * (student * (4 * layer - down) + teacher * layer)
    + 4 * learned * vocabulary
    + 3 * (4 * attention(student) + attention(teacher))
  )
  found = phase(planned, results.TRAINING).costs
  assert found.flops * 8 == pytest.approx(32 * expected, rel=0.1)
  assert not found.open_loops


def test_sampling_counts_all_its_steps(planned):
  found = phase(planned, results.SAMPLING).costs
  layer = 64 * (4 + 2 + 2 + 4) * 16 + 3 * 64 * 128
  weights = 2 * (3 * layer + 64 * 512)
  # 32 rows in 16 slots: two waves of 128 steps.
  assert found.flops * 8 > 16 * 2 * 128 * weights
  assert found.flops * 8 < 2 * 16 * 2 * 128 * weights


def test_what_runs_on_several_devices_talks(planned):
  kinds = phase(planned, results.TRAINING).costs.by_kind()
  assert {"all-gather", "all-reduce"} <= set(kinds)


def test_lengths_of_the_cache_are_those_of_the_engine():
  assert engine.FIRST_CACHE_LENGTH == 64
  assert abstract_inputs.cache_lengths(64, 200) == [64, 128, 200]
  assert abstract_inputs.cache_lengths(64, 64) == [64]
  assert abstract_inputs.cache_lengths(64, 24) == [24]


def test_peaks_that_nobody_knows_leave_it_open(planned):
  assert planned.fits is None
  assert planned.seconds is None
  text = report.to_text(planned)
  assert "not known here" in text
  found = json.loads(report.to_json(planned))
  assert found["fits"] is None
  assert len(found["phases"]) == 4


# What would be needed, and what is said of it.
def with_room(planned, gibibytes):
  chip = chip_specs.Chip(
    "small", 1e12, gibibytes * 2**30, 1e11, 1e10, 0, "small"
  )
  hardware = results.Hardware("small", planned.hardware.devices, chip)
  return results.Plan(
    hardware, planned.run, planned.num_params, planned.parts, planned.phases
  )


def test_advice_follows_what_is_too_large(planned):
  assert with_room(planned, 1).fits
  assert advice.advice(with_room(planned, 1)) == []
  training = phase(planned, results.TRAINING).memory
  sampling = phase(planned, results.SAMPLING).memory
  state = sum(planned.parts.values())
  assert training.peak > sampling.peak
  # Room for state and sampling, not for activations.
  small = with_room(planned, 0.9 * training.peak / 2**30)
  assert small.fits is False
  (line,) = [x for x in advice.advice(small) if x.startswith("training")][:1]
  assert "optimizer.micro_batch_size=4" in line
  tiny = with_room(planned, state / 2**30)
  assert any("bfloat16" in line for line in advice.advice(tiny))


def test_no_sizes_are_refused_with_the_cure(tmp_path):
  settings = config.parse(
    {**SETTINGS, "model": {"directory": str(tmp_path / "nowhere")}}
  )
  with pytest.raises(config.ConfigError, match="--num-params-from"):
    planning_planner.load_network(settings, None)


def test_sizes_that_are_none_are_refused(tmp_path):
  path = tmp_path / "config.json"
  for text, words in (("{", "not valid JSON"), ("[]", "a JSON object")):
    path.write_text(text)
    with pytest.raises(config.ConfigError, match=words):
      planning_planner.load_network(config.parse(SETTINGS), str(path))


def test_attention_that_does_not_run_there_is_refused():
  model = {**SETTINGS["model"], "compute_dtype": "bfloat16"}
  model["create"] = {**model["create"], "head_size": 128}
  with pytest.raises(config.ConfigError, match="attention=splash"):
    planner(model={**model, "attention": "splash"})


def test_sizes_of_a_config_alone(tmp_path):
  """A folder with nothing but config.json, and a file by itself."""
  sizes = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "rope_theta": 1e4,
  }
  path = tmp_path / "config.json"
  path.write_text(json.dumps(sizes))
  model = {"directory": str(tmp_path)}
  settings = config.parse({**SETTINGS, "model": model})
  assert planning_planner.load_network(settings, None).width == 8
  model = {"directory": str(tmp_path / "nowhere")}
  settings = config.parse({**SETTINGS, "model": model})
  assert planning_planner.load_network(settings, str(path)).width == 8


def test_batches_that_cannot_be_cut_are_refused():
  mesh = {"fsdp": 8}
  rollout = {**SETTINGS["rollout"], "num_problems": 4}
  with pytest.raises(config.ConfigError, match=r"rollout\.num_problems=4"):
    planner(mesh=mesh, rollout=rollout)


TPU = {
  "model": {
    **SETTINGS["model"],
    "compute_dtype": "bfloat16",
    "create": {
      "vocab_size": 512,
      "width": 128,
      "num_layers": 2,
      "num_heads": 2,
      "num_kv_heads": 1,
      "head_size": 128,
      "mlp_size": 128,
    },
  },
  "mesh": {"fsdp": 4},
  "rollout": {
    "num_problems": 4,
    "group_size": 4,
    "max_prompt_length": 128,
    "max_completion_length": 128,
  },
  "evaluation": {"num_problems": 4},
  "teacher": {"parameters": "frozen", "max_prompt_length": 128},
  "optimizer": {"micro_batch_size": 4},
}


has_compiler = pytest.mark.skipif(
  (sys.platform, platform.machine()) != ("linux", "x86_64"),
  reason="libtpu is there for Linux on x86-64 alone",
)


@pytest.fixture(scope="module")
def tpu():
  """Four chips of a TPU, by its own compiler, on any machine."""
  return planning_hardware.find_hardware("v5e-4")


@has_compiler
@pytest.mark.parametrize(
  "name", ["v4-8", "v5e:1x1", "v5e-8", "v5p-16", "v5p:8x8x8", "v6e-256"]
)
def test_devices_are_the_chips_of_a_slice(name):
  found = planning_hardware.find_hardware(name)
  assert found.slice_ is not None
  assert len(found.devices) == found.slice_.num_chips
  assert {d.device_kind for d in found.devices} == {found.chip.device_kind}
  # Where they stand is as the name says: messages are timed by it.
  corner = [
    max(xs) + 1 for xs in zip(*(d.coords for d in found.devices), strict=True)
  ]
  assert tuple(corner[: len(found.slice_.shape)]) == found.slice_.shape


@has_compiler
def test_mesh_that_does_not_suit_the_chips_is_refused():
  chips_of_a_cube = planning_hardware.find_hardware("v5p:4x4x4")
  changes = {"mesh": {"data": 2, "fsdp": 32}, "optimizer": {}}
  sizes = {**TPU["rollout"], "num_problems": 64}
  with pytest.raises(config.ConfigError, match="how the chips are joined"):
    planner(chips_of_a_cube, **{**TPU, **changes, "rollout": sizes})


@pytest.fixture
def named_kernels():
  """Keeps the places in the source that name a kernel in its program."""
  jax.config.update("jax_include_full_tracebacks_in_locations", True)
  yield
  jax.config.update("jax_include_full_tracebacks_in_locations", False)


@has_compiler
@pytest.mark.usefixtures("named_kernels")
def test_training_step_for_a_tpu(tpu):
  found = planner(tpu, **TPU)
  step = found.training_phase()
  by_hand = step.memory.arguments_by_hand
  assert by_hand == pytest.approx(step.memory.arguments, rel=0.1)
  # Each of 4 micro-batches of one row: forward twice and backward, with a
  # teacher's forward; and attention by kernels that visit half of all pairs.
  layer = 128 * (2 + 1 + 1 + 2) * 128 + 3 * 128 * 128
  kernel = 256 * 256 * 2 * 128 * (3 * 2 + 3 + 4) / 2
  layers = 2 * (256 * (5 * layer - 128 * 128) + kernel)
  expected = 2 * 4 * (layers + 4 * 128 * 128 * 512)
  assert step.costs.flops == pytest.approx(expected, rel=0.1)
  assert not step.costs.open_loops
  assert not step.costs.unknown_kernels
  planned = found.build_plan([step])
  assert planned.fits
  assert planned.seconds == step.times.least
  assert "It fits." in report.to_text(planned)


@has_compiler
def test_search_for_a_tpu_ranks_what_fits(tpu):
  # Without a teacher: the step of the test above compiles twice as long.
  supervised = {
    "objective": {"kind": "sft"},
    "rollout": {**TPU["rollout"], "group_size": 1},
  }
  settings = config.parse({**SETTINGS, **TPU, **supervised})
  network = planning_planner.load_network(settings, None)

  def plan_training(candidate):
    made = planning_planner.Planner(candidate, tpu, network, Progress(None))
    return made.build_plan([made.training_phase()])

  found = mesh_search.search(
    settings,
    tpu,
    network,
    Progress(None),
    num_candidates=1,
    plan_training=plan_training,
  )
  assert found.num_estimates > 1
  assert found.best is not None
  chosen = found.best.overrides
  assert "mesh.data=" in chosen[0]
  text = report.search_to_text(found)
  assert f"best: {' '.join(chosen)}" in text
  again = json.loads(report.search_to_json(found))
  assert again["best"] == chosen


def test_command_says_what_is_wrong_in_a_line(tmp_path, capsys):
  path = tmp_path / "tiny.yaml"
  path.write_text(json.dumps(SETTINGS))
  assert main.main(["plan", str(path), "--topology", "v5p-12"]) == 1
  assert "nearest: v5p-8, v5p-16" in capsys.readouterr().err
  assert main.main(["plan", str(path), "--search"]) == 1
  assert "--topology" in capsys.readouterr().err


def test_missing_compiler_is_named_with_the_cure(monkeypatch):
  def missing(**_):
    raise RuntimeError("JAX TPU support not installed; cannot generate it")

  monkeypatch.setattr(topologies.topologies, "get_topology_desc", missing)
  with pytest.raises(ValueError, match=r"pip install 'jax\[tpu\]'"):
    planning_hardware.find_hardware("v5e-4")


def test_micro_batches_by_length_are_planned_at_the_limits():
  create = {**SETTINGS["model"]["create"], "num_layers": 1}
  made = planner(
    model={**SETTINGS["model"], "create": create},
    # Eight rows of 64 + 128 tokens, and what is left is not enough for four.
    optimizer={"tokens_per_micro_batch": 8 * 192 + 700},
  )
  assert made.run.micro_batch_size == 8
  found = made.training_phase()
  by_hand = found.memory.by_hand
  assert by_hand["gradient"] == by_hand["parameters"]
  assert by_hand["optimizer"] == made.parts["optimizer"]
  assert found.memory.arguments_by_hand == pytest.approx(
    found.memory.arguments, rel=0.1
  )
  text = report.to_text(made.build_plan([found]))
  assert "2236 tokens" in text
