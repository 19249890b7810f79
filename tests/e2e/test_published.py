"""The metrics on files, as a user types them, with tiny networks.

The run is random; prompts lie in the layouts of COCO, MJHQ-30K and GenEval.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.e2e.commands import ENV, REPO, command, rows
from tests.evals import random_run, tiny_inception, tiny_torch
from tests.evals.test_geneval_files import FOUND, PROMPTS
from tests.evals.test_published import write_coco, write_mjhq
from unifluid_jax.data import transforms
from unifluid_jax.data.images import decode_image
from unifluid_jax.evals.metrics import fid
from unifluid_jax.evals.published import (
  clip_score,
  geneval_detections,
  geneval_detector,
  inception_features,
  inception_net,
  torch_networks,
)
from unifluid_jax.models import inception

IMAGES = 29  # captioned ones of COCO


class Place:
  """A run, the Inception network, and programs that are compiled once."""

  def __init__(self, root):
    self.root, self.weights = root, root / "inception"
    self.run, self.model = random_run.write(root)
    self.env = {
      "JAX_COMPILATION_CACHE_DIR": f"{root}/compiled",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with tiny_inception.small():
      tiny_inception.save(root / "inception.safetensors")
    source = f"--from=inception:{root}/inception.safetensors"
    self.tiny("weights", source, f"--to={self.weights}")

  def tiny(self, *args, check=True):
    """A command with the small Inception in the place of the published."""
    return command(
      "tiny_inception", *args, of="tests.evals", check=check, **self.env
    )

  def evaluate(self, metric, *args, check=True):
    return self.tiny("evaluate", f"--metrics={metric}", *args, check=check)

  def refuses(self, metric, *args, words):
    """Ends with an error in one line, which holds these words."""
    done = self.evaluate(metric, *args, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (line,) = [x for x in done.stderr.split("\n") if x.startswith("error: ")]
    for word in words:
      assert word in line, (word, line)

  def killed(self, metric, *args, when):
    """Starts a command and kills it as soon as `when` says so."""
    process = subprocess.Popen(
      [sys.executable, "-m", "tests.evals.tiny_inception", "evaluate",
       f"--metrics={metric}", *args],
      cwd=REPO, env=dict(ENV, **self.env),
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not when():
      assert process.poll() is None, "ended before it could be killed"
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()

  def distance(self, real, drawn):
    """Of two lists of uint8 images of one size, one after another."""
    with tiny_inception.small():
      params = inception_net.load(str(self.weights))
      convention = inception_features.CONVENTIONS["clean-fid"]
      net = inception.Inception()
      features = jax.jit(
        lambda x: net.apply({"params": params}, convention(x)).features
      )
      both = (
        fid.statistics([features(jnp.asarray(x[None]))[0] for x in images])
        for images in (real, drawn)
      )
      return fid.distance(*both).value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  return Place(tmp_path_factory.mktemp("published"))


def joined(run, metric):
  """The metric's newest row in a run's results, which its report shows."""
  (*_, row) = [
    r for r in rows(run / "metrics_eval.jsonl") if r["metric"] == metric
  ]
  assert row["step"] == random_run.STEP
  assert f"{row['value']:.3f}" in (run / "report.html").read_text()
  return row["value"]


def pixels(*files, crop=0):
  images = [decode_image(file.read_bytes()) for file in files]
  return [transforms.centre_crop_resize(x, crop) if crop else x for x in images]


def test_coco_fid_goes_on_where_it_was_killed(place, tmp_path):
  prompts, drawn = write_coco(tmp_path, range(30)), tmp_path / "drawn"
  out, kept = tmp_path / "out.json", tmp_path / "ref.npz"
  args = [*place.model, f"--prompts={prompts}", f"--count={IMAGES}",
          f"--weights={place.weights}", f"--images={drawn}", f"--out={out}",
          f"--save_reference={kept}"]  # fmt: skip
  one_by_one = "--config.eval.batch=1"
  place.killed("coco_fid", *args, one_by_one,
               when=lambda: len(list(drawn.glob("[0-9]*.png"))) > 2
  )  # fmt: skip
  before = {f: os.stat(f).st_mtime_ns for f in drawn.glob("[0-9]*.png")}
  assert 2 < len(before) < IMAGES and kept.exists() and not out.exists()
  said = place.evaluate("coco_fid", *args).stdout
  assert f"{kept}, measured before" in said
  assert f"{len(before)} of {IMAGES} images are there" in said
  assert {f: os.stat(f).st_mtime_ns for f in before} == before
  result = json.loads(out.read_text())
  assert f"coco_fid {result['fid']:.4f}" in said
  assert f"debug at step {random_run.STEP}, {place.run}: ema True" in said
  assert joined(place.run, "coco_fid/distance") == result["fid"]

  files = sorted(drawn.glob("*.png"))
  assert [f.name for f in files] == [f"{i:05d}.png" for i in range(IMAGES)]
  real = [f for f in (tmp_path / "train").iterdir() if f.stem != f"{5:012d}"]
  want = place.distance(pixels(*real, crop=32), pixels(*files))
  assert want > 1e-3
  np.testing.assert_allclose(result["fid"], want, rtol=1e-3)
  assert result["generated"]["count"] == result["reference"]["count"] == IMAGES
  assert result["made_by"]["workdir"] == str(place.run)
  assert result["made_by"]["step"] == random_run.STEP
  noted = json.loads((drawn / "drawn.json").read_text())
  assert noted["by"] == result["made_by"] and len(noted["images"]) == IMAGES

  place.refuses(
    "coco_fid", *args, "--count=9",
    words=(f"{kept} holds another set", "Choose another --save_reference"),
  )  # fmt: skip
  place.refuses(
    "coco_fid", *args, "--config.sampling.cfg=9",
    words=("drawn otherwise", "cfg 2.5, now 9.0", "Choose another --images"),
  )  # fmt: skip
  place.refuses(
    "fid", f"--images={drawn}", f"--reference={kept}",
    f"--weights={place.weights}",
    words=(f"{kept} cannot be compared", "crop 32, now 0"),
  )  # fmt: skip


def test_mjhq_fid_measures_its_reference_once(place, tmp_path):
  meta, images = write_mjhq(tmp_path)
  drawn, out = tmp_path / "drawn", tmp_path / "out.json"
  args = [*place.model, f"--prompts={meta}", f"--reference={images}",
          f"--weights={place.weights}", f"--images={drawn}", f"--out={out}",
          f"--save_reference={tmp_path}/ref.npz"]  # fmt: skip
  said = [place.evaluate("mjhq_fid", *args).stdout]
  first = json.loads(out.read_text())
  out.unlink()
  said.append(place.evaluate("mjhq_fid", *args).stdout)
  assert json.loads(out.read_text()) == first
  for group in ("animals", "food"):
    file = tmp_path / f"ref_{group}.npz"
    assert [f"{file}, measured before" in x for x in said] == [False, True]
    assert file.exists() and f"mjhq_fid/{group} " in said[1]
  assert "0 of 11 images" in said[0] and "11 of 11 images" in said[1]

  files = sorted(drawn.glob("*/*.png"))
  real = [(tmp_path / "real" / f.relative_to(drawn)).with_suffix(".jpg")
          for f in files]  # fmt: skip
  want = place.distance(pixels(*real), pixels(*files))
  np.testing.assert_allclose(first["fid"], want, rtol=1e-3)
  place.refuses(
    "mjhq_fid", *args, "--count=4",
    words=("ref_animals.npz holds another set", "count 6, now"),
  )  # fmt: skip


@pytest.fixture(scope="module")
def drawn(place, tmp_path_factory):
  """Two images a prompt of GenEval's."""
  root = tmp_path_factory.mktemp("geneval")
  prompts = root / "evaluation_metadata.jsonl"
  prompts.write_text("".join(json.dumps(p) + "\n" for p in PROMPTS))
  said = place.evaluate(
    "geneval_draw", *place.model, f"--prompts={prompts}",
    f"--images={root}/images", "--samples=2",
  ).stdout  # fmt: skip
  assert "raw prompts drawn" in said and "12/12 (100 %)" in said
  return root / "images"


