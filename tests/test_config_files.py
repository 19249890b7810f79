"""Which file --config means, and what is said of it."""

import sys
from pathlib import Path

import pytest

from unifluid_jax.core import config_files


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize("name", ["shapes", "configs/shapes.py"])
def test_shipped_files_are_found_from_anywhere(elsewhere, name):
  assert config_files.find(name) == config_files.SHIPPED / "shapes.py"
  assert config_files.load(f"{name}:t2i_only").batch.i2t == 0


def test_a_file_that_is_there_comes_first(elsewhere):
  own = elsewhere / "configs" / "shapes.py"
  own.parent.mkdir()
  own.write_text("")
  assert config_files.find("configs/shapes.py").resolve() == own
  assert config_files.find("shapes") == config_files.SHIPPED / "shapes.py"


def test_ours_are_imported_whatever_is_called_configs(elsewhere, monkeypatch):
  """Where another package of the name was imported before."""
  for name in [n for n in sys.modules if n.split(".")[0] == "configs"]:
    monkeypatch.delitem(sys.modules, name)
  (elsewhere / "configs").mkdir()
  (elsewhere / "configs" / "__init__.py").write_text("mine = True\n")
  monkeypatch.syspath_prepend(str(elsewhere))
  import configs

  assert configs.mine
  (elsewhere / "own.py").write_text(
    "from configs.base import base\n"
    "def get_config():\n  c = base()\n  c.name = 'own'\n  return c\n"
  )
  assert config_files.load("own.py").name == "own"
  assert Path(sys.modules["configs"].__file__).parent == config_files.SHIPPED


def test_what_differs_from_the_base_is_a_line_a_group(elsewhere):
  lines = config_files.differences(config_files.load("shapes").to_dict())
  assert len(lines) < 25
  (decoder,) = [x for x in lines if x.startswith("model.decoder: ")]
  assert "width 128" in decoder and "preset" not in decoder
  (source,) = [x for x in lines if x.startswith("data.eval.held_out: ")]
  assert source == "data.eval.held_out: path 'shapes', split 'held_out'"


def test_the_base_differs_in_nothing(elsewhere):
  (elsewhere / "same.py").write_text(
    "from configs.base import base\ndef get_config():\n  return base()\n"
  )
  tree = config_files.load("same.py")
  assert config_files.differences(tree.to_dict()) == []
  tree.unlock()
  tree.optim.lr = 1.0
  tree.steps = 5
  lines = config_files.differences(tree.to_dict())
  assert lines == ["steps 5", "optim: lr 1.0"]
