"""Runs that train adapters alone."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from distil_jax import config as configs
from distil_jax.cli import main
from distil_jax.generation.policy import load_policy
from distil_jax.generation.policy_directory import resolve_directory
from distil_jax.models import decoder, lora
from distil_jax.models.decoder_config import LoRA
from distil_jax.training import checkpoints, trainer
from distil_jax.training.setup import model_directory, policies, steps
from tests import networks
from tests.paths import ROOT

pytestmark = pytest.mark.usefixtures("one_width")
SETTINGS = {
  "data": {
    "train": "generated",
    "evaluation": "generated",
    "num_train": 64,
    "num_evaluation": 8,
  },
  "environment": {"kind": "calculator"},
  "rollout": {
    "num_problems": 8,
    "group_size": 2,
    "max_prompt_length": 24,
    "max_completion_length": 8,
  },
  "teacher": {"parameters": "ema", "ema_rate": 0.5, "max_prompt_length": 120},
  "optimizer": {"learning_rate": 1e-2},
  # As many samples as in training: the same programs.
  "evaluation": {"num_samples": 2, "pass_at": [1], "num_problems": 8},
  "checkpoint": {"every": 1},
  "logging": {"rollouts_every": 0, "tensorboard": False},
}


def settings(folder: pathlib.Path, num_steps: int) -> configs.Config:
  return configs.Config.model_validate(
    {
      **SETTINGS,
      "model": {
        "directory": str(folder.parent / "model"),
        "lora": {"rank": 4, "targets": ["q_proj", "down_proj"]},
      },
      "train": {"num_steps": num_steps, "run_directory": str(folder)},
    }
  )


def metrics(folder: pathlib.Path):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(x).items()
      if not k.startswith(("time/", "memory/"))
    }
    for x in lines
  ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run of three steps, and one of two steps that went on."""
  folder = tmp_path_factory.mktemp("lora")
  shutil.copytree(resolve_directory("embedded:calculator"), folder / "model")
  whole = trainer.Trainer(settings(folder / "whole", 3))
  whole.train()
  trainer.Trainer(settings(folder / "parts", 2)).train()
  parts = trainer.Trainer(settings(folder / "parts", 3))
  parts.train()
  return folder, whole, parts


def test_only_the_adapters_are_trained(trained):
  _, whole, _ = trained
  state = whole.state
  base = load_policy("embedded:calculator").params
  jax.tree.map(np.testing.assert_array_equal, state.base_params, base)
  names = {"query_lora_a", "query_lora_b", "down_lora_a", "down_lora_b"}
  for tree in (state.params, state.teacher_params):
    assert tree.keys() == {"layers"}
    assert tree["layers"].keys() == names
  assert np.abs(state.params["layers"]["query_lora_b"]).max() > 1e-3
  # A moving average of the adapters, on the way from B = 0.
  assert 0 < networks.distance(state.teacher_params, state.params) < 0.1


def test_it_goes_on_bit_for_bit(trained):
  folder, whole, parts = trained
  assert metrics(folder / "whole") == metrics(folder / "parts")
  jax.tree.map(
    np.testing.assert_array_equal,
    whole.state.student_params,
    parts.state.student_params,
  )


def test_a_checkpoint_holds_no_weights_of_the_base(trained):
  # The size of its files depends on when orbax writes what.
  folder, whole, _ = trained
  path = folder / "whole/checkpoints/3/state/_METADATA"
  keys = [
    {part["key"] for part in entry["key_metadata"]}
    for entry in json.loads(path.read_text())["tree_metadata"].values()
  ]
  for tree in ("params", "teacher_params"):
    held = {name for names in keys if tree in names for name in names}
    assert held == {tree, "layers", *whole.state.params["layers"]}
  assert not any("base_params" in names for names in keys)


def test_the_exported_model_computes_what_was_trained(trained, tmp_path):
  folder, whole, _ = trained
  again = trainer.Trainer(settings(folder / "whole", 3))
  step, params = steps.trained_params(again.config, again.policy.params)
  assert step == 3
  dataclasses.replace(again.policy, params=params).save(tmp_path)
  exported = load_policy(tmp_path)
  merged = lora.merge(whole.state.student_params, again.policy.config.lora)
  jax.tree.map(np.testing.assert_array_equal, exported.params, merged)