def by_hand():
  """The lines of a program of one's own that detects."""
  rows = [{"detector": "by hand"}]
  rows += [{"image": name, "objects": x} for name, x in FOUND.items()]
  return [json.dumps(row) for row in rows]


def test_geneval_is_drawn_and_scored(place, drawn, tmp_path):
  """Detections come from elsewhere, as the format says."""
  files = sorted(drawn.glob("*/samples/*.png"))
  assert {str(f.relative_to(drawn)) for f in files} == FOUND.keys()
  assert all(Image.open(f).size == (32, 32) for f in files)
  for i, prompt in enumerate(PROMPTS):
    assert json.loads((drawn / f"{i:05d}/metadata.jsonl").read_text()) == prompt
  found, out = tmp_path / "found.jsonl", tmp_path / "out.json"
  lines = by_hand()
  found.write_text("\n".join(lines[:-1]))
  args = [f"--images={drawn}", f"--detections={found}", f"--out={out}",
          f"--workdir={place.run}"]  # fmt: skip
  missing = f"no detections of {[*FOUND][-1]} and 0 more"
  place.refuses("geneval_score", *args, words=(missing, "run the detector"))
  found.write_text("\n".join(lines))
  said = place.evaluate("geneval_score", *args).stdout
  result = json.loads(out.read_text())
  np.testing.assert_allclose(result["scores"]["overall"], 2.5 / 6)
  assert joined(place.run, "geneval_raw/overall") == 2.5 / 6
  assert f"report: {place.run}/report.html" in said
  assert "overall 0.41667" in said and "(by hand)" in said
  assert result["made_by"]["step"] == random_run.STEP
  assert len(rows(drawn / "results.jsonl")) == 12


