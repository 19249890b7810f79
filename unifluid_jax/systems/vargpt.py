"""VARGPT: next tokens of texts and next scales of images in one model.

Paper: VARGPT (arXiv 2501.12327) §3. LLaVA-1.5 (arXiv 2310.03744) reads texts
and the features of images; images are drawn as VAR (arXiv 2404.02905) draws
them, a whole scale of codes at a time, by a decoder of their own that reads the
language model's hidden states. What the paper leaves open follows its released
code (github.com/VARGPT-family/VARGPT, VARGPT-v1.1).

Rows of the tasks, one sequence each, causal from the first token on; F are the
features of an image that is seen, s_1 .. s_N the slots of one that is drawn,
and what is in <> is predicted:

  t2i    bos prompt <boi> s_1 ... s_N <eoi eos>     and the N codes
         bos boi s_1 ... s_N <eoi eos>              the null prompt
  i2t    bos F question <answer eos>
  text   bos question <answer eos>, or bos <text eos>
  dialogue  bos, texts and images (F or boi s_1 ... s_N eoi) in their order, eos

Codes are predicted at their slots, not before them: see vargpt_images.py. Of
dialogues what their turns are to teach is predicted (data/dialogue.py).

Differs: answers alone are learned, where the released code learns prompts and
pads too in batches that hold an image; BOS begins every row; the slots of one
scale see one another in the decoder, unless model.slots says "causal"; prompts
are dropped in training, for a null prompt, unless model.null says "noise"; the
scale decoder has one learned condition, where the released code trains one row
and draws with another.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.multiscale_vq import MultiscaleVqCodec
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import (
  PAD,
  Batch,
  Metrics,
  Params,
  Part,
  SystemSpec,
)
from unifluid_jax.models import clip_vit, decoder
from unifluid_jax.models.adapter import Adapter
from unifluid_jax.ops.cross_entropy import TokenLosses
from unifluid_jax.systems import vargpt_config, vargpt_images
from unifluid_jax.systems.common import (
  cost,
  embed,
  interleaved,
  networks,
  packing,
  scale_decode,
  text_decode,
  token_loss,
)

Fields = Mapping[str, Any]  # name → array [B, ...] of one task
_DRAWN, _SAID, _TURNS = "t2i", ("i2t", "text"), "dialogue"


class Rows(NamedTuple):
  """The rows of a task."""

  packed: packing.Packed
  targets: Any  # i32[B, n], PAD where no token is predicted
  reads: Any  # the places, static, whose states predict the targets
  images: vargpt_images.Images | None = None


class Sums(NamedTuple):
  """Sums over predictions of one kind, f32[]."""

  nll: Any
  hits: Any
  weighted: Any  # nll times the weights of scales


class VarGpt:
  """The System of `config.system == "vargpt"`."""

  held = ()

  def __init__(self, config: Config):
    """Builds the networks; no arrays are made here."""
    m, self.config = config.model, config
    dtype = jnp.dtype(m.dtype)
    self.decoder = decoder.Decoder(
      m.decoder, dtype, m.remat, m.scan, m.attention
    )
    self.encoder = vargpt_config.encoder(m)
    self.projector = Adapter(m.decoder.width, dtype)
    self.codec = MultiscaleVqCodec(m.vq, m.vq_path, m.image_size)
    self.drawing = vargpt_images.Drawing(config, self.codec)
    self.ids = networks.special_ids(config.text.special, m.decoder.vocab)
    self.parts = vargpt_config.parts(m)
    self.inputs = vargpt_config.inputs(config, self.codec)
    self._ends = self.ids["boi"], self.ids["eoi"]
    # Runs on text alone need no codec. Exact: a code that flips is another.
    codec = Part(self.codec.shapes, self.codec.load, exact=True)
    images = any(config.batch.get(t) for t in (_DRAWN, "i2t", _TURNS))
    self.frozen = {"codec": codec} if images else {}

  def init(self, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters; see the System protocol."""
    m = self.config.model
    one, side = jnp.zeros((1, 1), jnp.int32), m.vit.image_size
    x, mask = jnp.zeros((1, 1, m.decoder.width)), jnp.ones((1, 1, 1), bool)
    nets = {"decoder": self.decoder, "encoder": self.encoder}
    nets |= {"projector": self.projector, **self.drawing.networks}
    inputs = {
      "decoder": (x, one, mask),
      "encoder": (jnp.zeros((1, side, side, 3)),),
      "projector": (jnp.zeros((1, 1, m.vit.width)),),
      **self.drawing.init_inputs(),
    }
    keys = jax.random.split(key, len(inputs))
    return {
      name: nets[name].init(k, *given)["params"]
      for k, (name, given) in zip(keys, inputs.items(), strict=True)
    }

  def cost(self) -> cost.StepCost:
    """Tokens and FLOPs of one step; the frozen tokenizer is not counted."""
    return vargpt_config.step_cost(self.config)

  # ------------------------------------------------------------------- rows

  def features(
    self, params: Params, images: Float[Array, "B *F H W 3"]
  ) -> Float[Array, "B n D"]:
    """What the decoder sees of images; of several, one after another."""
    frames = images.reshape(-1, *images.shape[-3:])
    if self.config.model.encoder == "clip":
      frames = clip_vit.normalised(frames)
    x = self.encoder.apply({"params": params["encoder"]}, frames)
    x = self.projector.apply({"params": params["projector"]}, x)
    return x.reshape(len(images), -1, x.shape[-1])

  def null(self, prompt: Int[Array, "B P"]) -> Int[Array, "B P"]:
    """The null prompt: an image of which nothing is said."""
    return packing.null_prompt(prompt, [self.ids["bos"], self.ids["boi"]])

  def drawn(
    self,
    params: Params,
    frozen: Params,
    prompt: Int[Array, "B P"],
    codes: Int[Array, "B N"],
    drop: Bool[Array, "B 1"],
  ) -> Rows:
    """Prompts, which end with boi, and the images that follow.

    In rows to drop the prompt is the null prompt, where nothing asks for an
    image: there boi is given.
    """
    (b, p), n = prompt.shape, codes.shape[1]
    end = self._constant(b, "boi", "eoi", "eos")
    targets = jnp.where(drop & (jnp.arange(3) == 0), PAD, end)
    ids = jnp.where(drop, self.null(prompt), prompt)
    ids = jnp.concatenate([ids, end[:, 1:2]], axis=1)
    slots = self.drawing.whole(params, frozen, codes)
    x, valid = self._with_image(params, ids, p, slots)
    before = np.pad(self.drawing.before, (p, 1))
    places = jnp.broadcast_to(jnp.arange(p, p + n), (b, n))
    images = vargpt_images.Images(
      codes[:, None], places, jnp.ones((b, 1), bool)
    )
    reads = np.array([p - 2, p + n - 1, p + n])
    return Rows(self._sequence(x, valid, before), targets, reads, images)

  def asked(
    self, params: Params, fields: Fields, fed: Int[Array, "B n"] | None = None
  ) -> packing.Packed:
    """A question, after the image it is about if there is one.

    Args:
      params: all parameters.
      fields: "prefix", and "seen" of an image.
      fed: tokens of the answer that follow.
    """
    ids = [fields["prefix"], *([] if fed is None else [fed])]
    if "seen" not in fields:
      return self._texts(params, jnp.concatenate(ids, axis=1))
    begin = self._constant(len(ids[0]), "bos", *self.config.model.user)
    ids = jnp.concatenate([begin, *ids], axis=1)
    seen = self.features(params, fields["seen"])
    return self._sequence(*self._with_image(params, ids, begin.shape[1], seen))

  def said(
    self, params: Params, fields: Fields, key: PRNGKeyArray | None
  ) -> Rows:
    """A question and its answer; a key loses words, see `embed.fed_words`."""
    p, unk = self.config.loss.word_dropout, self.ids["unk"]
    fed = embed.fed_words(fields["suffix"], p, unk, key)
    packed = self.asked(params, fields, fed)
    length, n = packed.x.shape[1], fields["suffix"].shape[1]
    return Rows(packed, fields["suffix"], slice(length - n, length))

  def turns(
    self, params: Params, frozen: Params, fields: Fields
  ) -> packing.Packed:
    """Texts and images in their order."""
    row, cell, feature, codes, views = (
      fields[f"{interleaved.FIELD}.{name}"]
      for name in ("ids", "cell", "feature", "codes", "views")
    )
    b, m, n = codes.shape
    slots = self.drawing.whole(params, frozen, codes.reshape(b * m, n))
    slots = slots.reshape(b, m * n, -1)
    x = embed.text(self.decoder, params, row)
    x = interleaved.placed(x, cell, slots)
    x = interleaved.placed(x, feature, self.features(params, views))
    before = jnp.where(cell >= 0, jnp.asarray(self.drawing.before)[cell % n], 0)
    valid = packing.text_valid(row) | (cell >= 0) | (feature >= 0)
    return self._sequence(x, valid, before)

  def interleaved(self, params: Params, frozen: Params, fields: Fields) -> Rows:
    """Whole dialogues; PAD where a token is only given."""
    row, cell, target, codes = (
      fields[f"{interleaved.FIELD}.{name}"]
      for name in ("ids", "cell", "target", "codes")
    )
    n = codes.shape[2]
    places = interleaved.places(cell, codes.shape[1] * n)
    # An image that the row lacks stands where BOS does, which is not learned.
    places = jnp.maximum(places, 0)
    learned = jnp.take_along_axis(target, places[:, ::n], axis=1)
    images = vargpt_images.Images(codes, places, learned)
    targets = jnp.where(target, row, PAD)[:, 1:]
    packed = self.turns(params, frozen, fields)
    return Rows(packed, targets, slice(0, targets.shape[1]), images)

  def _sequence(
    self, x: Float[Array, "B T D"], valid: Bool[Array, "B T"], before: Any = 0
  ) -> packing.Packed:
    """Causal from the first token on, but for what shares a block.

    Args:
      x: embedded tokens.
      valid: False where nothing stands.
      before: how many tokens of each one's block stand before it.
    """
    packed = packing.causal_sequence(x, valid)
    return packed._replace(block=packed.block - before)

  def _with_image(
    self,
    params: Params,
    ids: Int[Array, "B t"],
    at: int,
    image: Float[Array, "B n D"],
  ) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"]]:
    """Embedded ids with an image's slots or features before number `at`."""
    x, valid = embed.text(self.decoder, params, ids), packing.text_valid(ids)
    image, there = image.astype(x.dtype), packing.all_valid(image)
    return tuple(
      jnp.concatenate([array[:, :at], middle, array[:, at:]], axis=1)
      for array, middle in ((x, image), (valid, there))
    )

  def _texts(self, params: Params, ids: Int[Array, "B T"]) -> packing.Packed:
    x = embed.text(self.decoder, params, ids)
    return self._sequence(x, packing.text_valid(ids))

  def _constant(self, rows: int, *names: str) -> Int[Array, "B n"]:
    ids = jnp.asarray([self.ids[name] for name in names], jnp.int32)
    return jnp.broadcast_to(ids, (rows, len(names)))

  # ------------------------------------------------------------------- loss

  def counts(self, batch: Batch) -> dict[str, Any]:
    """Predicted codes, tokens that begin and end images, and texts'."""
    drawn = len(batch[_DRAWN]["prompt"]) if _DRAWN in batch else 0
    texts = [batch[task]["suffix"] for task in _SAID if task in batch]
    words = sum((suffix != PAD).sum() for suffix in texts)
    found = {
      "image": drawn * self.config.model.image_tokens,
      "end": drawn * 3,
      "text": jnp.maximum(words, 1) if texts else 0,
    }
    if _TURNS in batch:
      turns = interleaved.counts(batch[_TURNS], self._ends)
      found = {kind: n + turns[kind] for kind, n in found.items()}
    return {f"{kind}_tokens": n for kind, n in found.items()}

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, Any],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """Cross entropies of texts and of codes (VARGPT §3.3)."""
    del step
    k_drop, k_words, k_layers, k_paths = jax.random.split(key, 4)
    params = embed.cast_embedding(params, self.decoder.dtype)
    rows = {}
    if _DRAWN in batch:
      fields = batch[_DRAWN]
      codes = self.codec.tokens(frozen["codec"], fields["image"], None)
      drop = jax.random.uniform(k_drop, (len(codes), 1))
      drop = drop < self.config.loss.prompt_dropout
      rows[_DRAWN] = self.drawn(params, frozen, fields["prompt"], codes, drop)
    for i, task in enumerate(_SAID):
      if task in batch:
        k = jax.random.fold_in(k_words, i)
        rows[task] = self.said(params, batch[task], k)
    if _TURNS in batch:
      rows[_TURNS] = self.interleaved(params, frozen, batch[_TURNS])
    packed = {task: r.packed for task, r in rows.items()}
    states = interleaved.hidden_states(self.decoder, params, packed, k_layers)
    sums: dict[str, Sums] = {}
    for i, (task, r) in enumerate(rows.items()):
      fields = [batch[task]] if task == _DRAWN else []
      found = self._text_sums(params, task, r, states[task], fields)
      if r.images is not None:
        k = jax.random.fold_in(k_paths, i)
        codes = self.drawing.losses(params, r.images, states[task], k)
        codes = codes._replace(weighted=packing.weigh(codes.weighted, fields))
        found["image"] = Sums(*(x.sum() for x in codes))
      for kind, part in found.items():
        before = sums.get(kind)
        sums[kind] = jax.tree.map(jnp.add, before, part) if before else part
    return *self._objective(sums, counts), {}

  def _text_losses(
    self, params: Params, rows: Rows, states: Float[Array, "B T D"]
  ) -> TokenLosses:
    """Of the rows' tokens; 0 where none is predicted."""
    table = decoder.output_table(params["decoder"])
    return token_loss.token_losses(
      self.config.model.decoder, table, states[:, rows.reads], rows.targets,
      self.config.loss.vocab_chunk,
    )  # fmt: skip

  def _text_sums(
    self, params: Params, task: str, rows: Rows,
    states: Float[Array, "B T D"], fields: Sequence[Mapping[str, Any]],
  ) -> dict[str, Sums]:  # fmt: skip
    """Of texts, and of what begins and ends images; `fields`: `weigh`'s."""
    found = token_loss.weighed(self._text_losses(params, rows, states), fields)
    end = jnp.isin(rows.targets, jnp.asarray(self._ends))
    masks = {"text": ~end, "end": end}
    if task in _SAID:
      masks = {"text": jnp.ones_like(end)}
    elif task == _DRAWN:
      masks = {"end": jnp.ones_like(end)}
    values = Sums(found.nll, found.hits, found.nll)
    return {
      kind: jax.tree.map(lambda x, m=mask: jnp.where(m, x, 0).sum(), values)
      for kind, mask in masks.items()
    }

  def _objective(
    self, sums: Mapping[str, Sums], counts: Mapping[str, Any]
  ) -> tuple[Float[Array, ""], Metrics]:
    """One mean over all tokens of texts, one over all codes; and metrics.

    What begins and ends images are tokens of texts.
    """
    metrics, total = {}, jnp.float32(0)
    of_texts = token_loss.positive(counts["text_tokens"] + counts["end_tokens"])
    for kind in ("text", "end"):
      if kind in sums:
        total = total + sums[kind].nll / of_texts
    if "image" in sums:
      count = token_loss.positive(counts["image_tokens"])
      weight = self.config.loss.image_weight
      total = total + weight * sums["image"].weighted / count
    for kind in ("image", "text"):
      if kind in sums:
        count = token_loss.positive(counts[f"{kind}_tokens"])
        metrics[f"loss_{kind}"] = sums[kind].nll / count
        metrics[f"{kind}_accuracy"] = sums[kind].hits / count
    return total, metrics

  def revise(
    self, params: Params, seen: Any, key: PRNGKeyArray, step: Any
  ) -> None:
    """Gradients alone change parameters."""

  # ----------------------------------------------------------------- decode

  def generate(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "*rows"],
    sampling: Any,
  ) -> Float[Array, "B H W 3"]:
    """Images in [-1, 1] of "t2i" prompts, or that continue dialogues.

    Args:
      params: all parameters.
      frozen: the tokenizer.
      prompts: B rows.
      keys: one key, split by row, or one key per row.
      sampling: cfg, temperature, image_top_k, image_top_p, smooth.
    """
    drawn = self.draw(params, frozen, prompts, keys, sampling)
    return self.codec.image(frozen["codec"], drawn.latent)

  def stages(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, most: int,
  ) -> Float[Array, "B S H W 3"]:  # fmt: skip
    """Images while they appear, scale by scale; see `types.Stager`."""
    drawn = self.draw(params, frozen, prompts, keys, sampling)
    codec = self.codec, frozen["codec"]
    return scale_decode.images_of_stages(*codec, drawn, most)

  def draw(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any,
  ) -> scale_decode.Drawn:  # fmt: skip
    """An image after each prompt; arguments are those of `generate`."""
    ((task, fields),) = prompts.items()
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    if task == _TURNS:
      fields = interleaved.extended(fields, self.ids["boi"])
      given = [self.turns(params, frozen, fields)]
    else:
      given = [self._texts(params, fields["prompt"])]
    keys = keys if keys.ndim else jax.random.split(keys, len(given[0].x))
    if sampling.cfg and self.config.model.null == "prompt":
      null = jnp.zeros(given[0].valid.shape, jnp.int32)
      given.append(self._texts(params, self.null(null)))
    return self.drawing.draw(
      self.decoder, params, frozen, given, keys, sampling
    )

  def answer(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> Int[Array, "B A"]:
    """Token ids of "i2t" or "text" prompts; see `text_decode.answer`.

    Where an image continues a dialogue, BOI is the last of them.
    """
    ((task, fields),) = prompts.items()
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    if task == _TURNS:
      packed = self.turns(params, frozen, fields)
    else:
      packed = self.asked(params, fields)
    ends = ("eos", "boi") if task == _TURNS else ("eos",)
    return text_decode.answer(
      self.decoder, params, packed, self.config.text.suffix, sampling, keys,
      [self.ids[name] for name in ends],
    )  # fmt: skip

  def score(
    self, params: Params, frozen: Params, prompts: Batch
  ) -> Float[Array, "B"]:
    """Log-likelihoods of suffixes of "i2t" or "text"; see `types.Scorer`."""
    del frozen
    ((_, fields),) = prompts.items()
    params = embed.cast_embedding(params, self.decoder.dtype)
    rows = self.said(params, fields, None)
    (states,) = packing.hidden_states(self.decoder, params, [rows.packed])
    return -self._text_losses(params, rows, states).nll.sum(axis=1)

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the frozen tokenizer: an upper bound for generation."""
    del params
    return self.codec.reconstruct(frozen["codec"], images)


SPEC = SystemSpec(
  model=vargpt_config.ModelConfig,
  loss=vargpt_config.LossConfig,
  sampling=vargpt_config.SamplingConfig,
  ranges=vargpt_config.RANGES,
  tasks=("t2i", "i2t", "text", "dialogue"),
  check=vargpt_config.check,
  check_sampling=vargpt_config.check_guidance,
  migrate=dict,
  summary=vargpt_config.summary,
  losses={"loss_image": "L_image (nats)", "loss_text": "L_text (nats)"},
  build=VarGpt,
  codec_path="vq_path",
  text_rows=vargpt_config.text_rows,
)
