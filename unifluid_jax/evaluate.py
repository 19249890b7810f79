r"""Evaluates a run's checkpoints, and images in files.

  python -m unifluid_jax.evaluate --config=configs/shapes.py \
      --workdir=runs/shapes

waits for new checkpoints until the last one is scored; --once scores what is
there and leaves, --step=N one step. Several processes (--coordinator=...)
share the rows. Results: metrics_eval.jsonl and report.html in the workdir.
The exit status is 1 if any metric failed.

With --metrics, one published metric of files (INCEPTION is what python -m
unifluid_jax.weights --from=inception:FILE wrote; REF a folder of images, a
COCO .json or .json:IMAGEDIR, a prepared data set, or a stored .npz):

  python -m unifluid_jax.evaluate --metrics=fid --images=DIR \
      --reference=REF --weights=INCEPTION [--save_reference=REF.npz]
  python -m unifluid_jax.evaluate --metrics=coco_fid --config=CONFIG \
      --workdir=RUN --prompts=captions_train2014.json:train2014 \
      --weights=INCEPTION [--count=30000] [--reference=REF]
  python -m unifluid_jax.evaluate --metrics=mjhq_fid --config=CONFIG \
      --workdir=RUN --prompts=meta_data.json --reference=DIR \
      --weights=INCEPTION [--save_reference=REF.npz]

GenEval draws, detects and scores apart, in the layout and the result format
of its own code; --prompts with a field "rewritten" a line are drawn from it:

  python -m unifluid_jax.evaluate --metrics=geneval_draw --config=CONFIG \
      --workdir=RUN --prompts=evaluation_metadata.jsonl --images=DIR
  python -m unifluid_jax.evaluate --metrics=geneval_detect --images=DIR \
      --weights=MASK2FORMER --clip=CLIP --detections=FILE.jsonl
  python -m unifluid_jax.evaluate --metrics=geneval_score --images=DIR \
      --detections=FILE.jsonl
  python -m unifluid_jax.evaluate --metrics=clip_score --images=DIR --clip=CLIP

(of images drawn by any of the above; of others with --prompts=FILE, a line
{"image": name below DIR, "text": prompt} each.)

(MASK2FORMER and CLIP are local directories in Hugging Face's format; both
need the extra `geneval`.)

Images that are drawn go to --images (default: below the workdir) and are
kept, as is what was detected and, with --save_reference, measured of real
images: the same command goes on where it was interrupted. The result goes to
--out and, with --workdir, into that run's metrics_eval.jsonl and report.html.

Two to six evaluated runs on one page, at --step=N or the newest step of each;
runs that differ in their seed alone are averaged, with 95 % intervals:

  python -m unifluid_jax.evaluate --compare=RUN_A,RUN_B --out=compare.html
"""

import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from unifluid_jax import evaluation, systems
from unifluid_jax.core import checkpoint, cli, config_files, files, parallel
from unifluid_jax.core.config import Config
from unifluid_jax.data import tasks
from unifluid_jax.evals import bench, transfers
from unifluid_jax.evals.published import (
  clip_score,
  drawn_images,
  file_results,
  geneval_detections,
  geneval_detector,
  geneval_files,
  inception_features,
  inception_net,
  published,
  published_prompts,
  torch_networks,
)
from unifluid_jax.evals.report import comparison

