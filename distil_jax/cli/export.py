"""The `export` command."""

import argparse
import pathlib

from distil_jax import config as configs
from distil_jax.cli.options import add_run_command, add_step


def add_parser(commands) -> None:
  """Adds the command to the parser."""
  command = add_run_command(
    commands,
    "export",
    "write a checkpoint as a Hugging Face folder",
    run,
    example="configs/calculator/quickstart.yaml exported --dtype bfloat16",
    directory="the folder to write",
  )
  add_step(command)
  command.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="type of the weights (default: that in which they are trained)",
  )
  command.add_argument(
    "--teacher",
    action="store_true",
    help="write the teacher's weights, such as their moving average, instead "
    "of the student's",
  )
  command.add_argument(
    "--adapter",
    action="store_true",
    help="write the adapter of a run with model.lora as PEFT does, instead of "
    "merged weights",
  )


def run(arguments: argparse.Namespace) -> int:
  """Writes the policy of a checkpoint in the Hugging Face format."""
  config = configs.load(arguments.config, arguments.overrides)
  import dataclasses

  import jax

  from distil_jax.training import run_checks, trainer
  from distil_jax.training.setup import steps, stored_adapters
  from distil_jax.training.setup.model_directory import model_directory

  # A setting in the place of the folder would become its name.
  if "=" in arguments.directory:
    raise configs.ConfigError(
      f"DIRECTORY comes before the settings, got {arguments.directory!r}; "
      "put the settings last"
    )
  command = f"export to {arguments.directory}"
  command += f" {arguments.dtype} {arguments.teacher} {arguments.adapter}"
  command += f" {arguments.step}"
  run_checks.check_same_command(command, config)
  # The run still reads its base model, for a frozen teacher as an example.
  target = pathlib.Path(arguments.directory).resolve()
  if target == model_directory(config).resolve():
    raise configs.ConfigError(
      f"{arguments.directory} holds the base model of this run, which it still "
      "needs; export to another folder"
    )
  begun_from = config.model.lora and config.model.lora.adapter
  if begun_from and target == pathlib.Path(begun_from).resolve():
    raise configs.ConfigError(
      f"{arguments.directory} holds the adapter that this run began from; "
      "export to another folder"
    )
  loaded = trainer.Trainer(config)
  with jax.set_mesh(loaded.mesh):
    step, params = (
      _teacher_params(config, loaded, arguments.step)
      if arguments.teacher
      else steps.trained_params(config, loaded.policy.params, arguments.step)
    )
    # Without adapters there is none to store, which is said below.
    if not step and (config.model.lora or not arguments.adapter):
      raise configs.ConfigError(
        f"no checkpoint in {config.run_directory.absolute()}: there is nothing "
        "to export yet; train first, or use the base model's folder as it is"
      )
    exported = dataclasses.replace(loaded.policy, params=params)
    if arguments.adapter:
      stored_adapters.save_adapter(
        config,
        exported.config,
        params,
        arguments.directory,
        dtype=arguments.dtype,
      )
    else:
      _copy_generation_config(config, arguments.directory)
      exported.save(arguments.directory, dtype=arguments.dtype)
  if jax.process_index() == 0:
    what = "teacher of step" if arguments.teacher else "step"
    print(f"{what} {step} of {config.run_directory} -> {arguments.directory}")
  return 0


def _teacher_params(config: configs.Config, loaded, step=None):
  """Returns step and teacher's parameters of a checkpoint.

  Raises:
    ConfigError: the teacher has no parameters of its own, or there is no
      checkpoint.
  """
  from distil_jax.models import lora
  from distil_jax.training import checkpoints
  from distil_jax.training.setup import steps
  from distil_jax.training.setup.model_directory import check_same_base

  template = steps.build_state_template(
    config, loaded.policy.params, loaded.optimizer, loaded.mesh
  ).teacher_params
  if template is None and config.teacher.model is not None:
    raise configs.ConfigError(
      f"teacher.model.directory={config.teacher.model.directory} is the "
      "teacher's folder, which no run changes; leave out --teacher to export "
      "the student"
    )
  if template is None and config.teacher.server is not None:
    raise configs.ConfigError(
      f"teacher.server.url={config.teacher.server.url} has the teacher's "
      "weights; leave out --teacher to export the student"
    )
  if template is None:
    raise configs.ConfigError(
      f"objective.kind={config.objective.kind} with teacher.parameters="
      f"{config.teacher.parameters} keeps no weights of a teacher; leave out "
      "--teacher to export the student"
    )
  directory = config.run_directory / "checkpoints"
  step, params = checkpoints.last_params(
    directory,
    template,
    name="teacher_params",
    step=step,
    check=lambda notes: check_same_base(
      config, notes.get(checkpoints.BASE), str(directory)
    ),
  )
  if step is not None:
    base, _ = steps.split_params(config, loaded.policy.params)
    return step, lora.join(base, params)
  raise configs.ConfigError(
    f"no checkpoint in {config.run_directory}: the teacher is still the base "
    "model; train first"
  )


def _copy_generation_config(config: configs.Config, directory: str) -> None:
  """Copies the settings with which others sample from the base model.

  The tokenizer adds the tokens that end a completion.
  """
  import jax

  from distil_jax.training.setup.model_directory import model_directory

  name = "generation_config.json"
  source = model_directory(config) / name
  target = pathlib.Path(directory, name)
  if jax.process_index() == 0 and source.is_file():
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
