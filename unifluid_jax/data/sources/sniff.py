"""What a file is, by how it begins: for `discover`."""

import glob
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from unifluid_jax.core import files
from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import json_files
from unifluid_jax.data.sources import tables

# What describes a data set, and lists no records.
DESCRIBING = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json",
              "state.json", "features.json", "tokenizer.json")  # fmt: skip
# Names of columns and keys, the likeliest first.
_IMAGES = ("image", "images", "file_name", "filename", "image_path",
           "filepath", "file", "path", "img", "picture", "photo", "jpg",
           "png")  # fmt: skip
_TEXTS = ("text", "texts", "caption", "captions", "description", "prompt",
          "title", "label", "class")  # fmt: skip
_QUESTIONS, _ANSWERS = ("question", "questions"), ("answer", "answers")
_HEAD = 1 << 20  # bytes looked at, of a large object at a time
_OVERLAP = 1 << 12  # bytes that two looks share
_COCO = re.compile(rb'"(?:images|annotations)"\s*:\s*\[')
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_IMAGE = re.compile(r'"images?"\s*:\s*\[?\s*("(?:[^"\\]|\\.)*")')
_EDITS = {
  "hq_edit": ("input_image", "edit", "output_image", "inverse_edit"),
  "ultra_edit": ("source_image", "edit_prompt", "edited_image"),
}


class Columns(NamedTuple):
  """Names of columns; those that are as in the configuration are empty."""

  image: str = ""
  text: str = ""
  question: str = ""


def list_of(path: str, config: SourceConfig) -> tuple[str, Columns, str]:
  """Format of a list, its columns, and the first image that it names.

  All are empty where it is none that is known.
  """
  try:
    files.check_regular(path)
    with open(path, "rb") as file:
      head = file.read(_HEAD)
  except (OSError, ValueError):
    return "", Columns(), ""
  text = head.decode("utf-8-sig", errors="replace")
  if path.endswith(".json"):
    return _json(path, text)
  if path.endswith(".jsonl"):
    found = _json_lines(text)
    if found:
      image = _first(_IMAGE, text) if found != "jsonl" else ""
      return found, Columns(), image
  try:
    names = tables.header(path)
  except ValueError:
    return "", Columns(), ""
  columns = choose(names, names, names, config)
  return ("table", columns, "") if columns else ("", Columns(), "")


def metadata_columns(path: str, config: SourceConfig) -> Columns:
  """Columns of an imagefolder's metadata; none where its texts are unknown."""
  names = tables.header(path)
  found = choose([tables.FILE_NAME], names, names, config)
  return found._replace(image="") if found else Columns()


def choose(
  images: Sequence[str],
  texts: Sequence[str],
  questions: Sequence[str],
  config: SourceConfig,
) -> Columns | None:
  """Columns by their names; None without images or texts.

  Args:
    images: columns that can hold images.
    texts: columns that can hold captions, or answers.
    questions: columns that can hold questions.
    config: what it names otherwise than by default is taken.
  """

  def pick(given: str, default: str, known: Sequence[str], there) -> str:
    if given != default:
      return given
    return next((k for k in known if k in there), "")

  image = pick(config.image, "image", _IMAGES, images)
  text = pick(config.text, "text", _TEXTS, texts)
  asked = config.question
  if config.text == "text" and not text:
    text = pick("", "", _ANSWERS, texts)
    asked = asked or pick("", "", _QUESTIONS, questions)
    text = text if asked else ""
  elif asked and config.text == "text":
    text = pick("", "", _ANSWERS, texts) or text
  return Columns(image, text, asked) if image and text else None


def _json(path: str, text: str) -> tuple[str, Columns, str]:
  """COCO's object, or a list of conversations."""
  if text.lstrip().startswith("["):
    entry = _entry(text[text.index("[") + 1 :].lstrip())
    found = _conversations(entry)
    return found, Columns(), _first(_IMAGE, text) if found else ""
  # All of it: in COCO's own files the second list begins in the middle.
  keys, image, seen = set(), "", b""
  with open(path, "rb") as file:
    while len(keys) < 2 or not image:
      part = file.read(_HEAD)
      if not part:
        break
      seen = seen[-_OVERLAP:] + part
      keys |= {m[0].split(b'"')[1] for m in _COCO.finditer(seen)}
      image = image or _first(_FILE_NAME, seen.decode(errors="replace"))
  return ("coco" if len(keys) == 2 else "", Columns(), image)