def test_a_person_asks_the_trained_adapters(trained, tmp_path, capsys):
  folder, whole, _ = trained
  path = tmp_path / "ask.yaml"
  path.write_text(json.dumps(whole.config.model_dump(mode="json")))
  options = ["--max-tokens", "2", "--temperature", "0", "--json"]
  ask = ["generate", str(path), "12 + 5 =", *options]
  assert main.main([*ask, "--step", "2"]) == 0
  out, err = capsys.readouterr()
  assert f"step 2 of {folder / 'whole'}" in err
  assert json.loads(out)["num_tokens"] > 0
  assert main.main([*ask, "--step", "1"]) == 1
  err = capsys.readouterr().err
  assert "has no checkpoint of step 1; there are: 2, 3" in err


@pytest.fixture(scope="module")
def stored(trained):
  """The adapter of the whole run, as `export` writes it, and the command."""
  folder, whole, _ = trained
  path, target = folder / "export.yaml", folder / "stored"
  path.write_text(json.dumps(whole.config.model_dump(mode="json")))
  command = ["export", str(path), str(target), "--adapter"]
  assert main.main(command) == 0
  return target, command


def begun_from(adapter, folder, **changed):
  """A run that begins from a stored adapter."""
  config = settings(folder / "begun", 1)
  changed = {"adapter": str(adapter), **changed}
  section = config.model.lora.model_copy(update=changed)
  model = config.model.model_copy(update={"lora": section})
  return config.model_copy(update={"model": model})


def test_a_run_begins_from_a_stored_adapter(trained, stored):
  """The student, and with it the teacher that is frozen at the first step."""
  folder, whole, _ = trained
  target, _ = stored
  files = {path.name for path in target.iterdir()}
  assert files == {"adapter_config.json", "adapter_model.safetensors"}
  again = trainer.Trainer(begun_from(target, folder))
  jax.tree.map(
    np.testing.assert_array_equal,
    again.policy.params,
    whole.state.student_params,
  )
  first = steps.build_train_state(
    again.config, again.policy.params, again.optimizer
  )
  jax.tree.map(
    np.testing.assert_array_equal, first.teacher_params, whole.state.params
  )


def test_the_adapter_of_the_teacher_is_stored(trained, stored, capsys):
  folder, whole, _ = trained
  _, command = stored
  command = [*command[:2], str(folder / "average"), "--adapter", "--teacher"]
  assert main.main(command) == 0
  assert "teacher of step 3 of" in capsys.readouterr().out
  average = trainer.Trainer(begun_from(folder / "average", folder))
  found = lora.split(average.policy.params)[1]
  jax.tree.map(np.testing.assert_array_equal, found, whole.state.teacher_params)


def test_other_stored_adapters_are_refused(trained, stored, tmp_path, capsys):
  folder, _, _ = trained
  target, command = stored
  config = begun_from(target, folder, rank=8, targets=("q_proj",))
  with pytest.raises(
    configs.ConfigError,
    match=r"has rank=8, alpha=16, targets=\[q_proj\], but .* is an adapter "
    r"with rank=4, alpha=8, targets=\[q_proj, down_proj\]; set these",
  ):
    trainer.Trainer(config)
  config = begun_from(tmp_path / "absent", folder)
  with pytest.raises(configs.ConfigError, match="there is no folder model"):
    trainer.Trainer(config)
  # PEFT notes the name of the base alone.
  shutil.copytree(target, tmp_path / "named")
  path = tmp_path / "named/adapter_model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(tensors, path)
  other = str(ROOT / "tests/golden/families/llama_biases")
  path = tmp_path / "named/adapter_config.json"
  noted = json.loads(path.read_text())
  path.write_text(json.dumps(noted | {"base_model_name_or_path": other}))
  with pytest.raises(
    configs.ConfigError, match=rf"is one of {other}, not of model\.directory="
  ):
    trainer.Trainer(begun_from(tmp_path / "named", folder))
  config = begun_from(target, folder)
  (tmp_path / "begun.yaml").write_text(
    json.dumps(config.model_dump(mode="json"))
  )
  command = ["export", str(tmp_path / "begun.yaml"), str(target), "--adapter"]
  assert main.main(command) == 1
  assert "holds the adapter that this run began from" in capsys.readouterr().err


