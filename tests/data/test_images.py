"""Images of strangers: the same pixels as ever, or one line; never a bomb."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from unifluid_jax import api
from unifluid_jax.data import images, transforms
from unifluid_jax.data.records import BadRecord

RNG = np.random.default_rng


def encode(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def noise(*shape, dtype=np.uint8):
  top = np.iinfo(dtype).max + 1
  return RNG(0).integers(0, top, shape, dtype)


def plain(data):
  """What decoding has been from the start, in Pillow's own words."""
  with Image.open(io.BytesIO(data)) as image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
      wide = np.asarray(image).astype(np.int64) >> 8
      image = Image.fromarray(wide.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
      image = image.convert("RGBA")
      white = Image.new("RGBA", image.size, "white")
      image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def exif(orientation):
  found = Image.Exif()
  found[0x0112] = orientation
  return found


def kinds():
  """Encoded images of all formats and modes that are opened."""
  rgb, rgba = Image.fromarray(noise(9, 7, 3)), Image.fromarray(noise(9, 7, 4))
  grey = Image.fromarray(noise(9, 7))
  deep = Image.fromarray(noise(9, 7, dtype=np.uint16))
  frames = [Image.fromarray(noise(9, 7, 3)[::s].copy()) for s in (1, -1)]
  palette = rgb.quantize(16)
  turned = {f"exif {i}": encode(rgb, "JPEG", exif=exif(i)) for i in range(10)}
  return turned | {
    "rgb png": encode(rgb, "PNG"),
    "rgba png": encode(rgba, "PNG"),
    "rgba webp": encode(rgba, "WEBP", lossless=True),
    "rgb webp": encode(rgb, "WEBP"),
    "turned png": encode(rgba, "PNG", exif=exif(8)),
    "grey": encode(grey, "PNG"),
    "grey with a key": encode(grey, "PNG", transparency=9),
    "rgb with a key": encode(rgb, "PNG", transparency=(1, 2, 3)),
    "grey and alpha": encode(rgba.convert("LA"), "PNG"),
    "bits": encode(grey.convert("1"), "PNG"),
    "palette": encode(palette, "PNG"),
    "palette with alpha": encode(palette, "PNG", transparency=bytes(range(16))),
    "gif": encode(palette, "GIF", transparency=3),
    "animated gif": encode(frames[0], "GIF", save_all=True,
                           append_images=frames[1:]),
    "animated webp": encode(frames[0], "WEBP", save_all=True,
                            append_images=frames[1:]),
    "apng": encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
    "16 bits": encode(deep, "PNG"),
    "16 bits tiff": encode(deep, "TIFF"),
    "cmyk": encode(rgb.convert("CMYK"), "JPEG"),
    "cmyk tiff": encode(rgb.convert("CMYK"), "TIFF"),
    "lzw tiff": encode(rgb, "TIFF", compression="tiff_lzw"),
    "float tiff": encode(Image.fromarray(np.float32(noise(9, 7))), "TIFF"),
    "bmp": encode(rgb, "BMP"),
    "two shots": encode(frames[0], "MPO", save_all=True,
                        append_images=frames[1:]),
  }  # fmt: skip


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("band", [7, 1 << 20])
def test_pixels_are_those_of_plain_decoding(kind, band, monkeypatch):
  monkeypatch.setattr(images, "_BAND", band)  # 7: a band is one row
  got = images.decode_image(KINDS[kind])
  assert got.dtype == np.uint8 and got.flags.writeable
  np.testing.assert_array_equal(got, plain(KINDS[kind]))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
showpage
"""


def test_no_program_is_started(monkeypatch):
  started = []
  monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started.append)
  with pytest.raises(BadRecord, match="it is no PNG, JPEG, WEBP, GIF, BMP or"):
    images.decode_image(EPS)
  assert not started


@pytest.mark.parametrize(
  "kind", ["PPM", "TGA", "ICO", "PCX", "JPEG2000", "DDS"]
)
def test_other_formats_are_not_opened(kind):
  data = encode(Image.fromarray(noise(16, 16, 3)), kind)
  with pytest.raises(BadRecord, match="it is no PNG"):
    images.decode_image(data)
  with pytest.raises(BadRecord, match="it is no PNG"):
    images.channels(data)


def test_images_are_opened_in_one_place():
  package = Path(images.__file__).parent.parent
  opening = [p for p in package.rglob("*.py") if "Image.open(" in p.read_text()]
  assert opening == [Path(images.__file__)]
  assert Path(images.__file__).read_text().count("formats=FORMATS") == 2


def png_of(width, height):
  """A header that promises pixels, and next to none of them."""

  def chunk(name, data):
    crc = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + crc

  header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
  rest = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest


@pytest.mark.parametrize(
  "side, limit, message",
  [
    (13_000, images.MAX_PIXELS, r"13000 x 13000 pixels, more than "
     r"data\.max_pixels=48000000: reduce it"),
    (13_400, 1000, r"more pixels than data\.max_pixels=1000"),
    (60_000, images.MAX_PIXELS, r"more pixels than data\.max_pixels=48000000"),
    (32, 1023, r"32 x 32 pixels, more than data\.max_pixels=1023"),
  ],
)  # fmt: skip
def test_large_images_are_refused_by_their_header(
  side, limit, message, monkeypatch
):
  def load(self):
    raise AssertionError("decoded")

  monkeypatch.setattr(Image.Image, "load", load)
  monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
  with pytest.raises(BadRecord, match=message):
    images.decode_image(png_of(side, side), limit)


def test_a_tile_larger_than_its_image_is_refused():
  tile = zlib.compress(bytes(100))
  tags = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16_384,
          323: 16_384, 324: 8 + 2 + 10 * 12 + 4, 325: len(tile)}  # fmt: skip
  data = b"II*\0" + struct.pack("<IH", 8, len(tags))
  for tag, value in tags.items():
    data += struct.pack("<HHII", tag, 4, 1, value)
  data += bytes(4) + tile
  with Image.open(io.BytesIO(data)) as image:
    assert image.size == (4, 4)
  with pytest.raises(BadRecord, match="16384 x 16384 pixels"):
    images.decode_image(data)


@pytest.mark.parametrize(
  "kind", ["rgba png", "exif 6", "rgba webp", "animated gif", "lzw tiff", "bmp"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_of_any_kind_is_a_bad_record(kind):
  whole, rng = KINDS[kind], RNG(0)
  good = 0
  for trial in range(150):
    data = bytearray(whole)
    if trial % 3 == 0:
      del data[rng.integers(len(data)) :]
    for place in rng.integers(0, max(len(data), 1), trial % 4):
      if data:
        data[place] = rng.integers(256)
    try:
      good += images.decode_image(bytes(data)).shape[2] == 3
    except BadRecord as error:
      assert "\n" not in str(error)
  assert good < 150


def test_whatever_a_decoder_raises_is_a_bad_record(monkeypatch):
  def load(self):
    raise AssertionError("two\nlines")

  monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
  with pytest.raises(BadRecord, match="cannot be decoded: two lines$"):
    images.decode_image(KINDS["bmp"])


# ------------------------------------------------------------------- resizing


def enlarged_whole(image, size):
  """ADM's crop as it has been: the whole image is resized, then cropped."""
  picture = Image.fromarray(image)
  while min(picture.size) >= 2 * size:
    width, height = picture.size
    picture = picture.resize((width // 2, height // 2), Image.Resampling.BOX)
  scale = size / min(picture.size)
  width, height = (max(size, round(side * scale)) for side in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  left, top = (width - size) // 2, (height - size) // 2
  return np.array(picture.crop((left, top, left + size, top + size)))


SHAPES = [(9, 9), (31, 17), (5, 40), (3, 96), (33, 257), (2, 64), (64, 48)]


@pytest.mark.parametrize("shape", SHAPES + [s[::-1] for s in SHAPES])
@pytest.mark.parametrize("size", [8, 16])
def test_the_centre_crop_of_ordinary_images_is_exact(shape, size):
  image = noise(*shape, 3)
  got = transforms.centre_crop_resize(image, size)
  np.testing.assert_array_equal(got, enlarged_whole(image, size))
  whole = Image.fromarray(image).resize((size,) * 2, Image.Resampling.BILINEAR)
  squashed = transforms.squash_resize(image, size)
  np.testing.assert_array_equal(squashed, np.array(whole))


@pytest.mark.parametrize("length", [400, 401])
@pytest.mark.parametrize("turn", [False, True])
def test_the_crop_of_a_very_long_image_stays_in_the_middle(length, turn):
  ramp = np.broadcast_to(np.linspace(0, 255, length), (4, length))
  image = np.repeat(ramp[..., None], 3, -1).round().astype(np.uint8)
  image = image.transpose(1, 0, 2).copy() if turn else image
  got = transforms.centre_crop_resize(image, 8).astype(int)
  want = enlarged_whole(image, 8).astype(int)
  assert np.abs(got - want).max() <= 1  # a pixel of the source is 0.64


@pytest.mark.parametrize("length", [400, 401])
def test_the_crop_of_a_very_long_image_keeps_its_centre(length):
  half = noise(4, length // 2, 3)
  middle = noise(4, length % 2, 3)
  image = np.concatenate([half, middle, half[:, ::-1]], axis=1)
  got = transforms.centre_crop_resize(image, 8)
  np.testing.assert_array_equal(got, got[:, ::-1])


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1)])
@pytest.mark.parametrize("name", ["centre_crop_resize", "squash_resize"])
def test_long_images_are_never_enlarged_whole(shape, name, monkeypatch):
  rooms = []
  resize = Image.Image.resize

  def watched(self, size, *args, **kwargs):
    # Between its passes Pillow holds the new width at the old height.
    rooms.append(max(size[0] * size[1], size[0] * self.height))
    return resize(self, size, *args, **kwargs)

  monkeypatch.setattr(Image.Image, "resize", watched)
  got = getattr(transforms, name)(np.zeros((*shape, 3), np.uint8), 256)
  assert got.shape == (256, 256, 3)
  assert max(rooms) <= 1 << 24


# ---------------------------------------------------------------------- paths


@pytest.mark.parametrize(
  "name, message",
  [
    ("/etc/passwd", "absolute: write it relative"),
    ("gs://bucket/a.png", "absolute"),
    ("../../secret.png", "outside of data.root"),
    ("sub/../../../secret.png", "outside of data.root"),
    ("a\0.png", "NUL"),
  ],
)
def test_paths_out_of_the_root_are_refused(tmp_path, name, message):
  folder = str(tmp_path / "root/set")
  with pytest.raises(BadRecord, match=message):
    images.resolve_name(name, folder, str(tmp_path / "root"))


@pytest.mark.parametrize("root", ["root", ".", "", "root/", "elsewhere"])
def test_paths_within_the_root_or_beside_the_file_are_joined(
  tmp_path, monkeypatch, root
):
  monkeypatch.chdir(tmp_path)
  names = ["a.png", "sub/../b.png", "..c.png"]
  names += ["../d.png"] if root != "elsewhere" else []
  for name in names:
    got = images.resolve_name(name, "root/set", root)
    assert got == f"root/set/{name}"


def test_paths_on_an_object_store_stay_below_the_root():
  got = images.resolve_name("../a.png", "gs://b/root/set", "gs://b/root")
  assert got == "gs://b/root/set/../a.png"
  with pytest.raises(BadRecord, match="outside"):
    images.resolve_name("../../a.png", "gs://b/root/set", "gs://b/root")


def test_only_regular_files_are_read(tmp_path, monkeypatch):
  (tmp_path / "a.png").write_bytes(b"a")
  (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
  os.mkfifo(tmp_path / "fifo.png")  # without the check: waits for ever
  (tmp_path / "zero.png").symlink_to("/dev/zero")  # without it: never ends
  assert images.read_file(str(tmp_path / "link.png")) == b"a"
  for name in ("fifo.png", "zero.png", ""):
    with pytest.raises(BadRecord, match="no regular file"):
      images.read_file(str(tmp_path / name))
  with pytest.raises(BadRecord, match=r"unreadable: .*gone\.png"):
    images.read_file(str(tmp_path / "gone.png"))
  with pytest.raises(BadRecord, match="NUL|null byte"):
    images.read_file(str(tmp_path / "a\0"))
  monkeypatch.setattr(images, "MAX_BYTES", 0)
  with pytest.raises(BadRecord, match="1 bytes, images have 0 at most"):
    images.read_file(str(tmp_path / "a.png"))


def test_the_api_takes_only_what_data_sets_may_hold(tmp_path):
  (tmp_path / "a.png").write_bytes(KINDS["rgba png"])
  got = api.as_array(str(tmp_path / "a.png"))
  np.testing.assert_array_equal(got, plain(KINDS["rgba png"]))
  with pytest.raises(BadRecord, match=r"data\.max_pixels=62"):
    api.as_array(str(tmp_path / "a.png"), 62)
  with pytest.raises(ValueError, match="no regular file"):
    api.as_array(str(tmp_path))
  (tmp_path / "a.png").write_bytes(EPS)
  with pytest.raises(BadRecord, match="it is no PNG"):
    api.as_array(tmp_path / "a.png")
  with pytest.raises(FileNotFoundError, match=r"no image at .*gone\.png"):
    api.as_array(str(tmp_path / "gone.png"))


@pytest.mark.parametrize("name", sorted(KINDS))
def test_an_opened_image_has_the_pixels_of_its_file(name):
  """Transparency over white, 16 bits, turned as EXIF says."""
  got = api.as_array(Image.open(io.BytesIO(KINDS[name])))
  np.testing.assert_array_equal(got, images.decode_image(KINDS[name]))


@pytest.mark.parametrize("array", [
  np.ones((4, 4, 3)), np.ones((4, 4, 3), np.float32), np.ones((4, 4, 3), int),
  np.ones((4, 4), np.uint8), np.ones((4, 4, 4), np.uint8),
  np.ones((3, 4, 4), np.uint8), np.ones((0, 4, 3), np.uint8),
])  # fmt: skip
def test_an_array_of_other_numbers_is_refused(array):
  with pytest.raises(ValueError, match=r"give uint8\[height, width, 3\]"):
    api.as_array(array)
