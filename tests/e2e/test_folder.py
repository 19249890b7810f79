"""README's commands for one's own images, JSONL and COCO, at two steps."""

import json

import numpy as np
from PIL import Image

from tests.e2e.commands import REPO, command, rows

SMALL = {
  "model.vae.base": 32, "steps": 2, "checkpoint.every": 2, "log.every": 1,
}  # fmt: skip
UNIFLUID = {
  "batch.t2i": 2, "model.decoder.width": 32, "model.decoder.depth": 1,
  "model.vit.width": 32, "model.vit.depth": 1, "model.head.width": 32,
  "model.head.depth": 1, "sampling.steps": 2,
}  # fmt: skip
CAPTIONS = ("a red sky", "a green field", "a blue lake", "a grey road")


def flags(config, root, **changes):
  settings = SMALL | changes | {
    "data.root": root, "text.tokenizer": f"{root}/tokenizer.model"
  }  # fmt: skip
  return [
    f"--config={REPO}/configs/{config}",
    *(f"--config.{k}={v}" for k, v in settings.items()),
  ]


def model_flags(root, **changes):
  path = {"model.vae_path": f"{root}/vae"}
  return flags("folder.py", root, **UNIFLUID, **path, **changes)


def photos(root):
  rng = np.random.default_rng(0)
  coco = {"images": [], "annotations": []}
  (root / "images").mkdir()
  with (root / "captions.jsonl").open("w") as lines:
    for i, caption in enumerate(CAPTIONS):
      name = f"images/{i}.png"
      pixels = rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(root / name)
      row = {"image": name, "prefix": "", "suffix": caption}
      lines.write(json.dumps(row) + "\n")
      coco["images"].append({"id": i, "file_name": f"{i}.png"})
      coco["annotations"].append({"image_id": i, "caption": caption})
  (root / "annotations.json").write_text(json.dumps(coco))


def test_folder_of_images(tmp_path):
  photos(tmp_path)
  command("prepare", *model_flags(tmp_path))
  vae = flags("vae.py:folder", tmp_path, **{"batch.image": 2})
  command("main", *vae, f"--workdir={tmp_path}/vae")
  said = command("encode", *model_flags(tmp_path)).stdout
  assert "latents: mean" in said
  run = tmp_path / "run"
  command("main", *model_flags(tmp_path), f"--workdir={run}")
  assert rows(run / "metrics.jsonl")[-1]["step"] == 2
  command("evaluate", *model_flags(tmp_path), f"--workdir={run}",
          "--once")  # fmt: skip
  scores = rows(run / "metrics_eval.jsonl")
  names = {r["metric"] for r in scores if "value" in r}
  assert names == {"captions/exact", "captions/cider_d"}
  coco = {
    "data.train.images.format": "coco",
    "data.train.images.path": "annotations.json:images",
    "model.vae.latent_mean": 0.0,  # else measured again, of this data set
    "model.vae.latent_scale": 1.0,
  }
  command("main", *model_flags(tmp_path, **coco),
          f"--workdir={tmp_path}/coco")  # fmt: skip
  assert rows(tmp_path / "coco" / "metrics.jsonl")[-1]["step"] == 2
