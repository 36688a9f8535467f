import json

import pytest

from distil_jax.generation.policy import resolve_directory
from distil_jax.models import decoder_config as models_config


@pytest.fixture
def settings():
  path = resolve_directory("embedded:calculator") / "config.json"
  return json.loads(path.read_text())


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("hidden_size", "96"),
    ("hidden_size", 96.0),
    ("hidden_size", None),
    ("num_hidden_layers", -1),
    ("num_attention_heads", 0),
    ("head_dim", True),
    ("rms_norm_eps", "1e-6"),
    ("rope_theta", 0),
    ("rope_scaling", "yarn"),
    ("rope_parameters", 5),
  ],
)
def test_wrong_values_are_named(settings, key, value):
  with pytest.raises(ValueError, match=f"{key} must be .*{value!r}"):
    models_config.from_hugging_face({**settings, key: value})


def test_optional_values_may_be_null(settings):
  plain = {**settings, "head_dim": None, "num_key_value_heads": None}
  config = models_config.from_hugging_face(plain)
  assert (config.head_size, config.num_kv_heads) == (24, 4)