def test_geneval_is_detected_where_the_detector_was_killed(
  place, drawn, tmp_path
):
  tiny_torch.mask2former(tmp_path / "m2f", cows=True)
  for seed in (0, 1):
    tiny_torch.clip(tmp_path / f"clip{seed}", seed)
  found, out = tmp_path / "found.jsonl", tmp_path / "out.json"
  args = [f"--images={drawn}", f"--weights={tmp_path}/m2f",
          f"--clip={tmp_path}/clip0", f"--detections={found}",
          "--torch_device=cpu"]  # fmt: skip

  def lines():
    return found.read_bytes().split(b"\n")[:-1] if found.exists() else []

  place.killed("geneval_detect", *args, when=lambda: len(lines()) > 3)
  before = lines()
  assert 3 < len(before) < 13
  with found.open("ab") as file:
    file.write(before[-1][:40])  # torn, as by a kill within a write
  said = place.evaluate("geneval_detect", *args).stdout
  assert f"{len(before) - 1} of 12 images are detected" in said
  assert lines()[: len(before)] == before and len(lines()) == 13

  networks = [torch_networks.Mask2Former(f"{tmp_path}/m2f", "cpu"),
              torch_networks.HfClip(f"{tmp_path}/clip0", "cpu")]  # fmt: skip
  got = geneval_detections.read(str(found))
  for name, prompt in (("00003/samples/00000.png", PROMPTS[3]),
                       ("00005/samples/00001.png", PROMPTS[5])):  # fmt: skip
    want = geneval_detector.detect(
      *pixels(drawn / name), prompt, networks[0],
      geneval_detector.ColourNamer(networks[1]),
    )  # fmt: skip
    objects = got.images[name].objects
    assert [d.name for d in objects] == ["cow"] * len(want) != []
    assert [d.colour for d in objects] == [d.colour for d in want]
    assert sum(d.colour is not None for d in objects) == 1
    for mine, theirs in zip(objects, want, strict=True):
      np.testing.assert_allclose(mine.box, theirs.box, atol=1)
      np.testing.assert_allclose(mine.score, theirs.score, rtol=1e-3)

  args[2] = f"--clip={tmp_path}/clip1"
  place.refuses(
    "geneval_detect", *args,
    words=(f"{found} was made otherwise", "clip0 (", "now", "clip1 (",
           "Choose another --detections"),
  )  # fmt: skip
  place.evaluate("geneval_score", f"--images={drawn}", f"--detections={found}",
                 f"--out={out}")  # fmt: skip
  result = json.loads(out.read_text())
  assert result["images"] == 12 and result["scores"]["single_object"] == 0
  assert result["detector"] == got.made_by["detector"]


