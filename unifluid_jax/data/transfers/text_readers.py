"""Raw files of tasks on charts, documents, diagrams, text and maps.

As in `photo_readers`: every reader takes the data set's folder and a split.
"""

import itertools
import os
import string
from typing import Any

from etils import epath

from unifluid_jax.data.transfers.files import (
  Box,
  Example,
  Folder,
  Root,
  grouped,
  member,
  pairs,
  share,
  strings,
)

_FONT = "DMSans-Regular.ttf"  # of AI2D's letters
_PSEUDO_VAL = 2628 / 26074  # of ST-VQA's training questions
_SPANS = 8  # of an answer of InfographicVQA: their orders are 40,320
_HELD_OUT = "pseudo_val_images.txt"  # of ST-VQA


def ai2d(root: Root, split: str) -> list[Example]:
  """AI2D's diagrams: train, test (the images that ai2d_test_ids.csv lists).

  Files: ai2d_test_ids.csv; questions/, annotations/ and images/, here or in
  ai2d/. Where a question speaks of letters (abcLabel), `letters` holds what
  is to be painted over the diagram's texts: in DM Sans, as big_vision does,
  if DMSans-Regular.ttf is there.

  Differs: without that file, in Pillow's own font.

  Raises:
    FileNotFoundError: a file, or the first image, is missing.
    ValueError: a file of another layout.
  """
  folder = Folder(root, "AI2D")
  folder.split(split, "train", "test")
  _, listed = folder.lines("ai2d_test_ids.csv")
  tests = frozenset(listed)
  base = os.path.dirname(folder.find("questions", "ai2d/questions"))
  below = Folder(base, "AI2D")
  font = folder.path(_FONT) if epath.Path(folder.path(_FONT)).exists() else ""
  found: list[Example] = []
  for path in sorted(epath.Path(base).glob("questions/*.json")):
    if (path.name.split(".")[0] in tests) != (split == "test"):
      continue
    file, content = below.json(f"questions/{path.name}")
    image = below.path("images", str(member(file, content, "imageName")))
    asked = pairs(file, member(file, content, "questions"))
    texts = None  # read where a question needs them
    if any(isinstance(e, dict) and e.get("abcLabel") for _, e in asked):
      texts = member(*below.json(f"annotations/{path.name}"), "text")

    def build(item: tuple[str, Any], image=image, texts=texts) -> Example:
      question, entry = item
      choices = strings(entry["answerTexts"])
      return Example(
        entry["questionId"],
        (image,),
        question,
        (choices[int(entry["correctAnswer"])],),
        choices,
        int(entry["correctAnswer"]),
        letters=_letters(texts) if entry["abcLabel"] else (),
        font=font,
      )

    if asked:  # some diagrams have no questions
      found += below.examples(file, asked, build)
  if not found:
    raise ValueError(
      f"{base}/questions has no {split} questions: unpack AI2D there"
    )
  return found


def _letters(texts: Any) -> tuple[tuple[str, Box], ...]:
  result = []
  for text in texts.values():
    (xmin, ymin), (xmax, ymax) = text["rectangle"]
    box = tuple(map(float, (ymin, xmin, ymax, xmax)))
    result.append((text["replacementText"], box))
  return tuple(result)


