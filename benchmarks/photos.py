"""Photographs with captions, as a folder that configs/folder.py trains on.

  pip install scikit-image scikit-learn
  python -m benchmarks.photos runs/photos

Copies eighteen pictures that scikit-image and scikit-learn ship, and writes
their captions twice: captions.jsonl, and annotations.json as COCO does.
"""

import json
import shutil
import sys
from importlib import util
from pathlib import Path

CAPTIONS = {
  "skimage/data/astronaut.png": "an astronaut in an orange suit smiles",
  "skimage/data/brick.png": "a wall of bricks",
  "skimage/data/camera.png": "a man with a camera on a tripod",
  "skimage/data/cell.png": "a cell under a microscope",
  "skimage/data/chelsea.png": "a ginger cat looks at the camera",
  "skimage/data/coffee.png": "a cup of coffee on a wooden table",
  "skimage/data/coins.png": "rows of old coins",
  "skimage/data/grass.png": "a lawn of grass seen from above",
  "skimage/data/gravel.png": "grey gravel",
  "skimage/data/hubble_deep_field.jpg": "many galaxies in a black sky",
  "skimage/data/ihc.png": "stained tissue in brown and blue",
  "skimage/data/moon.png": "craters on the moon",
  "skimage/data/motorcycle_left.png": "a motorcycle in a garage",
  "skimage/data/page.png": "a printed page in the shade",
  "skimage/data/retina.jpg": "the retina of an eye",
  "skimage/data/rocket.jpg": "a rocket on its launch pad",
  "sklearn/datasets/images/china.jpg": "a chinese temple under a blue sky",
  "sklearn/datasets/images/flower.jpg": "a red and yellow flower",
}


def main(target: str) -> None:
  """Writes the folder `target`."""
  root = Path(target)
  (root / "images").mkdir(parents=True, exist_ok=True)
  lines, images, annotations = [], [], []
  for number, (path, caption) in enumerate(CAPTIONS.items()):
    package, _, rest = path.partition("/")
    spec = util.find_spec(package)
    if spec is None:
      raise SystemExit(f"no {package}: pip install scikit-image scikit-learn")
    file = Path(spec.submodule_search_locations[0]) / rest
    shutil.copy(file, root / "images" / file.name)
    name = f"images/{file.name}"
    lines.append(json.dumps({"image": name, "prefix": "", "suffix": caption}))
    images.append({"id": number, "file_name": file.name})
    annotations.append({"image_id": number, "caption": caption})
  (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
  coco = {"images": images, "annotations": annotations}
  (root / "annotations.json").write_text(json.dumps(coco))
  print(f"{len(lines)} photographs with captions in {root}")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    raise SystemExit(__doc__)
  main(sys.argv[1])
