"""Attacks by directories: of Orbax, of a Gemma and a LLaVA; see attacks.py."""

import json
import os
import shutil

import numpy as np
import orbax.checkpoint as ocp

from tests.weights import helpers, test_llava_weights
from tests.weights.attacks import DEEP, huge
from unifluid_jax.weights import safetensors_file


def orbax(change, ours=False):
  """A whole checkpoint, of Orbax's kind or of ours, and what was done to it."""

  def make(at):
    path = at / "x"
    shutil.copytree(whole(ours, at.parent), path)
    change(path)
    return path

  return make


def whole(ours, at):
  """Saved once for all."""
  path = at / f"whole_{ours}"
  if not path.exists():
    tree = {"params": {"a": np.arange(6.0), "b": np.ones((2, 3), "f4")}}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=not ours)
    with ocp.Checkpointer(handler) as writer:
      writer.save(path, args=ocp.args.PyTreeSave(tree))
  return path


def overwrite(name, data):
  return lambda path: (path / name).write_bytes(data)


def array_metadata(**changes):
  def change(path):
    file = path / "params.a" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

  return change


def pipe_in(name):
  def change(path):
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)

  return change


ORBAX = {
  "torn": orbax(overwrite("_METADATA", b"{")),
  "empty": orbax(overwrite("_METADATA", b"")),
  "deep": orbax(overwrite("_METADATA", DEEP)),
  "list": orbax(overwrite("_METADATA", b"[1]")),
  "no_tree": orbax(overwrite("_METADATA", b'{"tree_metadata": {"a": 1}}')),
  "binary": orbax(overwrite("_METADATA", b"\xff\x00" * 50)),
  "8_gib": orbax(lambda path: os.truncate(path / "_METADATA", 2**33)),
  "no_manifest": orbax(lambda path: (path / "manifest.ocdbt").unlink()),
  "torn_manifest": orbax(lambda path: os.truncate(path / "manifest.ocdbt", 9)),
  "no_data": orbax(lambda path: shutil.rmtree(path / "d")),
  "pipe": orbax(pipe_in("manifest.ocdbt")),
  "array_gone": orbax(lambda path: shutil.rmtree(path / "params.a"), True),
  "metadata_gone": orbax(lambda p: (p / "params.a/.zarray").unlink(), True),
  "metadata_torn": orbax(overwrite("params.a/.zarray", b"{"), True),
  "metadata_pipe": orbax(pipe_in("params.a/.zarray"), True),
  "numbers_cut": orbax(overwrite("params.a/0", b"12"), True),
  "numbers_pipe": orbax(pipe_in("params.a/0"), True),
  "2^62_numbers": orbax(array_metadata(shape=[2**62]), True),
  "negative": orbax(array_metadata(shape=[-6]), True),
  "unknown_dtype": orbax(array_metadata(dtype="<q9"), True),
  "empty_directory": lambda at: at,
}


def gemma(name="model.safetensors", data=None, settings=None):
  """The fixture of Gemma 2 with another config.json or other tensors."""

  def make(at):
    shutil.copytree(helpers.FIXTURES / "gemma2", at, dirs_exist_ok=True)
    if settings is not None:
      (at / "config.json").write_bytes(settings)
    if data is not None:
      (at / name).write_bytes(data)
    return at

  return make


def tensor_named(name):
  def make(at):
    path = gemma()(at) / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header[name] = header.pop("model.layers.2.mlp.up_proj.weight")
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return at

  return make


def settings_8_gib(at):
  huge("config.json")(gemma()(at))
  return at


# Read as a Gemma, with what lies beside the tensors.
GEMMA = {
  "deep": gemma(settings=DEEP),
  "twice": gemma(settings=b'{"head_dim": 8, "head_dim": 4}'),
  "list": gemma(settings=b"[]"),
  "binary": gemma(settings=b"\xff\x00"),
  "empty": gemma(settings=b""),
  "nan": gemma(settings=b'{"head_dim": NaN}'),
  "infinite": gemma(settings=b'{"head_dim": 8, "rms_norm_eps": Infinity}'),
  "10^400_layers": gemma(
    settings=b'{"num_hidden_layers": 1' + b"0" * 400 + b"}"
  ),
  "of_5000_digits": gemma(settings=b'{"head_dim": ' + b"9" * 5000 + b"}"),
  "8_gib": settings_8_gib,
  "layer_10^11": tensor_named("model.layers.99999999999.mlp.up_proj.weight"),
  "layer_of_5000_digits": tensor_named(
    f"model.layers.{'9' * 5000}.mlp.up_proj.weight"
  ),
  "a_tensor_below_a_tensor": tensor_named("model.norm.weight.weight"),
  "a_name_of_slashes": tensor_named("model/../../norm"),
}


def llava(renamed=("", ""), top=(), text=(), vision=()):
  """A tiny LLaVA with other settings or a tensor of another name."""

  def make(at):
    tensors = test_llava_weights.tensors("released")
    old, new = renamed
    tensors = {new if n == old else n: x for n, x in tensors.items()}
    layout = {n: (x.shape, x.dtype) for n, x in tensors.items()}
    file = str(at / "model.safetensors")
    safetensors_file.write(file, layout, tensors.items())
    tree = test_llava_weights.settings()
    for part, changes in (("text_config", text), ("vision_config", vision)):
      tree[part] |= dict(changes)
    (at / "config.json").write_text(json.dumps(tree | dict(top)))
    return at

  return make


_TEXT, _EYES = "language_model.model.", "vision_tower.vision_model."
# Read as a LLaVA: each part has settings of its own.
LLAVA = {
  "text_config_is_a_list": llava(top={"text_config": [1]}),
  "text_config_is_empty": llava(top={"text_config": {}}),
  "layer_that_is_a_table": llava(top={"vision_feature_layer": {"a": [1]}}),
  "10^400_heads": llava(text={"num_attention_heads": 10**400}),
  "nan": llava(text={"rms_norm_eps": float("nan")}),
  "2^63_layers_of_clip": llava(vision={"num_hidden_layers": 2**63}),
  "epsilon_is_a_list": llava(vision={"layer_norm_eps": [1e-5]}),
  "layer_10^11": llava((f"{_TEXT}norm.weight", f"{_TEXT}layers.{10**11}.x")),
  "layer_10^11_of_clip": llava(
    (f"{_EYES}post_layernorm.bias", f"{_EYES}encoder.layers.{10**11}.x")
  ),
  "clip_below_itself": llava(
    (f"{_EYES}pre_layrnorm.bias", f"{_EYES}{_EYES}pre_layrnorm.bias")
  ),
}