def test_a_run_without_adapters_stores_none(trained, tmp_path, capsys):
  _, whole, _ = trained
  path = tmp_path / "plain.yaml"
  config = whole.config.model_dump(mode="json")
  config["model"]["lora"] = None
  config["train"]["run_directory"] = str(tmp_path / "plain")
  path.write_text(json.dumps(config))
  command = ["export", str(path), str(tmp_path / "stored"), "--adapter"]
  assert main.main(command) == 1
  assert "has no adapter; leave out --adapter" in capsys.readouterr().err


def test_other_adapters_do_not_go_on(trained):
  folder, _, _ = trained
  other = settings(folder / "whole", 4)
  lora_section = other.model.lora.model_copy(update={"rank": 8})
  model = other.model.model_copy(update={"lora": lora_section})
  with pytest.raises(configs.ConfigError, match=r"model\.lora\.rank: 4 in the"):
    trainer.Trainer(other.model_copy(update={"model": model})).train()


def test_adapters_are_not_taken_for_all_weights(trained):
  folder, _, _ = trained
  config = settings(folder / "whole", 3)
  model = config.model.model_copy(update={"lora": None})
  plain = trainer.Trainer(config.model_copy(update={"model": model}))
  with pytest.raises(checkpoints.CheckpointError, match=r"is model\.lora that"):
    steps.trained_params(plain.config, plain.policy.params)


def test_adapters_do_not_join_other_weights(trained):
  """Not to go on, and not to be evaluated or exported."""
  folder, _, _ = trained
  config = settings(folder / "whole", 4)
  policy = load_policy(folder / "model")
  other = {**policy.params, "norm": policy.params["norm"] + 1}
  dataclasses.replace(policy, params=other).save(folder / "model")
  model_directory._digest_of.cache_clear()  # as in another process
  try:
    with pytest.raises(configs.ConfigError, match="config or weights have ch"):
      trainer.Trainer(config).train()
    changed = trainer.Trainer(config).policy.params
    with pytest.raises(configs.ConfigError, match=r"set model\.revision to a"):
      steps.trained_params(config, changed)
  finally:
    shutil.rmtree(folder / "model")
    shutil.copytree(resolve_directory("embedded:calculator"), folder / "model")
    model_directory._digest_of.cache_clear()


def test_experts_have_no_adapters():
  config = settings(pathlib.Path("unused"), 1)
  network = networks.config_of(num_experts=4, num_experts_per_token=2)
  with pytest.raises(configs.ConfigError, match=r"use \[q_proj, k_proj, v_"):
    policies.with_lora(config, network)


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"targets": []}, "must name at least one matrix"),
    ({"targets": ["q_proj", "q_proj"]}, "none twice"),
    ({"targets": ["query"]}, "q_proj"),
    ({"rank": 0}, "rank"),
    ({"dropout": 0.1}, "dropout=0.1 is not supported: .*weight_decay"),
    ({"dropout": -0.1}, "dropout"),
  ],
)
def test_wrong_settings_are_refused(section, message):
  with pytest.raises(ValueError, match=message):
    configs.Config.model_validate({"model": {"lora": section}})


def test_the_state_of_the_optimizer_is_small():
  """At rank 64 of a model of 8B parameters: under 2 % of all weights'."""
  network = networks.config_of(
    vocab_size=151936,
    width=4096,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    mlp_size=12288,
  )

  def num_bytes(network, section):
    config = configs.Config.model_validate({"model": {"lora": section}})
    _, shapes = decoder.make(network)
    optimizer, _ = steps.build_optimizer(config, shapes)
    state = jax.eval_shape(
      lambda p: steps.build_train_state(config, p, optimizer), shapes
    )
    return sum(
      x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state)
    )

  names = tuple(lora.TARGETS.values())
  adapted = dataclasses.replace(network, lora=LoRA(64, 128.0, names))
  assert num_bytes(adapted, {"rank": 64}) < 0.025 * num_bytes(network, None)