_CONFIG = cli.define_config(
  help_string="Configuration that the run was trained with."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Of the run.")
_ONCE = flags.DEFINE_bool("once", False, "Score what is there, then leave.")
_STEP = flags.DEFINE_integer(
  "step", None, "Score this checkpoint alone; with --metrics: default newest."
)
_IMAGES = flags.DEFINE_string("images", None, "Folder of generated images.")
_REFERENCE = flags.DEFINE_string(
  "reference", "", "Real images; coco_fid: default those of the captions."
)
_SPLIT = flags.DEFINE_string(
  "reference_split", "train", "Of a prepared data set."
)
_SAVE_REFERENCE = flags.DEFINE_string(
  "save_reference", "",
  "Keeps the reference's statistics: measured once, then read; mjhq_fid: a "
  "file a category, REF_<category>.npz.",
)  # fmt: skip
_WEIGHTS = flags.DEFINE_string("weights", None, "Converted network.")
_CONVENTION = flags.DEFINE_enum(
  "convention", "clean-fid", list(inception_features.CONVENTIONS),
  "How images become the network's input; numbers differ between them.",
)  # fmt: skip
_CROP = flags.DEFINE_integer(
  "crop", None, "Central squares of this side; coco_fid: default the run's, "
  "else whole images (0).",
)  # fmt: skip
_BATCH = flags.DEFINE_integer("batch", 32, "Images a device, of the network.")
_PROMPTS = flags.DEFINE_string("prompts", None, "The benchmark's prompts.")
_COUNT = flags.DEFINE_integer(
  "count", None, "Prompts; default 30000 (coco_fid), all (mjhq_fid)."
)
_SEED = flags.DEFINE_integer("sample_seed", 0, "Of prompts and noise.")
_SAMPLES = flags.DEFINE_integer(
  "samples", geneval_files.SAMPLES, "Images a prompt (GenEval)."
)
_DETECTIONS = flags.DEFINE_string(
  "detections", None, "JSON lines of what was found in GenEval's images."
)
_CLIP = flags.DEFINE_string("clip", None, "CLIP in Hugging Face's format.")
_TORCH_DEVICE = flags.DEFINE_string(
  "torch_device", "", "Of the PyTorch networks; default a GPU if there is one."
)
_OUT = flags.DEFINE_string("out", None, "File for the result.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, or auto on a TPU pod."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes in all.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process.")

_SUITE = flags.DEFINE_enum(
  "suite", None, ["transfers"], "Gathers what runs have scored in one table."
)
_ROOT = flags.DEFINE_string("root", None, "Folder of the suite's workdirs.")
_WORKDIRS = flags.DEFINE_list("workdirs", [], "The suite's workdirs.")
_COMPARE = flags.DEFINE_list(
  "compare", [], "Two to six workdirs, RUN_A,RUN_B,..."
)

Say = Callable[[str], None]


def main(_: list[str]) -> None:
  """Scores checkpoints, or one metric of files, or gathers what was scored."""
  if _SUITE.value:
    print(transfers.summary(_WORKDIRS.value, _ROOT.value))
    return
  if _COMPARE.value:
    out = _given("out", _OUT.value)
    comparison.write(
      out,
      _COMPARE.value,
      _STEP.value,
      systems.losses(),
      systems.sampling_options(),
    )
    print(f"comparison: {out}")
    return
  parallel.start_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  # jax.distributed keeps the signal for training, which saves; here nobody
  # asks for it, and whatever is scored is written already.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  say = cli.speaker()
  if _METRICS.value is None:
    _watch(say)
    return
  say(f"unifluid_jax.evaluate: {_METRICS.value}")
  _FILE_METRICS[_METRICS.value](say)


def _watch(say: Say) -> None:
  """The evaluation job; then says where to look."""
  config, workdir = _experiment()
  say(f"unifluid_jax.evaluate: {config.name} in {workdir}")
  evaluator = evaluation.Evaluator(config, workdir, say)
  errors = evaluation.watch(evaluator, _ONCE.value, _STEP.value)
  say(f"report: {workdir}/{evaluation.REPORT}")
  for line in _next(config, workdir):
    say(line)
  if errors:
    sys.exit(f"error: {len(errors)} metrics failed: {errors[0]!r}")


def _next(config: Config, workdir: str) -> list[str]:
  """What to try with what a run was trained for."""
  prompt, _ = config_files.examples(
    config_flags.get_config_filename(flags.FLAGS["config"])
  )
  draws = bool(config.batch.get(tasks.T2I))
  asks = {
    tasks.T2I: f"--prompt={shlex.quote(prompt)} --out=out.png",
    tasks.I2T: f"--image={'out.png' if draws else 'IMAGE.png'}",
  }
  start = f"  python -m unifluid_jax.generate --workdir={workdir} "
  lines = [start + ask for task, ask in asks.items() if config.batch.get(task)]
  return ["next:", *lines] if lines else []


def _fid(say: Say) -> None:
  images = _given("images", _IMAGES.value)
  by = _drawn_by(images)
  _store(published.folder_fid(_network(), images, _against(0), say), by, say)


def _coco_fid(say: Say) -> None:
  count = 30_000 if _COUNT.value is None else _COUNT.value
  path = _given("prompts", _PROMPTS.value)
  prompts = published_prompts.coco(path, count, _SEED.value)
  net, (config, _) = _network(), _experiment()
  against, run = _against(config.model.image_size), _run("coco", say)
  result = published.coco_fid(net, run, prompts, against, say)
  _store(result, run.made_by, say)


def _mjhq_fid(say: Say) -> None:
  against = _against(0)
  prompts = published_prompts.mjhq(
    _given("prompts", _PROMPTS.value),
    _given("reference", against.path),
    _COUNT.value or 0,
    _SEED.value,
  )
  net, run = _network(), _run("mjhq", say)
  result = published.mjhq_fid(net, run, prompts, against, say)
  _store(result, run.made_by, say)


def _geneval_draw(say: Say) -> None:
  prompts = geneval_files.read_prompts(_given("prompts", _PROMPTS.value))
  kind = geneval_files.kind_of(prompts, _PROMPTS.value)
  run = _run(f"geneval_{kind}", say)
  drawings = geneval_files.drawings(prompts, _SAMPLES.value, _SEED.value)
  drawn_images.draw(
    run.painter, drawings, run.folder, run.rows, run.made_by, say
  )
  geneval_files.write_metadata(run.folder, prompts)
  say(
    f"{kind} prompts drawn: {run.folder}\n"
    f"next: --metrics=geneval_detect --images={run.folder} (--help shows all)"
  )


def _geneval_detect(say: Say) -> None:
  folder = _given("images", _IMAGES.value)
  path, device = _given("detections", _DETECTIONS.value), _TORCH_DEVICE.value
  segmenter = torch_networks.Mask2Former(
    _given("weights", _WEIGHTS.value), device
  )
  clip = torch_networks.HfClip(_given("clip", _CLIP.value), device)
  geneval_detector.detect_folder(folder, path, segmenter, clip, say)
  say(f"detections: {path}")


def _clip_score(say: Say) -> None:
  folder, prompts = _given("images", _IMAGES.value), _PROMPTS.value or ""
  by = _drawn_by(folder)
  clip = torch_networks.HfClip(_given("clip", _CLIP.value), _TORCH_DEVICE.value)
  _store(clip_score.score(folder, clip, say, prompts), by, say)


def _geneval_score(say: Say) -> None:
  folder = _given("images", _IMAGES.value)
  by = _drawn_by(folder)
  found = geneval_detections.read(_given("detections", _DETECTIONS.value))
  _store(geneval_files.score(folder, found, say), by, say)
  say(f"verdicts: {folder}/{geneval_files.RESULTS}")


_FILE_METRICS: Mapping[str, Callable[[Say], None]] = {
  "fid": _fid,
  "coco_fid": _coco_fid,
  "mjhq_fid": _mjhq_fid,
  "geneval_draw": _geneval_draw,
  "geneval_detect": _geneval_detect,
  "geneval_score": _geneval_score,
  "clip_score": _clip_score,
}
_METRICS = flags.DEFINE_enum(
  "metrics", None, list(_FILE_METRICS), "A published metric of files."
)


def _given(name: str, value: str | None) -> str:
  """A flag's value, which the chosen metric needs."""
  if not value:
    metric = f" for --metrics={_METRICS.value}" if _METRICS.value else ""
    raise ValueError(f"--{name} is missing{metric}; --help shows examples")
  return value


def _experiment() -> tuple[Config, str]:
  if _CONFIG.value is None:
    _given("config", None)
  return systems.resolve(_CONFIG.value), _given("workdir", _WORKDIR.value)


def _network() -> inception_net.InceptionNet:
  path = _given("weights", _WEIGHTS.value)
  params = inception_net.load(path)
  return inception_net.InceptionNet(
    params, _CONVENTION.value, path, _BATCH.value
  )


def _against(crop: int) -> published.Against:
  save = _SAVE_REFERENCE.value
  if save and not save.endswith(".npz"):
    raise ValueError(f"--save_reference={save} must end in .npz")
  return published.Against(
    path=_REFERENCE.value,
    split=_SPLIT.value,
    save=save,
    crop=crop if _CROP.value is None else _CROP.value,
  )


def _run(name: str, say: Say) -> published.Run:
  """The model of a checkpoint, and the folder for what it draws."""
  config, workdir = _experiment()
  step = _STEP.value
  step = checkpoint.latest_step(workdir) if step is None else step
  how = {
    "ema": config.eval.use_ema,
    "sample_seed": _SEED.value,
    **bench.sampling_options(config.sampling, "images"),
  }
  text = ", ".join(f"{key} {value}" for key, value in how.items())
  say(f"drawn by {config.name} at step {step}, {workdir}: {text}")
  return published.Run(
    painter=evaluation.load_model(config, workdir, step),
    folder=_IMAGES.value or f"{workdir}/drawn/{name}_{step}",
    rows=config.eval.batch * jax.local_device_count(),
    made_by={
      "run": config.name,
      "workdir": drawn_images.home(workdir),
      "step": step,
      # Another run may have taken its place, and saved the same step.
      "state": checkpoint.fingerprint(workdir, step),
      **how,
    },
  )


def _drawn_by(images: str) -> dict[str, Any]:
  """What drew a folder, where --workdir asks for it; checked before work."""
  if not _WORKDIR.value:
    return {}
  by = file_results.made_by(images, _WORKDIR.value, _STEP.value)
  _config_of(_WORKDIR.value)  # the report will need it
  return by


def _store(result: Mapping[str, Any], by: Mapping[str, Any], say: Say) -> None:
  """Writes the result from process 0: to --out, and to the run of --workdir.

  Args:
    result: of images.
    by: what drew them; empty without --workdir.
    say: takes the places.
  """
  if jax.process_index():
    return
  if _OUT.value:
    text = json.dumps(result, indent=2) + "\n"
    files.write(_OUT.value, text)
    say(f"result: {_OUT.value}")
  if by:
    rows = file_results.rows(result, by)
    evaluation.record(_config_of(_WORKDIR.value), _WORKDIR.value, rows)
    say(f"report: {_WORKDIR.value}/{evaluation.REPORT}")


def _config_of(workdir: str) -> Config:
  """The given configuration, or that of the run's newest checkpoint."""
  if _CONFIG.value is not None:
    return systems.resolve(_CONFIG.value)
  step = checkpoint.latest_step(workdir)
  return systems.resolve(checkpoint.read_config(workdir, step))


if __name__ == "__main__":
  cli.run(main)
