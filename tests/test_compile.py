"""Does it fit, how fast: on fake CPU devices; test_compile_tpu for TPUs."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import debug, transfer
from tests import task_sets
from tests.systems.conftest import examples, tiny
from unifluid_jax import systems
from unifluid_jax.aot import (
  advice,
  compiled,
  hlo,
  lower,
  report,
  table,
  topology,
)
from unifluid_jax.core import parallel, telemetry
from unifluid_jax.core.config import ConfigError, MeshConfig
from unifluid_jax.data import pipeline, text
from unifluid_jax.models.kl_vae import KlVae

REPO = Path(__file__).parent.parent
SLICE = [
  SimpleNamespace(coords=[x, y, 0]) for x in range(16) for y in range(16)
]
V5E = topology.Topology("v5e:16x16", SLICE, topology.CHIPS["v5e"])


@pytest.fixture(scope="module")
def trained():
  """A tiny train step on eight fake devices: program and compilation."""
  config = tiny(mesh__data=2, mesh__fsdp=-1, optim__name="adamw")
  place = topology.get("cpu:8")
  (program,) = lower.programs(config, "train", place.devices)
  return config, program, compiled.compile_program(program.lowered, place)


# ------------------------------------------------------------------ what it is


def test_the_batch_is_the_one_that_trains():
  config = tiny(batch__edit=8, batch__text=8)
  shapes = described(lower.batch_shapes(config, systems.build(config)))
  given = described(examples(edit=True, text=True))
  for task in ("i2t", "edit", "text"):
    assert shapes.pop(task) == given[task]
  drawn = {"prompt": ((8, 5), "int32"), "image": ((8, 8, 8, 8), "float32")}
  assert shapes == {"t2i": drawn}


def described(batch):
  return jax.tree.map(lambda x: (x.shape, str(x.dtype)), batch)


def test_two_images_a_question_are_lowered_as_the_pipeline_gives_them(tmp_path):
  root = task_sets.make(tmp_path)
  tree = transfer.get_config("nlvr2,debug")
  tree.data.root, tree.batch.i2t = str(root), 8
  config = systems.resolve(tree)
  assert config.data.images == 2
  said = ["answer en both are red", "true false"]
  tokenizer = text.train(said, tmp_path / "t.model", 24)
  system = systems.build(config)
  loader = pipeline.make_loader(config, system.inputs, tokenizer)
  given = next(loader)
  loader.close()
  assert given["i2t"]["seen"].shape == (8, 2, 32, 32, 3)
  assert described(lower.batch_shapes(config, system)) == described(given)
  place = topology.get("cpu:8")
  (answer,) = lower.programs(config, "answer", place.devices, rows=2)
  _, seen, _ = answer.held["batch"]  # after the rows' numbers
  assert seen.shape == (2, 2, 32, 32, 3)


def test_frozen_shapes_are_those_of_the_weights():
  config = tiny()
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  vae = KlVae(config.model.vae)
  weights = jax.eval_shape(vae.init, jax.random.key(0), images)
  made = systems.frozen_shapes(systems.build(config))["codec"]
  assert made["vae"] == weights["params"]
  assert made["latent_mean"].shape == made["latent_scale"].shape == ()


def test_a_run_without_images_has_no_frozen_weights():
  config = tiny(batch__t2i=0)
  assert systems.frozen_shapes(systems.build(config)) == {}


# --------------------------------------------------------------------- reports


def test_report_of_a_train_step(trained):
  config, program, done = trained
  place = topology.get("cpu:8")
  found = report.report(config, program, done, place)
  assert found["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
  assert found["rows"] == 16 and found["fits"] is None
  params = program.held["parameters"]
  assert found["parameters"]["all"] == telemetry.count(params)
  places = jax.tree.map(lambda x: x.sharding, params)
  assert found["bytes_held"]["parameters"] == telemetry.bytes_per_device(
    params, places
  )
  assert (
    sum(found["parameter_bytes"].values())
    == (found["bytes_held"]["parameters"])
  )
  # Both moments, and a few counters.
  assert (
    0
    <= found["bytes_held"]["optimizer"]
    - 2 * sum(found["parameter_bytes"].values())
    < 100
  )
  axes = {row["axes"] for row in found["collectives"]}
  assert "fsdp" in axes and axes <= {"data", "fsdp", "data x fsdp"}
  gathered = sum(
    row["bytes"] for row in found["collectives"] if row["kind"] == "all-gather"
  )
  assert gathered >= found["bytes_held"]["parameters"] * 3
  assert "seconds" not in found
  json.dumps(found)
  assert "train step of shapes on cpu:8" in table.table(found)


def test_arguments_are_what_is_held(trained):
  """XLA's own count: plus the step's 4 bytes, less the VAE, which nobody reads
  where moments are cached."""
  config, program, done = trained
  assert "image" in lower.batch_shapes(config, systems.build(config))["t2i"]
  place = topology.get("cpu:8")
  held = report.report(config, program, done, place)["bytes_held"]
  vae = program.held["frozen"]["codec"]["vae"]
  unread = telemetry.bytes_per_device(
    vae, jax.tree.map(lambda x: x.sharding, vae)
  )
  assert done.memory["arguments"] == sum(held.values()) + 4 - unread


def test_what_does_not_fit_comes_with_changes(trained):
  config, program, done = trained
  place = topology.get("cpu:8")
  limit = done.memory["used"] - 1000
  found = report.report(config, program, done, place, limit)
  assert found["fits"] is False
  said = "\n".join(found["advice"])
  assert "mesh.fsdp=8" in said and "would fit" in said
  assert "model.remat=full" in said
  assert "fits: no" in table.table(found)
  assert report.report(config, program, done, place, 2**40)["fits"] is True


def test_advice_halves_what_is_sharded(trained):
  config, program, _ = trained
  found = {
    "fits": False,
    "memory": {"used": 1000, "limit": 900},
    "bytes_held": {"parameters": 100, "optimizer": 200, "frozen": 50},
  }
  lines = advice.advice(config, program, found)
  first = [line for line in lines if line.startswith("mesh.fsdp=8")]
  assert first and "would fit" in first[0]
  found["memory"]["limit"] = 700
  lines = advice.advice(config, program, found)
  assert any("fsdp" in line and "not enough alone" in line for line in lines)


def test_advice_counts_every_image_of_a_question():
  """One image: 16 + 5 + 3 tokens, more than 5 + 16 of a drawing; two: 40."""
  one, two = (
    systems.build(tiny(data__images=n, model__remat="dots")).cost()
    for n in (1, 2)
  )
  assert two.saved_by_dots / one.saved_by_dots == pytest.approx(40 / 24)
  full = systems.build(tiny(model__remat="full")).cost()
  assert full.saved_by_dots == 0


@pytest.mark.parametrize("what, names", [("answer", 1), ("eval", 3)])
def test_other_programs(what, names):
  config = tiny(model__decoder__depth=1)
  place = topology.get("cpu:8")
  made = lower.programs(config, what, place.devices, rows=2)
  assert len(made) == names and {p.rows for p in made} == {2}
  dtypes = {str(x.dtype) for x in jax.tree.leaves(made[0].held["parameters"])}
  assert dtypes == {"bfloat16" if what == "eval" else "float32"}
  assert made[0].held["frozen"]["codec"]["latent_scale"].dtype == np.float32
  done = compiled.compile_program(made[-1].lowered, place)
  found = report.report(config, made[-1], done, place, 2**40)
  assert found["collectives"] == [] and found["devices"] == 1
  assert found["fits"] is True


def test_an_autoencoder_only_trains():
  config = systems.resolve(debug.get_config("vae"))
  with pytest.raises(ConfigError, match="only trains"):
    lower.programs(config, "generate", jax.devices())


# ------------------------------------------------------------- model of time


def test_a_ring_uses_both_directions_of_the_axes_it_spans():
  link = V5E.chip.link
  column = [d for d in SLICE if d.coords[0] == 3]
  half = column[:8]
  assert topology.bandwidth(V5E, column) == 2 * link
  assert topology.bandwidth(V5E, SLICE) == 4 * link
  assert topology.bandwidth(V5E, half) == link


def test_slices_share_what_goes_between_them():
  """All-reduces of two slices, by hand: within each, then between them."""
  chip = V5E.chip
  two = [
    SimpleNamespace(coords=d.coords, slice_index=i) for i in (0, 1)
    for d in SLICE
  ]  # fmt: skip
  place = topology.Topology("v5e:16x16*2", two, chip)

  def seconds(group):
    wire = topology.wire_bytes("all-reduce", 1000, len(group))
    return wire / topology.bandwidth(place, group)

  assert seconds([two[0], two[256]]) == pytest.approx(1000 / chip.dcn)
  between = 1000 / 256 / chip.dcn
  within = 2000 * 255 / 256 / (4 * chip.link)
  assert seconds(two) == pytest.approx(between + within)
  assert seconds(two[:256]) == pytest.approx(within)


@pytest.mark.parametrize(
  "kind, bytes_sent",
  [
    ("all-gather", 750),
    ("reduce-scatter", 750),
    ("all-reduce", 1500),
    ("collective-permute", 1000),
    ("all-to-all", 750),
  ],
)
def test_wire_bytes(kind, bytes_sent):
  assert topology.wire_bytes(kind, 1000, 4) == bytes_sent


def test_band_and_mfu(trained):
  """A program of 3 Gcycles on 256 chips: numbers by hand."""
  config, program, _ = trained
  module = hlo.parse(
    "ENTRY %main (p: f32[1]) -> f32[1] {\n"
    "  ROOT %f = f32[1]{0} fusion(), backend_config="
    '{"estimated_cycles":"3000000000"}\n}\n',
    8,
  )
  rows = [
    {"seconds": 0.5, "asynchronous_seconds": 0.2},
    {"seconds": 0.5, "asynchronous_seconds": 0.0},
  ]
  found = report._times(config, program, module, V5E, rows)
  assert found["compute_seconds"] == 2.0
  band = {"exposed": 3.0, "scheduled": 2.8, "hidden": 2.0}
  assert found["seconds"] == pytest.approx(band)
  tokens, flops, *_ = systems.build(config).cost()
  assert found["tokens_per_second"]["hidden"] == tokens / 2
  assert found["mfu"]["exposed"] == pytest.approx(flops / 3 / (8 * 197e12))
  # Asynchronous or not, all of it has to pass the links.
  rows = [{"seconds": 3.0, "asynchronous_seconds": 3.0}]
  slow = report._times(config, program, module, V5E, rows)
  assert slow["seconds"] == {"exposed": 5.0, "scheduled": 3.0, "hidden": 3.0}


@pytest.mark.parametrize(
  "attention, remat, products, speed, speed_of_vit",
  [("splash", "dots", 9, 0.4, None), ("triton", "none", 7, 0.4, None),
   ("mosaic", "full", 9, 0.75, 0.33), ("mosaic", "dots", 7, 0.75, 0.33)],
)  # fmt: skip
def test_fused_attention_takes_time(
  trained, attention, remat, products, speed, speed_of_vit
):
  """Of which the compiler says nothing; products by hand."""
  config, program, _ = trained
  model = dataclasses.replace(config.model, attention=attention, remat=remat)
  config = dataclasses.replace(config, model=model)
  program = program._replace(cost=systems.build(config).cost())
  module = hlo.parse(
    "ENTRY %main (p: f32[1]) -> f32[1] {\n"
    '  %k = f32[1]{0} custom-call(), custom_call_target="tpu_custom_call"\n'
    "  ROOT %f = f32[1]{0} fusion(), backend_config="
    '{"estimated_cycles":"1500000000"}\n}\n',
    8,
  )
  found = report._times(config, program, module, V5E, [])
  c, v, text = model.decoder, model.vit, config.text
  patches = (v.image_size // v.patch) ** 2
  longest = max(
    text.prompt + model.image_tokens,
    patches + text.prefix + text.suffix - 1,
  )
  flops = 2 * c.depth * c.heads * c.head_dim * longest**2
  flops *= (config.batch["t2i"] + config.batch["i2t"]) / speed
  if speed_of_vit:
    images = config.batch["i2t"]
    flops += 2 * v.depth * v.width * patches**2 * images / speed_of_vit
  want = products * flops / (8 * 197e12)
  assert found["kernel_seconds"] == pytest.approx(want)
  assert found["compute_seconds"] == 1.0 + found["kernel_seconds"]


def test_axes_of_a_group():
  mesh = parallel.make_mesh(MeshConfig(2, 4, 1))
  assert report.axes_of((0, 1, 2, 3), mesh) == "fsdp"
  assert report.axes_of((1, 5), mesh) == "data"
  assert report.axes_of(tuple(range(8)), mesh) == "data x fsdp"


@pytest.mark.parametrize("kind", topology.CHIPS)
def test_peaks_agree_with_the_units(kind):
  """Each matrix unit does width^2 multiply-adds a cycle."""
  chip = topology.CHIPS[kind]
  macs = chip.flops / chip.clock / 2
  width = 256 if kind in ("v6e", "v7x") else 128
  units = macs / width**2
  assert units == pytest.approx(round(units), rel=0.01)


@pytest.mark.parametrize(
  "kind, name",
  [("v5e", "TPU v5e"), ("v5p", "TPU v5p"), ("v6e", "TPU v6e"),
   ("v7x", "TPU7x")],
)  # fmt: skip
def test_training_counts_a_device_as_the_compiler_does(kind, name):
  assert telemetry.PEAK_FLOPS[name] == topology.CHIPS[kind].flops


def test_messages_of_the_compiler():
  said = "RESOURCE_EXHAUSTED: Ran out of memory ... Used 20.50G of 15.75G hbm."
  assert compiled.out_of_memory(said) == int(20.5 * 2**30)
  said = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
    "for HLO temporaries (48.00G) exceeds available HBM (15.75G)."
  )
  usage = "Memory Space: default (color=0)\nTotal bytes: 123 (1B)\n"
  assert compiled.out_of_memory(said) == 48 * 2**30
  assert compiled.out_of_memory("other") is None
  assert compiled.heap_bytes(usage) == 123
  assert compiled.out_of_memory("other", usage) == 123


# ---------------------------------------------------------------- entry point


def run(*args, **env):
  env = dict(os.environ, PYTHONPATH=str(REPO)) | env
  return subprocess.run(
    [sys.executable, "-m", "unifluid_jax.compile",
     "--config=configs/debug.py", *args],
    cwd=REPO, env=env, capture_output=True, text=True, check=False,
  )  # fmt: skip


@pytest.mark.parametrize(
  "name, words",
  [
    ("v9:2x2", ["unknown topology 'v9:2x2'", "v5e:16x16", "v7x:4x4x4", "cpu"]),
    ("v5e", ["unknown topology 'v5e'"]),
    ("v5e:4x4*0", ["unknown topology 'v5e:4x4*0'", "*2 behind a TPU"]),
    ("cpu:4*2", ["unknown topology 'cpu:4*2'"]),
    ("v5p:4x4", ["v5p has 3 dimensions"]),
    ("cpu:99", ["--xla_force_host_platform_device_count=99"]),
  ],
)
def test_wrong_topologies(name, words):
  with pytest.raises(topology.TopologyError) as caught:
    topology.get(name)
  assert all(word in str(caught.value) for word in words)


def test_a_missing_compiler_names_the_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(topology.TopologyError, match=r"unifluid_jax\[tpu\]"):
    topology.get("v5e:2x2")


def test_command_says_no_with_status_one(tmp_path):
  out = tmp_path / "report.json"
  done = run(
    "--topology=cpu:2", "--what=answer", "--rows=1", "--memory_gib=0.0001",
    f"--out={out}",
  )  # fmt: skip
  assert done.returncode == 1, done.stderr[-2000:]
  assert "fits: no" in done.stdout and "half the rows" in done.stdout
  (found,) = json.loads(out.read_text())
  assert found["fits"] is False and found["program"] == "answer"


def test_command_errors_are_one_line():
  done = run("--topology=v5e:2x2", "--option=xla_thing")
  assert done.returncode == 1
  assert done.stderr.strip().splitlines()[-1] == (
    "error: --option=xla_thing: write it as NAME=VALUE"
  )
