"""Plans memory, FLOPs and traffic of a run on hardware that is not here.

Sampling and the training step are compiled ahead of time, from a config and
the sizes of its network. Weights, tokenizer and data are not needed.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from distil_jax.config.base import ConfigError
from distil_jax.config.schema import Config
from distil_jax.generation import engine, prefill, sampler, sampler_state
from distil_jax.generation.policy import Policy
from distil_jax.models import (
  cached_forward,
  decoder,
  hf_config,
  hf_directory,
  sharding,
)
from distil_jax.models import decoder_config as models_config
from distil_jax.models.kernels import sequence_attention
from distil_jax.planning import (
  abstract_inputs,
  costs,
  memory,
  roofline,
  training_program,
)
from distil_jax.planning.build_workload import build_workload
from distil_jax.planning.results import (
  CACHE_GROWTH,
  PREFILL,
  SAMPLING,
  TRAINING,
  Hardware,
  Phase,
  Plan,
)
from distil_jax.planning.teacher_inputs import teacher_inputs
from distil_jax.training import low_precision, train_state
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import meshes, policies, train_steps
from distil_jax.training.setup import steps as setup_step
from distil_jax.training.setup.model_directory import model_directory

_WEIGHTS = "weights for sampling"
MASTERS = "float32 copy of the parameters"
TEACHER_MODEL = "teacher's model"
# The ids that end a completion do not change what is planned.
_EOS_IDS = (0,)


def load_network(
  config: Config, sizes_from: str | None
) -> models_config.DecoderConfig:
  """Returns the sizes of a run's network.

  Args:
    config: The run.
    sizes_from: Path of a `config.json`. None means that of the model, or the
      sizes in `model.create` if the model does not exist yet.

  Raises:
    ConfigError: There is no such file, or the run does not suit the network.
    HubError: The model is one of the Hub, and its `config.json` is not here.
  """
  model = config.model
  settings: dict[str, Any] = {
    "param_dtype": model.param_dtype,
    "compute_dtype": model.compute_dtype,
    "remat": model.remat,
    "attention": model.attention,
  }
  path = (
    pathlib.Path(sizes_from)
    if sizes_from
    else model_directory(config, only_config=True) / hf_directory.CONFIG
  )
  if path.is_file():
    try:
      sizes = hf_directory.read_json(path)
    except hf_directory.WeightsError as error:
      raise ConfigError(str(error)) from error
    found = hf_config.from_hugging_face(sizes, **settings)
  elif model.create is not None and not sizes_from:
    found = policies.new_network(model.create, **settings)
  else:
    raise ConfigError(
      f"there is no {path}; a plan needs the sizes of the network: set "
      "model.directory to a folder with config.json, or give "
      "--num-params-from config.json"
    )
  policies.check_network(config, found)
  found = policies.with_lora(config, found)
  sequence_attention.check(
    found.attention, head_size=found.head_size, dtype=found.compute_dtype
  )
  return found


def _state_parts(state: train_state.TrainState) -> dict[str, float]:
  """Returns the bytes of each part of the training state on a chip."""
  masters = memory.tree_bytes(low_precision.full_params(None, state.opt_state))
  parts = {
    "parameters": memory.tree_bytes(state.student_params),
    "teacher": memory.tree_bytes(state.teacher_params),
    "initial parameters": memory.tree_bytes(state.initial_params),
    "optimizer": memory.tree_bytes(state.opt_state) - masters,
  }
  if masters:
    parts[MASTERS] = masters
  return parts


class Planner:
  """Compiles the programs of a run for some hardware."""

  def __init__(
    self,
    config: Config,
    hardware: Hardware,
    network: models_config.DecoderConfig,
    progress: Progress,
  ):
    """Builds meshes and training state; compiles nothing yet.

    Args:
      config: The run.
      hardware: What it is planned for.
      network: Sizes of the network, see `load_network`.
      progress: Shows what is being done.

    Raises:
      ConfigError: The meshes do not fit hardware or network.
    """
    self.config = config
    self.hardware = hardware
    self.network = network
    self.progress = progress
    self.graphdef, self.shapes = decoder.make(network)
    self.sampling_graphdef, self.sampling_shapes = decoder.make(network.sampled)
    self.mesh = meshes.build_mesh(config, hardware.devices)
    meshes.check_attention(config, self.mesh)
    self.rollout_mesh = (
      meshes.build_rollout_mesh(config, hardware.devices) or self.mesh
    )
    self.run = build_workload(
      config, hardware, network, self.mesh, self.rollout_mesh
    )
    self.optimizer, _ = setup_step.build_optimizer(config, self.shapes)
    try:
      self.state = abstract_inputs.train_state(
        lambda params: setup_step.build_train_state(
          config, params, self.optimizer
        ),
        self.shapes,
        self.mesh,
        self.optimizer,
      )
    except ValueError as error:
      raise ConfigError(str(error)) from None
    self.parts = _state_parts(self.state)
    self._teacher, self._teacher_params = teacher_inputs(
      config, network.vocab_size, self.mesh
    )
    if self._teacher is not None:
      self.parts[TEACHER_MODEL] = memory.tree_bytes(self._teacher_params)

  def plan(self) -> Plan:
    """Compiles all phases."""
    is_sampled = self.config.objective.uses_rollouts
    sampling = self.sampling_phases() if is_sampled else ()
    return self.build_plan([*sampling, self.training_phase()])

  def build_plan(self, phases: Sequence[Phase]) -> Plan:
    """Returns a plan of the given phases."""
    return Plan(
      hardware=self.hardware,
      run=self.run,
      num_params=abstract_inputs.num_params(self.shapes),
      parts=self.parts,
      phases=phases,
    )

  def training_phase(self) -> Phase:
    """Compiles the training step, or its largest micro-batch by length."""
    # Of a policy the step reads only the graph definition.
    policy = Policy(self.network, self.graphdef, {}, cast(Any, None))
    inputs = training_program.Inputs(
      self.config,
      train_steps.build_train_step(
        self.config, policy, self.optimizer, self._teacher
      ),
      self.graphdef,
      self.state,
      self._teacher,
      self._teacher_params,
      self.run,
      self.mesh,
    )
    with jax.set_mesh(self.mesh):
      program = training_program.build(inputs)
      return self._phase(
        TRAINING,
        program.lower,
        {**self.parts, **program.by_hand},
        count=program.count,
      )

  def sampling_phases(self) -> list[Phase]:
    """Compiles prefill, growth of the KV cache, and decode steps.

    All slots are in use, and the cache is as long as the longest completion.
    """
    with jax.set_mesh(self.rollout_mesh):
      weights = abstract_inputs.weights(
        self.sampling_graphdef, self.sampling_shapes, self.rollout_mesh
      )
      *earlier, last = abstract_inputs.cache_lengths(
        engine.FIRST_CACHE_LENGTH, self.run.completion_length
      )
      # A rollout begins with the shortest cache.
      phases = [self._prefill_phase(weights, min([*earlier, last]))]
      if earlier:
        phases.append(self._growth_phase(weights, earlier[-1], last))
      return [*phases, self._decode_phase(weights, last)]

  def _prefill_phase(
    self, weights: cached_forward.Weights, cache_length: int
  ) -> Phase:
    start, prompts = self._start(cache_length)
    # Prefill does not read all weights of the last layer, but they are in
    # memory, so they must be counted.
    start = jax.jit(start, keep_unused=True)
    return self._phase(
      PREFILL,
      lambda: start.lower(weights, *prompts),
      {
        _WEIGHTS: memory.tree_bytes(weights),
        "prompts": memory.tree_bytes(prompts),
      },
      beside=self._beside(weights),
    )

  def _growth_phase(
    self, weights: cached_forward.Weights, old: int, new: int
  ) -> Phase:
    state = self._rollout_state(weights, old)
    width = state.slots.rows.shape[1]
    grow = functools.partial(sampler.resize, width=width, cache_length=new)
    grow = jax.jit(grow, keep_unused=True)
    return self._phase(
      CACHE_GROWTH,
      lambda: grow.lower(state),
      abstract_inputs.parts_of_state(state),
      # Growth does not read the weights, but they stay in memory meanwhile.
      beside=self._beside(weights) + memory.tree_bytes(weights),
    )

  def _decode_phase(
    self, weights: cached_forward.Weights, cache_length: int
  ) -> Phase:
    state, run = self._rollout_state(weights, cache_length), self.run
    advance = functools.partial(
      sampler.advance, graphdef=self.sampling_graphdef, eos_ids=_EOS_IDS
    )
    advance = jax.jit(advance, donate_argnums=1)
    # Every completion has the maximum length, and slots are reused in waves.
    waves = math.ceil(run.num_sequences / run.num_slots)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return self._phase(
      SAMPLING,
      lambda: advance.lower(weights, state, number, number),
      {_WEIGHTS: memory.tree_bytes(weights)}
      | abstract_inputs.parts_of_state(state),
      beside=self._beside(weights),
      # Data end this loop, but after so many steps it ends in any case.
      open_trips=sampler.BUFFER_STEPS,
      # The program covers one call of `advance`, and a rollout takes many.
      count=waves * run.completion_length / sampler.BUFFER_STEPS,
    )

  def _start(self, cache_length: int) -> tuple[Callable[..., Any], Any]:
    """Returns the function that starts a rollout, and its inputs.

    With several turns it is that of a later one, which needs the most memory:
    each row reads its whole conversation, which may be as long as a completion.

    Returns:
      The function, and its positional arguments after the weights.
    """
    run = self.run
    if self.config.tools or self.config.environment.max_turns > 1:
      run = dataclasses.replace(
        run,
        num_problems=self._num_rows_per_turn,
        group_size=1,
        prompt_length=run.prompt_length + run.completion_length,
        num_slots=min(run.num_slots, self._num_rows_per_turn),
      )
    start = functools.partial(
      prefill.prefill,
      graphdef=self.sampling_graphdef,
      sizes=sampler_state.SamplerSizes(
        num_slots=run.num_slots,
        cache_length=cache_length,
        max_completion_length=run.completion_length,
        cache_dtype=run.cache_dtype,
      ),
    )
    return start, abstract_inputs.prompts(
      self.rollout_mesh,
      num_problems=run.num_problems,
      group_size=run.group_size,
      prompt_length=run.prompt_length,
    )

  @property
  def _num_rows_per_turn(self) -> int:
    """Returns the rows that start a turn together, see `multi_turn`."""
    multiple = sharding.batch_size_multiple(self.rollout_mesh)
    return max(self.run.num_slots // multiple, 1) * multiple

  def _rollout_state(
    self, weights: cached_forward.Weights, cache_length: int
  ) -> sampler_state.SamplerState:
    start, prompts = self._start(cache_length)
    return abstract_inputs.rollout_state(
      self.rollout_mesh, start, weights, *prompts
    )

  def _phase(
    self,
    name: str,
    lower: Callable[[], Any],
    by_hand: Mapping[str, float],
    *,
    beside: float = 0.0,
    open_trips: int = 1,
    count: float = 1.0,
  ) -> Phase:
    """Compiles a program and counts its costs.

    Args:
      name: Name of the phase.
      lower: Lowers the program.
      by_hand, beside: See `memory.Memory`.
      open_trips: Trips of a loop whose end depends on data.
      count: Runs of the program in a training step.
    """
    with self.progress.stage(f"compiling: {name}"):
      lowered = lower()
      try:
        # A program that does not fit is a result of a plan, not an error.
        compiled = lowered.compile()
      except jax.errors.JaxRuntimeError as error:
        refused = memory.from_refusal(error, by_hand, beside)
        if refused is None:
          raise
        return Phase(name, refused, None, None)
    with self.progress.stage(f"counting: {name}"):
      once = costs.count_costs(compiled.as_text(), open_trips=open_trips)
    found, machine = once.times(count), self._machine()
    return Phase(
      name,
      memory.from_compiled(compiled, by_hand, beside),
      found,
      machine and machine.times(found),
    )

  def _machine(self) -> roofline.Machine | None:
    if self.hardware.chip is None:
      return None
    devices = list(self.mesh.devices.flat)
    return roofline.Machine(self.hardware.chip, devices, self.hardware.slice_)

  def _beside(self, weights: cached_forward.Weights) -> float:
    """Returns the bytes of the training state that sampling does not use.

    Weights that the sampler shares with the training state are counted once.
    """
    shared = 0.0
    if self.config.rollout.mesh is None:
      shared = memory.tree_bytes(
        [
          x
          for name, x in weights.items()
          if name != "layers" and x.dtype == self.shapes[name].dtype
        ]
      )
    return sum(self.parts.values()) - shared
