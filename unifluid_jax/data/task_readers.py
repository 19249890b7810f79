"""Raw files of the captioning and photograph tasks as examples.

Every reader takes the data set's folder and a split. The layouts are those
in which the sets are published (big_vision datasets/* read the same); where
images live elsewhere, link their folder. Questions and answers come as
written: casing is the business of the task's row in `tasks`.
"""

import functools
import io
import json
import os
from typing import Any

from etils import epath
from PIL import Image

from unifluid_jax.data.task_files import (
  Box,
  Example,
  Folder,
  grouped,
  member,
  strings,
)

Root = str | os.PathLike[str]

_RICO_HEIGHT = 2560  # of a screen in view-hierarchy units


def jsonl(root: Root, split: str) -> list[Example]:
  """big_vision's JSONL: {"image": path, "prefix": str, "suffix": str}.

  Files: {split}.jsonl; images relative to the folder. The id is the line's
  number from 0. A prefix is the whole prompt; other fields are ignored.

  Raises:
    FileNotFoundError: the file, or the first image, is missing.
    ValueError: a line that is not such an object, or names a URL.
  """
  folder = Folder(root, "jsonl")
  file, lines = folder.lines(f"{split}.jsonl")

  def build(item: tuple[int, str]) -> Example:
    number, line = item
    entry = json.loads(line)
    image, suffix = entry["image"], entry["suffix"]
    if "://" in image:
      raise ValueError(f"image {image} is a URL; download it and name the file")
    answers = (suffix,) if isinstance(suffix, str) else strings(suffix)
    prefix = entry["prefix"]
    return Example(
      str(number), (folder.path(image),), prefix, answers, prefix=prefix
    )

  return folder.examples(file, enumerate(lines), build)


# Captions


def coco_karpathy(root: Root, split: str) -> list[Example]:
  """COCO captions in Karpathy's split: train, restval, val, test.

  Files: dataset_coco.json; train2014/ and val2014/ with COCO's images.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "COCO captions")
  folder.split(split, "train", "restval", "val", "test")
  file, content = folder.json("dataset_coco.json")

  def build(entry: Any) -> Example | None:
    if entry["split"] != split:
      return None
    return Example(
      str(entry["cocoid"]),
      (folder.path(entry["filepath"], entry["filename"]),),
      answers=tuple(s["raw"].strip() for s in entry["sentences"]),
    )

  return folder.examples(file, member(file, content, "images"), build)


def coco_captions(root: Root, split: str) -> list[Example]:
  """COCO's own caption files, whose splits are train2014, val2014 and so on.

  Files: annotations/captions_{split}.json; {split}/ with the images.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "COCO captions")
  file, content = folder.json(f"annotations/captions_{split}.json")
  annotations = member(file, content, "annotations")
  captions = grouped(file, annotations, "image_id", "caption")

  def build(entry: Any) -> Example | None:
    given = captions.get(str(entry["id"]), ())
    image = folder.path(split, entry["file_name"])
    answers = tuple(c.strip() for c in given)
    return Example(str(entry["id"]), (image,), answers=answers)

  return folder.examples(file, member(file, content, "images"), build)


def textcaps(root: Root, split: str) -> list[Example]:
  """TextCaps: train, val, and test without captions.

  Files: TextCaps_0.1_{split}.json; train_images/ (of val too), test_images/.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "TextCaps")
  folder.split(split, "train", "val", "test")
  file, content = folder.json(f"TextCaps_0.1_{split}.json")
  images = "test_images" if split == "test" else "train_images"
  rows = member(file, content, "data")
  captions: dict[str, list[str]] = {}
  if split == "test":
    captions = {str(i): [] for i in _ids(file, rows)}
  else:
    captions = grouped(file, rows, "image_id", "caption_str")

  def build(item: tuple[str, list[str]]) -> Example:
    image_id, given = item
    image = folder.path(images, f"{image_id}.jpg")
    return Example(image_id, (image,), answers=tuple(given))

  return folder.examples(file, captions.items(), build)


def _ids(file: str, rows: Any) -> list[str]:
  return list(grouped(file, rows, "image_id", "image_id"))


def screen2words(root: Root, split: str) -> list[Example]:
  """Screen2Words on RICO's screens: train, dev, test.

  Files: screen_summaries.csv; split/{split}_screens.txt; RICO's combined/.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "Screen2Words")
  folder.split(split, "train", "dev", "test")
  file, rows = folder.rows("screen_summaries.csv", "screenId", "summary")
  summaries = grouped(file, rows, "screenId", "summary")
  listed, screens = folder.lines(f"split/{split}_screens.txt")

  def build(screen: str) -> Example:
    image = folder.path("combined", f"{int(screen)}.jpg")
    return Example(
      str(int(screen)), (image,), answers=tuple(summaries[str(int(screen))])
    )

  return folder.examples(listed, screens, build)