def science_qa(root: Root, split: str) -> list[Example]:
  """ScienceQA: train, val, test; only the problems with an image.

  Files: problems.json; {split}/{id}/{image}, here or in images/.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "ScienceQA")
  folder.split(split, "train", "val", "test")
  file, content = folder.json("problems.json")
  images = folder.find(f"images/{split}", split)

  def build(item: tuple[str, Any]) -> Example | None:
    key, entry = item
    if entry["split"] != split or not entry["image"]:
      return None
    choices, correct = strings(entry["choices"]), int(entry["answer"])
    if len(choices) > len(string.ascii_uppercase):
      raise ValueError(f"{len(choices)} choices, more than there are letters")
    return Example(
      key,
      (os.path.join(images, key, entry["image"]),),
      entry["question"],
      (choices[correct],),
      choices,
      correct,
      entry["hint"],
    )

  return folder.examples(file, pairs(file, content), build)


def rsvqa_lr(root: Root, split: str) -> list[Example]:
  """RSVQA low resolution: train, val, test; without counting questions.

  Files: LR_split_{split}_questions.json, LR_split_{split}_answers.json;
  Images_LR/*.tif. Kinds: comp, presence, rural_urban.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "RSVQA-lr")
  folder.split(split, "train", "val", "test")
  return _rsvqa(folder, f"LR_split_{split}", "Images_LR/{}.tif")


def rsvqa_hr(root: Root, split: str) -> list[Example]:
  """RSVQA high resolution: train, val, test, test_phili ("test 2").

  Files: USGS_split_{split}_questions.json, USGS_split_{split}_answers.json;
  Data/*.png. Questions of counts and areas drop out. Kinds: comp, presence.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "RSVQA-hr")
  folder.split(split, "train", "val", "test", "test_phili")
  return _rsvqa(folder, f"USGS_split_{split}", "Data/{}.png")


def _rsvqa(folder: Folder, stem: str, image: str) -> list[Example]:
  """The active questions whose answer is no number."""
  said, content = folder.json(f"{stem}_answers.json")
  # The files list the whole set; what is of another split is inactive there.
  active = [
    a
    for a in member(said, content, "answers")
    if isinstance(a, dict) and a.get("active")
  ]
  answers = grouped(said, active, "question_id", "answer")
  file, content = folder.json(f"{stem}_questions.json")

  def build(entry: Any) -> Example | None:
    if not entry["active"] or entry["type"] in ("count", "area"):
      return None
    key = str(entry["id"])
    return Example(
      key,
      (folder.path(image.format(entry["img_id"])),),
      entry["question"],
      tuple(answers[key]),
      kind=entry["type"],
    )

  return folder.examples(file, member(file, content, "questions"), build)


def chartqa(root: Root, split: str) -> list[Example]:
  """ChartQA: {train, val, test}_{human, augmented}, which is the kind.

  Files: {split}/{split}_{kind}.json; {split}/png/. The id is the kind and the
  place in the file, as the set has no ids.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "ChartQA")
  known = itertools.product(("train", "val", "test"), ("human", "augmented"))
  folder.split(split, *map("_".join, known))
  part, _, kind = split.partition("_")
  file, content = folder.json(f"{part}/{split}.json")

  def build(item: tuple[int, Any]) -> Example:
    i, entry = item
    return Example(
      f"{kind}/{i}",
      (folder.path(part, "png", entry["imgname"]),),
      entry["query"],
      (str(entry["label"]),),
      kind=kind,
    )

  items = list(enumerate(content)) if isinstance(content, list) else content
  return folder.examples(file, items, build)


def textvqa(root: Root, split: str) -> list[Example]:
  """TextVQA: train, val, and test without answers.

  Files: TextVQA_0.5.1_{split}.json; train_images/ (of val too), test_images/,
  each with OpenImages' rotation.csv if turned images are to be set upright.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "TextVQA")
  folder.split(split, "train", "val", "test")
  file, content = folder.json(f"TextVQA_0.5.1_{split}.json")
  images = "test_images" if split == "test" else "train_images"
  turns = _turns(folder, f"{images}/rotation.csv")

  def build(entry: Any) -> Example:
    image_id = str(entry["image_id"])
    return Example(
      str(entry["question_id"]),
      (folder.path(images, f"{image_id}.jpg"),),
      entry["question"],
      () if split == "test" else strings(entry["answers"]),
      turns=turns.get(image_id, 0) % 4,
    )

  return folder.examples(file, member(file, content, "data"), build)


def _turns(folder: Folder, name: str) -> dict[str, int]:
  """Counter-clockwise quarter turns by image; none without the file."""
  if not epath.Path(folder.path(name)).exists():
    return {}
  file, rows = folder.rows(name, "ImageID", "Rotation")
  try:
    return {r["ImageID"]: round(float(r["Rotation"] or 0)) // 90 for r in rows}
  except (ValueError, OverflowError) as error:
    raise ValueError(
      f"{file}: rotations must be degrees ({error}): download it again"
    ) from error


def docvqa(root: Root, split: str) -> list[Example]:
  """DocVQA: train, val, and test without answers.

  Files: {split}_v1.0_withQT.json (test: test_v1.0.json); the images at
  {split}/{image}, where an image is named documents/x.png.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "DocVQA")
  folder.split(split, "train", "val", "test")
  names = (f"{split}_v1.0_withQT.json", f"{split}_v1.0.json")
  file, content = folder.json(*names)

  def build(entry: Any) -> Example:
    return Example(
      str(entry["questionId"]),
      (folder.path(split, entry["image"]),),
      entry["question"],
      () if split == "test" else strings(entry["answers"]),
    )

  return folder.examples(file, member(file, content, "data"), build)


def infovqa(root: Root, split: str) -> list[Example]:
  """InfographicVQA: train, val, and test without answers.

  Files: infographicsVQA_{split}_v1.0.json or ..._withQT.json; images/. In val
  an answer of several spans, "a, b", is accepted in every order.

  Raises:
    FileNotFoundError, ValueError: as `ai2d`.
  """
  folder = Folder(root, "InfoVQA")
  folder.split(split, "train", "val", "test")
  stem = f"infographicsVQA_{split}_v1.0"
  file, content = folder.json(f"{stem}_withQT.json", f"{stem}.json")

  def build(entry: Any) -> Example:
    answers = () if split == "test" else strings(entry["answers"])
    if split == "val":
      if any(a.count(", ") >= _SPANS for a in answers):
        raise ValueError(f"an answer of more than {_SPANS} spans")
      orders = (itertools.permutations(a.split(", ")) for a in answers)
      answers = tuple(", ".join(o) for some in orders for o in some)
    return Example(
      str(entry["questionId"]),
      (folder.path("images", entry["image_local_name"]),),
      entry["question"],
      answers,
    )

  return folder.examples(file, member(file, content, "data"), build)


def stvqa(root: Root, split: str) -> list[Example]:
  """ST-VQA's open task (3): train, val (a pseudo-validation), and test.

  Files: train_task_3.json and train_images/, test_task_3.json and
  test_task3_images/; COCO's train2014/, if there, gives the full-size images
  of coco-text/; pseudo_val_images.txt, if there, lists the `file_path`s that
  "val" holds out of the training file.

  Differs: big_vision's list of held-out images is not public. Without a list,
  about as many images (10 %) are held out by a checksum of their path, so
  that numbers on "val" are near the published ones, not comparable to them.

  Raises:
    FileNotFoundError: as `ai2d`.
    ValueError: as `ai2d`; or the list is empty or names an unknown image.
  """
  folder = Folder(root, "ST-VQA")
  folder.split(split, "train", "val", "test")
  part = "test" if split == "test" else "train"
  file, content = folder.json(f"{part}_task_3.json")
  rows = member(file, content, "data")
  images = "test_task3_images" if split == "test" else "train_images"
  full = epath.Path(folder.path("train2014")).is_dir()
  listed = None if split == "test" else _held_out(folder, file, rows)

  def build(entry: Any) -> Example | None:
    name = entry["file_path"]
    held = name in listed if listed is not None else share(name) < _PSEUDO_VAL
    if split != "test" and held != (split == "val"):
      return None
    path = folder.path(images, name)
    if full and name.startswith("coco-text/"):
      path = folder.path("train2014", name.removeprefix("coco-text/"))
    return Example(
      str(entry["question_id"]),
      (path,),
      entry["question"],
      () if split == "test" else strings(entry["answers"]),
    )

  return folder.examples(file, rows, build)


def _held_out(folder: Folder, file: str, rows: Any) -> frozenset[str] | None:
  """The images that the list holds out of a file's rows; None without a list.

  Raises:
    ValueError: it is empty, or has a name that no row has.
  """
  if not epath.Path(folder.path(_HELD_OUT)).exists():
    return None
  path, listed = folder.lines(_HELD_OUT)
  known = grouped(file, rows, "file_path", "question_id")
  unknown = [name for name in listed if name not in known]
  if unknown or not listed:
    what = "it is empty"
    if unknown:
      what = f"{len(unknown)} of its {len(listed)} names are no file_path of "
      what += f"{file}, such as {unknown[0]!r}"
    raise ValueError(
      f"{path}: {what}: list file_paths as they stand there, one a line, or "
      "delete the list"
    )
  return frozenset(listed)