def test_clip_score_of_drawn_images(place, drawn, tmp_path):
  tiny_torch.clip(tmp_path / "clip")
  out = tmp_path / "out.json"
  said = place.evaluate(
    "clip_score", f"--images={drawn}", f"--clip={tmp_path}/clip",
    f"--out={out}", "--torch_device=cpu",
  ).stdout  # fmt: skip
  clip = torch_networks.HfClip(f"{tmp_path}/clip", "cpu")
  images = pixels(*sorted(drawn.glob("*/samples/*.png")))
  texts = [p["prompt"] for p in PROMPTS for _ in range(2)]
  want = clip_score.summary(
    clip_score.cosines(clip.images(images), clip.texts(texts))
  )
  result = json.loads(out.read_text())
  assert result["scores"] == pytest.approx(want, rel=1e-4)
  assert result["images"] == 12 and "clip_100_cos" in said


def test_table_1_on_coco_is_what_the_commands_wrote(place, drawn, tmp_path):
  """Two runs that are trained already; one of them is scored."""
  root = tmp_path / f"steps_{random_run.STEP}"
  shutil.copytree(place.run, root / "t2i_only")
  run = root / "unified"
  run.symlink_to(place.run)
  args = ["table1", "--world=coco", "--config=configs/debug.py",
          f"--root={tmp_path}", f"--budget={random_run.STEP}"]  # fmt: skip
  said = command("experiments", *args).stdout
  assert "| T2I only | – [7.88] | – [0.59] |\n| Unified | – [7.2] | –" in said
  assert said.count(" is missing: ") == 4
  for text in (f"--metrics=coco_fid --out={run}/coco_fid.json",
               f"geneval_score --out={run}/geneval.json"):  # fmt: skip
    assert text in said
  place.evaluate(
    "coco_fid", *place.model, f"--prompts={write_coco(tmp_path, range(9))}",
    "--count=8", f"--weights={place.weights}", f"--out={run}/coco_fid.json",
  )  # fmt: skip
  found = tmp_path / "found.jsonl"
  found.write_text("\n".join(by_hand()))
  place.evaluate(
    "geneval_score", f"--images={drawn}", f"--detections={found}",
    f"--out={run}/geneval.json",
  )  # fmt: skip
  said = command("experiments", *args).stdout
  fid = json.loads((run / "coco_fid.json").read_text())["fid"]
  (row,) = [x for x in said.splitlines() if x.startswith("| Unified |")]
  assert row.endswith(" [7.2] | 0.417 [0.59] |")
  assert float(row.split()[3]) == pytest.approx(fid, rel=0.01)
  assert "FID: 8 drawn, clean-fid, images of the drawn captions (8)." in said
  assert "GenEval: 12 drawn, raw prompts, by hand." in said
  assert said.count(" is missing: ") == 2


def test_networks_of_an_extra_say_so(place, drawn):
  try:
    import torch  # noqa: F401
  except ImportError:
    words = "needs torch: pip install 'unifluid_jax[geneval]'"
  else:
    words = "no config.json in /nowhere"
  args = [f"--images={drawn}", "--clip=/nowhere"]
  place.refuses("clip_score", *args, words=(words,))


@pytest.mark.parametrize(
  "metric, args, words",
  [
    ("coco_fid", ["--prompts=/nowhere.json"], "no COCO file at /nowhere.json"),
    ("mjhq_fid", ["--reference=/", "--prompts=/nowhere.json"],
     "no MJHQ-30K prompts at /nowhere.json"),
    ("mjhq_fid", ["--prompts=meta_data.json"], "--reference is missing"),
    ("geneval_draw", ["--prompts=/nowhere.jsonl"],
     "no GenEval prompts at /nowhere.jsonl"),
    ("fid", ["--images=/", "--weights=/nowhere"],
     "--weights=/nowhere must be what python -m unifluid_jax.weights"),
    ("fid", ["--images=/", "--workdir=/nowhere", "--step=1"],
     "no complete checkpoint under /nowhere"),
    ("geneval_score", ["--images=/", "--detections=/nowhere.jsonl"],
     "no detections at /nowhere.jsonl"),
    ("clip_score", ["--images=/"], "--clip is missing for --metrics=clip"),
  ],
)  # fmt: skip
def test_missing_inputs_are_named(place, metric, args, words):
  place.refuses(metric, *args, words=(words,))
