"""What a run would take on hardware that need not be here.

Sampling and the training step are compiled ahead of time, from a config and
the sizes of its network alone: no weights, no tokenizer, no data.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from distil_jax.config import Config, ConfigError
from distil_jax.generation import prefill, sampler, sampler_state
from distil_jax.generation.policy import Policy, resolve_directory
from distil_jax.models import decoder, decoding, sharding
from distil_jax.models import decoder_config as models_config
from distil_jax.models import hf_weights as weights_io
from distil_jax.models.kernels import sequence_attention
from distil_jax.planning import abstract_inputs, costs, memory, roofline
from distil_jax.planning.results import (
  GROWING,
  READING,
  SAMPLING,
  TRAINING,
  Hardware,
  Phase,
  Plan,
  Workload,
)
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import meshes, policies
from distil_jax.training.setup import steps as setup_step

_WEIGHTS = "weights for sampling"
# Which tokens end a completion changes nothing that is planned.
_EOS_IDS = (0,)


def network(
  config: Config, sizes_from: str | None
) -> models_config.DecoderConfig:
  """Sizes of the run's network.

  Args:
    config: of the run.
    sizes_from: a `config.json` in place of the model's; None: the model's, or
      what `model.create` says where there is none yet.

  Raises:
    ConfigError: there is no such file, or the run does not suit the network.
  """
  model = config.model
  computing: dict[str, Any] = {
    "param_dtype": model.param_dtype,
    "compute_dtype": model.compute_dtype,
    "remat": model.remat,
    "attention": model.attention,
  }
  path = (
    pathlib.Path(sizes_from)
    if sizes_from
    else resolve_directory(model.directory) / weights_io.CONFIG
  )
  if path.is_file():
    try:
      sizes = weights_io.read_json(path)
    except weights_io.WeightsError as error:
      raise ConfigError(str(error)) from error
    found = models_config.from_hugging_face(sizes, **computing)
  elif model.create is not None and not sizes_from:
    sizes = model.create.model_dump(exclude={"seed"})
    found = models_config.DecoderConfig(**sizes, **computing)
  else:
    raise ConfigError(
      f"there is no {path}; a plan needs the sizes of the network: set "
      "model.directory to a folder with config.json, or give "
      "--num-params-from config.json"
    )
  policies.check_network(config, found)
  sequence_attention.check(
    found.attention, head_size=found.head_size, dtype=found.compute_dtype
  )
  return found


class Planner:
  """A run's programs for some hardware."""

  def __init__(
    self,
    config: Config,
    hardware: Hardware,
    network: models_config.DecoderConfig,
    progress: Progress,
  ):
    """Nothing is compiled yet.

    Args:
      config: the run.
      hardware: what it is planned for.
      network: its sizes, see `network`.
      progress: told what is being done.

    Raises:
      ConfigError: the meshes do not fit hardware or network.
    """
    self.config = config
    self.hardware = hardware
    self.network = network
    self.progress = progress
    self.graphdef, self.shapes = decoder.make(network)
    self.mesh = meshes.build_mesh(config, hardware.devices)
    meshes.check_attention(config, self.mesh)
    self.rollout_mesh = (
      meshes.build_rollout_mesh(config, hardware.devices) or self.mesh
    )
    self.run = described(
      config, hardware, network, self.mesh, self.rollout_mesh
    )
    self.optimizer, _ = setup_step.build_optimizer(config)
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
    self.parts = {
      "parameters": memory.of_tree(self.state.params),
      "teacher": memory.of_tree(self.state.teacher_params),
      "initial parameters": memory.of_tree(self.state.initial_params),
      "optimizer": memory.of_tree(self.state.opt_state),
    }

  def plan(self) -> Plan:
    """All phases, compiled one after the other."""
    is_sampled = self.config.objective.uses_rollouts
    phases = [*(self.sampling() if is_sampled else ()), self.training()]
    return self.outcome(phases)

  def outcome(self, phases: Sequence[Phase]) -> Plan:
    """These phases as a plan."""
    return Plan(
      hardware=self.hardware,
      run=self.run,
      num_params=abstract_inputs.num_params(self.shapes),
      parts=self.parts,
      phases=phases,
    )

  def training(self) -> Phase:
    """Loss, gradients, optimiser, teacher: all of it is one program."""
    policy = Policy(self.network, self.graphdef, {}, cast(Any, None))
    step = setup_step.build_train_step(self.config, policy, self.optimizer)
    places = jax.tree.map(lambda x: x.sharding, self.state)
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    with jax.set_mesh(self.mesh):
      batch = abstract_inputs.batch(
        self.mesh,
        num_sequences=self.run.num_sequences,
        prompt_length=self.run.prompt_length,
        teacher_prompt_length=self.run.teacher_prompt_length,
        completion_length=self.run.completion_length,
        has_tools=self.config.tools is not None,
      )
      return self._phase(
        TRAINING,
        lambda: step.lower(self.state, batch),
        {**self.parts, "batch": memory.of_tree(batch)},
      )

  def sampling(self) -> list[Phase]:
    """Reading prompts, making room, and choosing tokens.

    With all slots at work, and rings as long as a completion may be.
    """
    with jax.set_mesh(self.rollout_mesh):
      weights = abstract_inputs.weights(
        self.graphdef, self.shapes, self.rollout_mesh
      )
      *earlier, last = abstract_inputs.rings(self.run.completion_length)
      phases = [self._reading(weights, min([*earlier, last]))]
      if earlier:
        phases.append(self._growing(weights, earlier[-1], last))
      return [*phases, self._choosing(weights, last)]

  def _reading(self, weights: decoding.Weights, cache_length: int) -> Phase:
    start, prompts = self._start(cache_length)
    # What it does not read, of the last layer, is there all the same.
    start = jax.jit(start, keep_unused=True)
    return self._phase(
      READING,
      lambda: start.lower(weights, *prompts),
      {_WEIGHTS: memory.of_tree(weights), "prompts": memory.of_tree(prompts)},
      beside=self._beside(weights),
    )

  def _growing(self, weights: decoding.Weights, old: int, new: int) -> Phase:
    state = self._under_way(weights, old)
    width = state.slots.rows.shape[1]
    grow = functools.partial(sampler.resize, width=width, cache_length=new)
    grow = jax.jit(grow, keep_unused=True)
    return self._phase(
      GROWING,
      lambda: grow.lower(state),
      abstract_inputs.parts_of(state),
      beside=self._beside(weights) + memory.of_tree(weights),
    )

  def _choosing(self, weights: decoding.Weights, cache_length: int) -> Phase:
    state, run = self._under_way(weights, cache_length), self.run
    advance = functools.partial(
      sampler.advance, graphdef=self.graphdef, eos_ids=_EOS_IDS
    )
    advance = jax.jit(advance, donate_argnums=1)
    # Every completion as long as it may be, slots taking turns.
    waves = math.ceil(run.num_sequences / run.num_slots)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return self._phase(
      SAMPLING,
      lambda: advance.lower(weights, state, number, number),
      {_WEIGHTS: memory.of_tree(weights)} | abstract_inputs.parts_of(state),
      beside=self._beside(weights),
      open_trips=sampler.BUFFER_STEPS,
      count=waves * run.completion_length / sampler.BUFFER_STEPS,
    )

  def _start(self, cache_length: int) -> tuple[Callable[..., Any], Any]:
    """The function that begins a rollout, and what it takes after weights.

    With a tool that of a later turn, which takes most: each row reads all that
    was said to it, which may be a whole completion.
    """
    run = self.run
    if self.config.tools is not None:
      run = dataclasses.replace(
        run,
        num_problems=self._num_at_once,
        group_size=1,
        prompt_length=run.prompt_length + run.completion_length,
        num_slots=min(run.num_slots, self._num_at_once),
      )
    start = functools.partial(
      prefill.prefill,
      graphdef=self.graphdef,
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
  def _num_at_once(self) -> int:
    """Rows that read what was said to them, see `multi_turn.play`."""
    multiple = sharding.batch_size_multiple(self.rollout_mesh)
    return max(self.run.num_slots // multiple, 1) * multiple

  def _under_way(
    self, weights: decoding.Weights, cache_length: int
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
    """Compiles a program, and counts.

    Args:
      name: of the phase.
      lower: makes the program.
      by_hand, beside: see `memory.Memory`.
      open_trips: how often a loop runs that data end.
      count: how often the program runs in a training step.
    """
    with self.progress.stage(f"compiling: {name}"):
      lowered = lower()
      try:
        compiled = lowered.compile()
      except jax.errors.JaxRuntimeError as error:
        refused = memory.of_refusal(error, by_hand, beside)
        if refused is None:
          raise
        return Phase(name, refused, None, None)
    with self.progress.stage(f"counting: {name}"):
      once = costs.of_text(compiled.as_text(), open_trips=open_trips)
    found, machine = once.times(count), self._machine()
    return Phase(
      name,
      memory.of_program(compiled, by_hand, beside),
      found,
      machine and machine.times(found),
    )

  def _machine(self) -> roofline.Machine | None:
    if self.hardware.chip is None:
      return None
    devices = list(self.mesh.devices.flat)
    return roofline.Machine(self.hardware.chip, devices, self.hardware.slice_)

  def _beside(self, weights: decoding.Weights) -> float:
    """What stays while sampling: the state, but for what is sampled from."""
    shared = 0.0
    if self.config.rollout.mesh is None:
      shared = memory.of_tree(
        [
          x
          for name, x in weights.items()
          if name != "layers" and x.dtype == self.shapes[name].dtype
        ]
      )
    return sum(self.parts.values()) - shared


def described(
  config: Config,
  hardware: Hardware,
  network: models_config.DecoderConfig,
  mesh: jax.sharding.Mesh | None = None,
  rollout_mesh: jax.sharding.Mesh | None = None,
) -> Workload:
  """What a config says, in numbers."""
  settings, sizes, model = config.rollout, config.optimizer, config.model
  rows = config.num_sequences
  is_cpu = hardware.devices[0].platform == "cpu"
  return Workload(
    num_problems=settings.num_problems,
    group_size=settings.group_size,
    prompt_length=settings.max_prompt_length,
    completion_length=settings.max_completion_length,
    teacher_prompt_length=config.teacher.max_prompt_length
    if config.objective.needs_teacher
    else 0,
    micro_batch_size=sizes.micro_batch_size or sizes.mini_batch_size or rows,
    num_slots=min(settings.num_slots or rows, rows),
    cache_dtype=settings.cache_dtype
    or (model.compute_dtype if is_cpu else "bfloat16"),
    chunk_size=config.objective.chunk_size,
    num_kv_heads=network.num_kv_heads,
    remat=model.remat,
    param_dtype=model.param_dtype,
    compute_dtype=model.compute_dtype,
    mesh=dict(mesh.shape) if mesh else {},
    rollout_mesh=dict(rollout_mesh.shape) if rollout_mesh else {},
  )
