"""What config.json may say, and what it does when it says otherwise."""

import json
import shutil

import pytest

from tests.weights import helpers
from unifluid_jax.weights import (
  clip,
  gemma,
  kl_vae,
  paligemma,
  readers,
  settings,
  siglip,
)
from unifluid_jax.weights.rows import WeightsError


def beside(tmp_path, content):
  text = content if isinstance(content, str) else json.dumps(content)
  (tmp_path / "config.json").write_text(text)
  return str(tmp_path / "model.safetensors")


def test_settings_of_a_file_a_directory_and_none(tmp_path):
  assert settings.config_beside(str(tmp_path)) == {}
  path = beside(tmp_path, {"a": 1, "part": {"a": 2}, "empty": {}})
  assert settings.number_beside(path, "a") == 1
  assert settings.number_beside(str(tmp_path), "a", "part") == 2
  assert settings.number_beside(path, "a", "empty") == 1
  assert settings.number_beside(path, "b") == 0


@pytest.mark.parametrize("content", ["{", "[]", "3"])
def test_settings_that_are_none(tmp_path, content):
  path = beside(tmp_path, content)
  with pytest.raises(WeightsError, match=r"config.json: expected the model's"):
    settings.config_beside(path)


@pytest.mark.parametrize("value", ["five", 2.5, 0, -1, True, [3]])
def test_a_number_that_is_none(tmp_path, value):
  path = beside(tmp_path, {"heads": value})
  message = r"config.json: heads: expected a whole number above 0, found"
  with pytest.raises(WeightsError, match=message):
    settings.number_beside(path, "heads")


@pytest.mark.parametrize(
  "name, recipe, part",
  [
    ("gemma2", gemma.recipe, ""),
    ("siglip", siglip.recipe, ""),
    ("tiny_clip", clip.recipe, ""),
    ("paligemma", paligemma.recipe, "text_config"),
    ("paligemma", paligemma.recipe, "vision_config"),
  ],
)
def test_missing_last_layers_are_told(tmp_path, name, recipe, part):
  shutil.copytree(helpers.FIXTURES / name, tmp_path / name)
  file = tmp_path / name / "config.json"
  content = json.loads(file.read_text())
  below = content[part] if part else content
  found = below["num_hidden_layers"]
  recipe(readers.open_source(str(tmp_path / name)))
  below["num_hidden_layers"] = found + 1
  file.write_text(json.dumps(content))
  message = f"expected {found + 1} layers, as .*config.json says, found {found}"
  with pytest.raises(WeightsError, match=message):
    recipe(readers.open_source(str(tmp_path / name)))


def test_groups_of_an_autoencoder_are_a_number(tmp_path):
  shutil.copytree(helpers.FIXTURES / "tiny_vae", tmp_path / "vae")
  file = tmp_path / "vae" / "config.json"
  content = json.loads(file.read_text()) | {"norm_num_groups": "2"}
  file.write_text(json.dumps(content))
  with pytest.raises(WeightsError, match="norm_num_groups: expected a whole"):
    kl_vae.recipe(readers.open_source(str(tmp_path / "vae")))