def widgetcap(root: Root, split: str) -> list[Example]:
  """Widget Captioning on RICO's screens: train, dev, test.

  Files: widget_captions.csv; {split}.txt; RICO's combined/ with images and
  view hierarchies. The box is in units of the image's height, whatever its
  resolution: a RICO screen is 2560 units high.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`; a node that the screen lacks.
  """
  folder = Folder(root, "WidgetCap")
  folder.split(split, "train", "dev", "test")
  columns = ("screenId", "nodeId", "captions")
  file, rows = folder.rows("widget_captions.csv", *columns)
  screens = frozenset(folder.lines(f"{split}.txt")[1])

  @functools.lru_cache(maxsize=16)  # rows of a screen stand together
  def tree(screen: str) -> Any:
    path, content = folder.json(f"combined/{screen}.json")
    return member(path, content, "activity", "root")

  def build(row: dict[str, str]) -> Example | None:
    screen, node = row["screenId"], row["nodeId"]
    if screen not in screens:
      return None
    return Example(
      f"{screen}_{node}",
      (folder.path("combined", f"{screen}.jpg"),),
      answers=tuple(row["captions"].split("|")),
      box=_widget(tree(screen), node),
    )

  return folder.examples(file, rows, build)


def _widget(root: Any, node: str) -> Box:
  """The box of a node whose path, as "0.2.1", begins at the root."""
  for index in node.split(".")[1:]:
    root = root["children"][int(index)]
  xmin, ymin, xmax, ymax = (v / _RICO_HEIGHT for v in root["bounds"])
  return ymin, xmin, ymax, xmax


# Questions about photographs


def okvqa(root: Root, split: str) -> list[Example]:
  """OK-VQA: train, val; ten answers a question, as corrected (not raw).

  Files: OpenEnded_mscoco_{split}2014_questions.json,
  mscoco_{split}2014_annotations.json; {split}2014/ with COCO's images.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`; a question without answers.
  """
  folder = Folder(root, "OKVQA")
  year = folder.split(split, "train", "val") + "2014"
  file, content = folder.json(f"OpenEnded_mscoco_{year}_questions.json")
  noted, notes = folder.json(f"mscoco_{year}_annotations.json")
  answers = {
    e.id: e.answers
    for e in folder.examples(
      noted,
      member(noted, notes, "annotations"),
      lambda a: Example(
        str(a["question_id"]), (), "", tuple(x["answer"] for x in a["answers"])
      ),
    )
  }

  def build(entry: Any) -> Example:
    key = str(entry["question_id"])
    image = f"COCO_{year}_{int(entry['image_id']):012d}.jpg"
    return Example(
      key, (folder.path(year, image),), entry["question"], answers[key]
    )

  return folder.examples(file, member(file, content, "questions"), build)


def aokvqa(root: Root, split: str) -> list[Example]:
  """A-OKVQA: train, val, and test without answers.

  Files: aokvqa_v1p0_{split}.json; {split}2017/ with COCO's images. Serves
  both the direct answers and the multiple choice.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "AOKVQA")
  folder.split(split, "train", "val", "test")
  file, content = folder.json(f"aokvqa_v1p0_{split}.json")
  hidden = split == "test"

  def build(entry: Any) -> Example:
    image = f"{int(entry['image_id']):012d}.jpg"
    return Example(
      entry["question_id"],
      (folder.path(f"{split}2017", image),),
      entry["question"],
      () if hidden else strings(entry["direct_answers"]),
      strings(entry["choices"]),
      -1 if hidden else int(entry["correct_choice_idx"]),
    )

  return folder.examples(file, content, build)


def gqa(root: Root, split: str) -> list[Example]:
  """GQA: train_balanced, val_balanced, testdev_balanced and the like.

  Files: {split}_questions.json; images/.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "GQA")
  name = f"{split}_questions.json"
  file, content = folder.json(name, f"questions1.2/{name}")

  def build(item: tuple[str, Any]) -> Example:
    key, entry = item
    image = folder.path("images", f"{entry['imageId']}.jpg")
    answers = (entry["answer"],) if "answer" in entry else ()
    return Example(key, (image,), entry["question"], answers)

  return folder.examples(file, member(file, {"": content}, "").items(), build)


