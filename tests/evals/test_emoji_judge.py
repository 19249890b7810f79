"""Looking pictures up, and judging by features, against plain computations."""

import collections

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from tests.evals import emoji_toys as toys
from unifluid_jax.data.worlds.emoji import Picture
from unifluid_jax.evals.worlds import emoji_classifier
from unifluid_jax.evals.worlds.emoji_album import Album, ConceptReader, Entry
from unifluid_jax.evals.worlds.emoji_classifier import Judge, views


def entry(picture, colour=(255, 255, 255), trained=True, prompt=None):
  image = np.full((64, 64, 3), colour, np.uint8)
  text = toys.caption(picture) if prompt is None else prompt
  return Entry(picture, image, text, text, (), (), trained)


def toy_album():
  return Album(
    [
      entry(p, np.asarray(toys.draw(p)).mean((0, 1)), p not in toys.HELD_OUT)
      for p in toys.pictures()
    ]
  )


# --------------------------------------------------------------------- look-ups


def plain_nearest(texts, query):
  """Cosine of idf-weighted sets of words."""
  sets = [set(t.replace(",", "").split()) for t in texts]
  asked = set(query.replace(",", "").split())
  documents = collections.Counter(w for s in sets for w in s)
  weight = {w: np.log((1 + len(texts)) / n) for w, n in documents.items()}

  def cosine(s):
    dot = sum(weight[w] ** 2 for w in s & asked)
    return dot / sum(weight[w] ** 2 for w in s) ** 0.5

  scores = np.round([cosine(s) for s in sets], 12)
  return np.flatnonzero(scores == scores.max())


def test_prompts_are_looked_up_by_their_rare_words():
  album = toy_album()
  texts = [e.prompt for e in album.trained]
  for picture in toys.pictures():
    got = album.by_words(toys.caption(picture))
    best = plain_nearest(texts, toys.caption(picture))
    assert any(album.trained[i] is got for i in best)
    if picture not in toys.HELD_OUT:
      assert got.picture == picture
  assert album.by_words("no word of it") is album.trained[0]
  rare = Album([
    entry(Picture(c, s, "g"), prompt=f"{c} {s}")
    for c, s in [("old cat", "noto"), ("dog", "noto"), ("dog", "fluent"),
                 ("cow", "noto"), ("cow", "fluent")]
  ])  # fmt: skip
  assert rare.by_words("old cat fluent").picture.concept == "old cat"


