"""big_vision's data sets and preprocessing strings as a source of records.

  config.data.train.mine.format = "big_vision"
  config.data.train.mine.path = "bv:jsonl(fname='train.jsonl',
      fopen_keys={'image': 'photos'})|decode|resize(256)"
  config.data.train.mine.text = "suffix"

Before the first "|" stands a data set and its arguments, as in big_vision's
`config.input.data` (without "bv:" a TFDS name), after it a preprocessing
string. What comes out needs `image`, encoded or as uint8 pixels, and `text`;
the keys can be renamed by the source's `image` and `text`. A `prefix` that is
not empty is the question that `text` answers. Needs the extra "big_vision" and
a checkout of github.com/google-research/big_vision on PYTHONPATH; paths are
big_vision's own, not below data.root.
"""

import importlib
from typing import Any

import numpy as np

from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data import json_files, tasks
from unifluid_jax.data.images import encode_image
from unifluid_jax.data.records import Record

_OPERATIONS = ("ops_general", "ops_image", "ops_text")


class BigVisionReader:
  """All examples in memory, images encoded: tf.data has no access by index."""

  def __init__(self, config: SourceConfig, key: str):
    """Reads the whole data set, or its first `config.limit` examples.

    Args:
      config: `path`, and the names of `image` and `text`.
      key: the source's place in the configuration, for messages.

    Raises:
      ValueError: big_vision or TensorFlow is not installed, an unknown data
        set or operation, or an example that lacks its image or text.
    """
    try:
      core = importlib.import_module("big_vision.datasets.core")
      builder = importlib.import_module("big_vision.pp.builder")
      registry = importlib.import_module("big_vision.pp.registry")
      for name in _OPERATIONS:
        importlib.import_module(f"big_vision.pp.{name}")
    except ImportError as error:
      raise ValueError(
        f"{key}.format='big_vision' ({error}): put a checkout of "
        "github.com/google-research/big_vision on PYTHONPATH, and "
        'pip install -e ".[big_vision]"'
      ) from error
    name, _, operations = config.path.partition("|")
    set_name, _, rest = name.partition("(")
    try:
      # A name of its own for the parser: "bv:jsonl" is no identifier.
      _, _, arguments = registry.parse_name(f"data({rest}" if rest else "data")
      examples = core.get(set_name, **arguments).get_tfdata(
        ordered=True, process_split=False
      )
      examples = examples.map(
        builder.get_preprocess_fn(operations, log_data=False)
      )
      if config.limit:
        examples = examples.take(config.limit)
      found = list(examples.as_numpy_iterator())
    # Operations of a preprocessing string, and TensorFlow, raise anything.
    except Exception as error:
      what = " ".join(f"{type(error).__name__}: {error}".split())
      raise ValueError(f"{key}.path={config.path!r}: {what}") from error
    self._records = [
      _record(config, f"{key}:{i}", example) for i, example in enumerate(found)
    ]
    self.bad: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self._records)

  def mask(self, task: str) -> np.ndarray | None:
    """Captions serve all but edits and dialogues, questions no generation."""
    if task in (tasks.EDIT, tasks.DIALOGUE):
      return np.zeros(len(self), bool)
    if task == tasks.T2I:
      return np.asarray([bool(r.captions) for r in self._records], bool)
    return None

  def __getitem__(self, i: int) -> Record:
    return self._records[i]


def _record(config: SourceConfig, name: str, example: dict[str, Any]) -> Record:
  missing = [k for k in (config.image, config.text) if k not in example]
  if missing:
    raise ValueError(
      f"{name} lacks {', '.join(missing)}; it has {', '.join(sorted(example))}"
    )
  image, text = _encoded(name, example[config.image]), example[config.text]
  question = _string(example.get("prefix", b"")).strip()
  if question:
    return Record(name, image, questions=((question, _string(text)),))
  return Record(name, image, captions=(_string(text),))


def _encoded(name: str, image: Any) -> bytes:
  """A file's bytes as they are, pixels as PNG."""
  if isinstance(image, bytes):
    return image
  if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
    kind = getattr(image, "dtype", type(image).__name__)
    raise ValueError(
      f"{name}: the image is {kind}: leave it encoded or as uint8 (no "
      "value_range in the preprocessing string), it is scaled later"
    )
  return encode_image(image)


def _string(value: Any) -> str:
  """Text of a tensor's value; of several, the first."""
  if isinstance(value, np.ndarray):
    value = value.reshape(-1)[0] if value.size else b""
  if isinstance(value, bytes):
    return value.decode(errors="replace")
  return json_files.text(value, "a text's value")
