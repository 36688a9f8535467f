"""Models of the Hub, from a server on this machine that answers as it does."""

import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from distil_jax import config as configs
from distil_jax.data.problems import Problems
from distil_jax.generation import policy_directory
from distil_jax.generation.policy import load_policy
from distil_jax.models import hf_hub, sharding
from distil_jax.planning import planner
from distil_jax.training.setup import environments, policies
from tests import hub_server
from tests.paths import ROOT

NAME = "acme/calculator"
FILES = [
  "chat_template.jinja",
  "config.json",
  "generation_config.json",
  "model.safetensors",
  "tokenizer.json",
  "tokenizer_config.json",
]


@pytest.fixture
def cache(tmp_path):
  return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path, cache, monkeypatch):
  """A server with one model and more files than are needed."""
  folder = tmp_path / "origin"
  shutil.copytree(
    policy_directory.resolve_directory("embedded:calculator"), folder
  )
  for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors"):
    (folder / name).write_text("not needed")
  for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
  monkeypatch.setattr(policy_directory, "_found", {})
  with hub_server.served({NAME: folder}) as served:
    point_at(served.url, monkeypatch)
    yield served


def point_at(url, monkeypatch):
  template = url + "/{repo_id}/resolve/{revision}/{filename}"
  monkeypatch.setattr(constants, "ENDPOINT", url)
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(name=NAME, *arguments, **settings):
  """The one line that explains why a model cannot be had."""
  with pytest.raises(hf_hub.HubError) as caught:
    hf_hub.fetch(name, *arguments, **settings)
  text = str(caught.value)
  assert "\n" not in text
  return text


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Qwen/Qwen3-8B", True),
    ("01-ai/Yi_1.5", True),
    ("models/Qwen3-8B", True),  # if there is no such folder
    ("gpt2", False),
    ("a/b/c", False),
    ("./a/b", False),
    ("../b", False),
    ("/a/b", False),
    ("a/", False),
    ("a/b\n", False),
    ("ä/b", False),
    ("embedded:calculator", False),
  ],
)
def test_names(text, expected):
  assert hf_hub.is_name(text) is expected


def test_what_is_needed_is_downloaded_once(hub):
  path = hf_hub.fetch(NAME)
  assert sorted(p.name for p in path.iterdir()) == FILES
  assert hub.downloads() == FILES
  assert hf_hub.fetch(NAME, "v1") == path  # the same commit
  assert hf_hub.fetch(NAME, hub_server.COMMIT) == path
  assert hub.downloads() == FILES


def test_a_model_of_the_hub_is_loaded(hub):
  expected = load_policy("embedded:calculator")
  found = load_policy(NAME, revision="v1")
  assert found.config == expected.config
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  text = "Compute 4 + 5."
  assert found.tokenizer.encode(text) == expected.tokenizer.encode(text)


def test_a_plan_downloads_the_config_alone(hub):
  config = run_config()
  network = planner.load_network(config, None)
  assert network == load_policy("embedded:calculator").config
  assert hub.downloads() == ["config.json"]
  # The rest is still missing, and is not taken to be there.
  text = refused(only_cached=True)
  assert "no complete copy" in text


def run_config(**model):
  return configs.Config.model_validate(
    {
      "model": {"directory": NAME, **model},
      "data": {"train": "generated", "evaluation": "generated"},
      "environment": {"kind": "calculator"},
      "rollout": {"max_prompt_length": 32, "max_completion_length": 48},
      "teacher": {"max_prompt_length": 128},
    }
  )


def test_a_run_loads_a_model_of_the_hub(hub):
  config = run_config(revision="v1")
  mesh = sharding.make_mesh(1, 8)
  found = policies.build_policy(
    config,
    environments.build_environment(config),
    Problems(train={}, evaluation={}, num_skipped=0),
    mesh,
  )
  expected = load_policy("embedded:calculator")
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  assert not found.params["layers"]["gate"].is_fully_replicated
  assert len([path for _, path in hub.requests if "/revision/" in path]) == 1


