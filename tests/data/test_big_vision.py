"""big_vision's examples as records; with big_vision itself: tests/parity."""

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image

from unifluid_jax.core.config import SourceConfig
from unifluid_jax.data.sources import big_vision
from unifluid_jax.data.sources import source as sources

CONFIG = SourceConfig(format="big_vision", path="bv:jsonl(fname='x')")


def record(**example):
  return big_vision._record(CONFIG, "data.train.x:0", example)


def test_captions_and_questions():
  made = record(image=b"jpeg", text=b"a cat", prefix=b"")
  assert made.image == b"jpeg" and made.captions == ("a cat",)
  made = record(image=b"jpeg", text=np.array([b"two", b"2"], object),
                prefix=b"how many")  # fmt: skip
  assert made.questions == (("how many", "two"),) and not made.captions


def test_pixels_are_encoded_without_loss():
  pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
  made = record(image=pixels, text=b"x")
  np.testing.assert_array_equal(Image.open(io.BytesIO(made.image)), pixels)


def test_errors_name_the_example():
  with pytest.raises(ValueError, match="x:0 lacks text; it has image, suffix"):
    record(image=b"", suffix=b"x")
  with pytest.raises(ValueError, match="x:0: the image is float32.*uint8"):
    record(image=np.zeros((2, 2, 3), np.float32), text=b"x")


@pytest.mark.skipif(
  importlib.util.find_spec("big_vision") is not None,
  reason="big_vision is installed",
)
def test_without_big_vision():
  with pytest.raises(
    ValueError, match=r"data.train.x.format=.*PYTHONPATH.*pip"
  ):
    sources.open_source(CONFIG, "", "caption en", "data.train.x")