def test_images_are_looked_up_by_blurred_pixels():
  rng = np.random.default_rng(0)
  entries = [
    entry(p, trained=p not in toys.HELD_OUT)._replace(
      image=rng.integers(0, 256, (64, 64, 3), np.uint8)
    )
    for p in toys.pictures()
  ]
  album = Album(entries)

  def blurred(image):
    out = np.zeros((16, 16, 3))
    for y in range(16):
      for x in range(16):
        out[y, x] = image[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean((0, 1))
    return out

  query = rng.integers(0, 256, (64, 64, 3), np.uint8)

  def nearest(found):
    gaps = [((blurred(e.image) - blurred(query)) ** 2).sum() for e in found]
    return found[int(np.argmin(gaps))].picture

  trained = [e for e in entries if e.trained]
  assert album.by_pixels(query).picture == nearest(trained)
  noto = [e for e in trained if e.picture.style == "noto"]
  assert album.by_pixels(query, "noto").picture == nearest(noto)
  own = noto[3]
  assert album.by_pixels(own.image, "noto").picture == own.picture
  other = album.by_pixels(own.image, "noto", other_than=own.picture).picture
  assert other.style == "noto" and other != own.picture
  with pytest.raises(ValueError, match="no other training picture"):
    album.by_pixels(query, "emojione")
  with pytest.raises(ValueError, match="no training record"):
    Album([e for e in entries if not e.trained])


@pytest.mark.parametrize("text, concept, style", [
  ("cat face, noto style", "cat face", "noto"),
  ("a Cat in NOTO style", "cat", "noto"),
  ("the face of a cat", "cat", None),
  ("pineapple, fluent style", None, "fluent"),
  ("apple, noto and fluent style", "apple", None),
  ("woman: red hair", "woman: red hair", None),
  ("cat, apple", "cat", None),
  ("keycap: #, noto style", "keycap: #", "noto"),
  ("", None, None),
])  # fmt: skip
def test_what_a_text_names(text, concept, style):
  reader = ConceptReader(
    [
      "cat",
      "cat face",
      "apple",
      "woman",
      "woman: red hair",
      "keycap: #",
      "keycap: *",
    ],
    ["noto", "fluent", "noto"],
  )
  assert reader.concept(text) == concept
  assert reader.style(text) == style


# --------------------------------------------------------------------- verdicts


class Colours:
  """Features are the mean colour; each channel stands for a concept."""

  def features(self, images):
    return np.asarray(images).mean((1, 2))

  def predict(self, images):
    return self.features(images).argmax(1)[:, None]


RED, GREEN, BLUE = (255, 127, 127), (127, 255, 127), (127, 127, 255)
CAT, DOG, COW = (Picture(c, "noto", "g") for c in ("cat", "dog", "cow"))
PINK_CAT = Picture("cat", "fluent", "g")


def plane(colour):
  return np.full((64, 64, 3), colour, np.uint8)


def judge():
  return Judge(
    Colours(),
    Album(
      [
        entry(CAT, RED), entry(DOG, GREEN), entry(COW, BLUE),
        entry(PINK_CAT, BLUE),
        entry(CAT._replace(tone="dark"), (127, 255, 255)),
      ]
    ),
  )  # fmt: skip


def test_ranks_are_among_the_concepts_of_the_style():
  made = judge()
  assert made.ranks([plane(RED)] * 3, [CAT, DOG, COW]).tolist()[0] == 0
  # Not the blue cat of another style; a tone makes another concept.
  assert made.ranks([plane(BLUE)], [PINK_CAT]).tolist() == [0]
  assert made.ranks([plane(RED)], [PINK_CAT]).tolist() == [0]
  yellowish = plane((160, 255, 127))  # green, then red, cyan, blue
  dark = CAT._replace(tone="dark")
  ranks = made.ranks([yellowish] * 4, [DOG, dark, CAT, COW]).tolist()
  assert ranks == [0, 1, 2, 3]
  assert made.in_style([plane(RED), plane(BLUE)], [CAT, CAT]).tolist() == [
    True, False,
  ]  # fmt: skip
  assert made.choices(CAT) == (4, 2) and made.choices(PINK_CAT) == (1, 2)
  with pytest.raises(ValueError, match="no picture of 'dog' in the style"):
    made.ranks([plane(RED)], [DOG._replace(style="fluent")])
  with pytest.raises(ValueError, match="no picture of 'hen'"):
    made.ranks([plane(RED)], [Picture("hen", "noto", "g")])


def test_names_are_of_concepts_in_the_order_of_labels():
  made = judge()  # cat, cow, dog
  images = [plane(RED), plane(GREEN), plane(BLUE)]
  asked = [PINK_CAT, COW, COW]
  assert made.named(images, asked).tolist() == [True, True, False]
  many = made.named([plane(GREEN)] * 300, [COW] * 300)
  assert many.all() and len(many) == 300


def test_several_pictures_and_equal_ones():
  made = Judge(
    Colours(),
    Album([entry(CAT, RED), entry(CAT, GREEN), entry(DOG, RED),
           entry(COW, BLUE)]),
  )  # fmt: skip
  assert made.ranks([plane(GREEN)], [CAT]).tolist() == [0]
  assert made.ranks([plane(RED)] * 3, [CAT, DOG, COW]).tolist() == [0, 0, 2]
  assert made.choices(CAT) == (3, 1)


def test_labels_are_concept_style_and_tone():
  album = Album(
    [entry(DOG), entry(PINK_CAT), entry(CAT._replace(tone="dark")),
     entry(COW, trained=False)]
  )  # fmt: skip
  assert emoji_classifier.labels_of(album).tolist() == [
    [1, 1, 0], [0, 2, 0], [0, 1, 1],
  ]  # fmt: skip


# ------------------------------------------------------------------------ views


def test_views_move_and_scale_with_edges_continued():
  weights = emoji_classifier._weights

  def applied(scale, shift, row):
    w = weights(len(row), *jnp.float32([[[scale]], [[shift]]]))[0]
    return np.asarray(w @ np.asarray(row, np.float32))

  row = np.array([1.0, 5, 2, 8])
  np.testing.assert_allclose(applied(1, 0, row), row, atol=1e-6)
  np.testing.assert_allclose(applied(1, 1, row), [1, 1, 5, 2], atol=1e-6)
  np.testing.assert_allclose(applied(1, -2, row), [2, 8, 8, 8], atol=1e-6)
  at = (np.arange(4) - 1.5) / 2 + 1.5
  expected = np.interp(at, np.arange(4), row)
  np.testing.assert_allclose(applied(2, 0, row), expected, atol=1e-6)


def test_views_differ_by_key_and_image_and_stay_in_range():
  image = np.asarray(toys.draw(toys.HELD_OUT[0]), np.float32) / 127.5 - 1
  twice = jnp.stack([image, image])
  found = np.asarray(views(jax.random.key(0), twice))
  again = np.asarray(views(jax.random.key(0), twice))
  np.testing.assert_array_equal(found, again)
  assert found.shape == twice.shape and abs(found).max() <= 1
  assert abs(found[0] - found[1]).mean() > 0.02
  other = np.asarray(views(jax.random.key(1), twice))
  assert abs(found[0] - other[0]).mean() > 0.02