def _json_lines(text: str) -> str:
  """The format of lines: this package's, or conversations."""
  entry = _entry(text.lstrip())
  if "dialogue" in entry or "suffix" in entry:
    return "jsonl"
  return _conversations(entry)


def _conversations(entry: dict[str, Any]) -> str:
  if "conversations" in entry:
    return "llava"
  return "sharegpt" if "messages" in entry else ""


def _entry(text: str) -> dict[str, Any]:
  """The JSON object that a text begins with; empty for anything else."""
  try:
    found, _ = json.JSONDecoder().raw_decode(text)
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _first(pattern: re.Pattern[str], text: str) -> str:
  """The first name that a pattern finds."""
  found = pattern.search(text)
  try:
    return json.loads(found[1]).strip() if found else ""
  except ValueError:
    return ""


def image_folders(path: str, top: str, image: str) -> list[str]:
  """Where the images of a list may lie: beside it, else wherever one does.

  Args:
    path: of the list.
    top: of the data set; its subfolders and theirs are looked into.
    image: the first that the list names.

  Raises:
    ValueError: in none of them.
  """
  base = os.path.dirname(path)
  inner = [
    p
    for depth in ("*/", "*/*/")
    for p in sorted(glob.glob(os.path.join(glob.escape(top), depth)))
  ]
  for folders in ([base], [top], inner):
    if found := [f for f in folders if os.path.isfile(os.path.join(f, image))]:
      return found
  raise ValueError(
    f"{path} names the image {image!r}, found neither beside it nor below "
    f"{top}: unpack the images there, or name their folder, as LIST.json:FOLDER"
  )


# ------------------------------------------------------ Data sets of libraries


def saved_splits(path: str) -> list[str]:
  """The splits of a folder that `datasets` saved; empty for any other."""
  if not os.path.isfile(os.path.join(path, "dataset_dict.json")):
    return []
  from unifluid_jax.data.sources import arrow  # slow to load

  return arrow.splits(path)


def arrow_columns(folder: str, config: SourceConfig) -> Columns | None:
  """Columns of a saved data set; None without images or texts."""
  from unifluid_jax.data.sources import arrow

  found = arrow.schema(arrow.split_folder(folder, config.split))
  return _typed(found, config, arrow.features(folder))


def parquet_columns(file: str, config: SourceConfig) -> tuple[str, Columns]:
  """Format and columns of a Parquet file; empty without images or texts."""
  from unifluid_jax.data.sources import parquet

  found = parquet.schema(file)
  for form, names in _EDITS.items():
    if set(names) <= set(found.names):
      return form, Columns()
  columns = _typed(found, config, parquet.features(file))
  return ("parquet", columns) if columns else ("", Columns())


def _typed(schema: Any, config: SourceConfig, described: Any) -> Columns | None:
  """Columns by their types, then by their names."""
  import pyarrow as pa

  from unifluid_jax.data.sources import arrow

  def of(*kinds: Callable[[Any], bool]) -> list[str]:
    def fits(kind: Any) -> bool:
      inner = kind.value_type if arrow.is_listed(kind) else kind
      return any(k(inner) for k in kinds)

    return [f.name for f in schema if fits(f.type)]

  def encoded(kind: Any) -> bool:
    if not pa.types.is_struct(kind):
      return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return kind.get_field_index("bytes") >= 0

  def turns(kind: Any) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("assistant") >= 0

  string = (pa.types.is_string, pa.types.is_large_string)
  images = of(encoded)
  classes = [n for n in schema.names if arrow.class_names(described, n)]
  found = choose(images, [*of(*string, turns), *classes], of(*string), config)
  if found is None and len(images) == 1:  # whatever it is called
    found = choose(["image"], [*of(*string, turns), *classes], of(*string),
                   config)  # fmt: skip
    found = found and found._replace(image=images[0])
  return found


def prepared(path: str, depth: str) -> list[tuple[str, list[str]]]:
  """Folders of TensorFlow Datasets at some depth below a path; their splits."""
  pattern = os.path.join(glob.escape(path), depth, "dataset_info.json")
  found = []
  for info in sorted(glob.glob(pattern)):
    folder = os.path.dirname(info)
    if os.path.isfile(os.path.join(folder, "features.json")):
      content = json_files.load(info, "prepare the data set again")
      listed = content.get("splits") if isinstance(content, dict) else None
      listed = listed if isinstance(listed, list) else []
      named = [s.get("name") for s in listed if isinstance(s, dict)]
      found.append((folder, named))
  return found