def nlvr2(root: Root, split: str) -> list[Example]:
  """NLVR2's pairs of photographs: train, dev, test1.

  Files: {split}.json (or data/{split}.json), one object a line. The images of
  "dev-3-1-0" are dev-3-1-img0.png and -img1.png, in {split}/, images/{split}/
  or, for training, images/train/{directory}/. The question is the sentence.

  Differs: big_vision publishes no reader of this set; where the images lie
  follows the set's own release and could not be checked against it.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "NLVR2")
  folder.split(split, "train", "dev", "test1")
  name = f"{split}.json"
  found = folder.find(name, f"data/{name}")
  file, lines = folder.lines(os.path.relpath(found, folder.root))
  flat = folder.find(split, f"images/{split}")

  def build(line: str) -> Example:
    entry = json.loads(line)
    stem = entry["identifier"].rpartition("-")[0]
    nested = os.path.join(flat, str(entry.get("directory", "")))
    base = nested if nests else flat
    pair = tuple(os.path.join(base, f"{stem}-img{i}.png") for i in range(2))
    return Example(
      entry["identifier"], pair, entry["sentence"], (entry["label"],)
    )

  nests = any(p.is_dir() for p in epath.Path(flat).iterdir())
  return folder.examples(file, lines, build)


def vizwiz(root: Root, split: str) -> list[Example]:
  """VizWiz VQA: train, val, and test without answers; blank answers drop out.

  Files: annotations/{split}.json; {split}/ with the images. The id is the
  number in the image's name.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "VizWizVQA")
  folder.split(split, "train", "val", "test")
  name = f"{split}.json"
  file, content = folder.json(f"annotations/{name}", f"Annotations/{name}")

  def build(entry: Any) -> Example:
    given = () if split == "test" else entry["answers"]
    stem = os.path.splitext(entry["image"])[0]
    return Example(
      str(int(stem.rpartition("_")[2])),
      (folder.path(split, entry["image"]),),
      entry["question"],
      tuple(a["answer"] for a in given if a["answer"]),
    )

  return folder.examples(file, content, build)


def tallyqa(root: Root, split: str) -> list[Example]:
  """TallyQA: train, test; the test's kinds are "simple" and "complex".

  Files: {split}.json; VG_100K/, VG_100K_2/, train2014/, val2014/.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`.
  """
  folder = Folder(root, "TallyQA")
  folder.split(split, "train", "test")
  file, content = folder.json(f"{split}.json")

  def build(entry: Any) -> Example:
    kind = ""
    if split == "test":
      kind = "simple" if entry["issimple"] else "complex"
    return Example(
      f"{entry['image_id']}/{entry['question_id']}",
      (folder.path(entry["image"]),),
      entry["question"],
      (str(int(entry["answer"])),),
      kind=kind,
    )

  return folder.examples(file, content, build)


def countbench(root: Root, split: str) -> list[Example]:
  """CountBenchQA, whose one split is "test".

  Files: countbench_paired_questions.json (big_vision's), and the one parquet
  file of CountBench here or in data/; question i belongs to row i. Rows
  without an image and images of one channel drop out, as in big_vision.

  Raises:
    FileNotFoundError, ValueError: as `jsonl`; files of different lengths.
  """
  import pyarrow.parquet  # slow to load, and no other reader needs it

  folder = Folder(root, "CountBenchQA")
  folder.split(split, "test")
  file, questions = folder.json("countbench_paired_questions.json")
  tables = sorted(folder.root.glob("*.parquet"))
  tables = tables or sorted(folder.root.glob("data/*.parquet"))
  if len(tables) != 1:
    raise FileNotFoundError(
      f"{os.fspath(folder.root)} holds {len(tables)} parquet files: put "
      "CountBench's one there"
    )
  table = os.fspath(tables[0])
  try:
    columns = pyarrow.parquet.read_table(table, columns=["image", "number"])
  except (pyarrow.ArrowException, ValueError) as error:
    raise ValueError(
      f"{table} has no image and number columns ({error}): download it again"
    ) from error
  if len(questions) != columns.num_rows:
    raise ValueError(
      f"{file} has {len(questions)} questions, {table} {columns.num_rows} "
      "rows: they must be of one release"
    )

  def build(item: tuple[int, Any]) -> Example | None:
    i, row = item
    data = (row["image"] or {}).get("bytes")
    if not data or len(Image.open(io.BytesIO(data)).getbands()) == 1:
      return None
    answer = str(int(row["number"]))
    return Example(str(i), (data,), questions[i]["question"], (answer,))

  return folder.examples(table, enumerate(columns.to_pylist()), build)