def test_gated_model(hub, monkeypatch):
  hub.gated.add(NAME)
  text = refused()
  for part in (f"accept its terms at {hub.url}/{NAME}", "HF_TOKEN", "hf auth"):
    assert part in text
  monkeypatch.setenv("HF_TOKEN", "hf_wrong")
  assert "gated" in refused()
  monkeypatch.setenv("HF_TOKEN", hub.token)
  assert (hf_hub.fetch(NAME) / "model.safetensors").is_file()


def test_unknown_model(hub):
  text = refused("acme/calculater")
  for part in ("no folder acme/calculater", hub.url, "correct model.directory"):
    assert part in text
  assert "no folder acme/a..b here" in refused("acme/a..b")


def test_unknown_revision(hub):
  text = refused(NAME, "v9")
  assert "model.revision=v9" in text
  assert "no such branch, tag or commit" in text


def test_model_without_config(hub):
  (hub.models[NAME] / "config.json").unlink()
  assert "has no config.json" in refused()


def test_hub_that_cannot_be_reached(hub, monkeypatch):
  path = hf_hub.fetch(NAME)
  with socket.socket() as closed:
    closed.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{closed.getsockname()[1]}"
  point_at(url, monkeypatch)
  assert hf_hub.fetch(NAME) == path  # it is in the cache
  text = refused("acme/other")
  for part in (
    f"the Hub at {url} cannot be reached",
    "HF_ENDPOINT",
    "hf download acme/other --local-dir FOLDER",
  ):
    assert part in text


def test_offline(hub, cache, monkeypatch):
  path = hf_hub.fetch(NAME)
  num_requests = len(hub.requests)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert hf_hub.fetch(NAME) == path
  for text in (refused("acme/other"), refused(NAME, "v1")):
    assert "HF_HUB_OFFLINE is set" in text
    assert str(cache) in text
  assert "of revision v1" in text
  assert len(hub.requests) == num_requests


def test_half_a_file_is_no_model(hub):
  hub.broken.add("model.safetensors")
  text = refused()
  for part in ("download of acme/calculator", "run the same command again"):
    assert part in text
  hub.broken.clear()
  before = hub.downloads()
  path = hf_hub.fetch(NAME)
  origin = hub.models[NAME] / "model.safetensors"
  assert (path / "model.safetensors").read_bytes() == origin.read_bytes()
  # What was complete is kept.
  assert len(hub.downloads()) - len(before) <= len(FILES) - 1
  assert hub.downloads().count("config.json") == 1


def test_settings_of_the_environment():
  """`HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE`, as a user sets them."""
  program = (
    "import runpy, sys\n"
    "fetch = runpy.run_path('distil_jax/models/hf_hub.py')['fetch']\n"
    "print(fetch('acme/calculator'))"
  )
  with hub_server.served({}) as served:
    environment = {
      "HF_ENDPOINT": served.url,
      "HF_HUB_OFFLINE": "0",
      "HF_HOME": "/nowhere",
      "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
      [sys.executable, "-c", program],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )
  assert f"no model of this name at {served.url}/{NAME}" in done.stderr


def test_folder_here_wins(hub, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(hub.models[NAME], tmp_path / NAME)
  assert str(policy_directory.resolve_directory(NAME)) == NAME
  assert not hub.requests
  with pytest.raises(ValueError, match=r"revision=v1 .*there is a folder"):
    policy_directory.resolve_directory(NAME, "v1")


@pytest.mark.parametrize("directory", ["embedded:calculator", "/models/a"])
def test_revision_of_what_is_not_on_the_hub(directory):
  with pytest.raises(ValueError, match=f"v1 .*={directory} is not OWNER/NAME"):
    policy_directory.resolve_directory(directory, "v1")


def test_a_model_that_is_made_is_not_looked_for(hub):
  config = run_config(create={})
  assert str(policies.model_directory(config)) == NAME
  assert not hub.requests
  with pytest.raises(configs.ConfigError, match="revision=v1"):
    configs.load("configs/science/smoke.yaml", ["model.revision=v1"])
