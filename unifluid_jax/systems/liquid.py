"""Liquid: one language model whose words are those of texts and of images.

Paper: Liquid (arXiv 2412.04332) §2. A VQ tokenizer makes N codes of an image,
each of which is a row of the decoder's own vocabulary. What the paper leaves
open follows its released code (github.com/FoundationVision/Liquid) and that of
UniTok's Liquid (github.com/FoundationVision/UniTok).

Rows of the tasks, one causal sequence of ids each; what is in <> is predicted:

  t2i    bos caption boi <codes eoi eos>
         bos unconditional boi <codes eoi eos>     the null prompt
  i2t    bos boi codes eoi question <answer eos>
  text   bos question <answer eos>, or bos <text eos>
  dialogue  bos, texts and images (boi codes eoi) in their order, eos

Of dialogues what their turns are to teach is predicted (data/dialogue.py). In a
run on images of several sizes each has the codes of its own grid, row by row,
and prompts say how large it is, the null prompt too (data/sized_prompt.py).

Differs: eos ends texts too, where the released code trains none; what is too
long loses words of its text, where the released code loses boi, eoi and eos.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.vq import VqCodec
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import (
  PAD,
  Batch,
  Metrics,
  Params,
  Part,
  SystemSpec,
)
from unifluid_jax.data import sized_prompt
from unifluid_jax.data.fields import SIZE
from unifluid_jax.models import decoder
from unifluid_jax.ops import sampling as sampling_ops
from unifluid_jax.ops.cross_entropy import TokenLosses
from unifluid_jax.systems import liquid_config
from unifluid_jax.systems.common import (
  cost,
  drawn_cells,
  embed,
  interleaved,
  networks,
  packing,
  text_decode,
  token_decode,
  token_loss,
)

Fields = Mapping[str, Any]  # name → array [B, ...] of one task
_DRAWN, _SAID, _TURNS = "t2i", ("i2t", "text"), "dialogue"


class Rows(NamedTuple):
  """The rows of a task; the last n tokens that are fed predict the targets."""

  fed: Any  # i32[B, T], PAD where nothing stands
  targets: Any  # i32[B, n], PAD where nothing is predicted


class Sums(NamedTuple):
  """Sums over tokens of one kind, f32[]."""

  nll: Any
  hits: Any
  max_z: Any  # of the largest logit, squared


class Liquid:
  """The System of `config.system == "liquid"`."""

  parts, held = liquid_config.PARTS, ()

  def __init__(self, config: Config):
    """Builds the networks; no arrays are made here."""
    m = config.model
    self.config = config
    dtype = jnp.dtype(m.dtype)
    self.decoder = decoder.Decoder(
      m.decoder, dtype, m.remat, m.scan, m.attention
    )
    self.codec = VqCodec(m.vq, m.vq_path, m.image_size, sizes=m.sizes)
    self.ids = networks.special_ids(config.text.special, m.decoder.vocab)
    self._ends = self.ids["boi"], self.ids["eoi"]
    self.inputs = liquid_config.inputs(config, self.codec)
    self.grid = self.codec.grid((m.image_size, m.image_size))
    # Runs on text alone need no codec. Exact: a code that flips is another.
    codec = Part(self.codec.shapes, self.codec.load, exact=True)
    images = any(config.batch.get(t) for t in (_DRAWN, "i2t", _TURNS))
    self.frozen = {"codec": codec} if images else {}

  def init(self, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters; see the System protocol."""
    x = jnp.zeros((1, 1, self.config.model.decoder.width))
    position, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)
    return {"decoder": self.decoder.init(key, x, position, mask)["params"]}

  def cost(self) -> cost.StepCost:
    """Tokens and FLOPs of one step; the frozen tokenizer is not counted."""
    return liquid_config.step_cost(self.config)

  # ------------------------------------------------------------------- rows

  def image_ids(self, codes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
    """Ids of image codes; PAD behind those of smaller images stays."""
    return jnp.where(codes == PAD, PAD, self.config.model.code_offset + codes)

  def is_image(self, ids: Int[Array, "*rows"]) -> Bool[Array, "*rows"]:
    """Which ids are image codes."""
    first = self.config.model.code_offset
    return (ids >= first) & (ids < first + self.config.model.vq.codes)

  def null_of(self, fields: Fields) -> Int[Array, "B P"]:
    """The null prompts of "t2i" rows; of several sizes, each of its own."""
    given = fields.get(f"prompt.{sized_prompt.NULL}")
    return self.null(fields["prompt"]) if given is None else given

  def null(self, prompt: Int[Array, "B P"]) -> Int[Array, "B P"]:
    """The null prompt: what guidance leads away from."""
    names = ("bos", "unconditional", "boi")
    return packing.null_prompt(prompt, [self.ids[name] for name in names])

  def drawn(self, prompt: Int[Array, "B P"], codes: Int[Array, "B N"]) -> Rows:
    """A prompt, which ends with boi, and the image that follows.

    eoi and eos stand directly behind the last code, PAD behind them.
    """
    ids, n = self.image_ids(codes), (codes != PAD).sum(axis=1, keepdims=True)
    targets = jnp.pad(ids, ((0, 0), (0, 2)), constant_values=PAD)
    slots = jnp.arange(targets.shape[1])
    targets = jnp.where(slots == n, self.ids["eoi"], targets)
    targets = jnp.where(slots == n + 1, self.ids["eos"], targets)
    return Rows(jnp.concatenate([prompt, targets[:, :-1]], axis=1), targets)

  def asked(self, fields: Fields) -> Int[Array, "B T"]:
    """All that stands before an answer; the image, if any, comes first."""
    if "codes" not in fields:
      return fields["prefix"]
    codes = self.image_ids(fields["codes"])
    start = self._constant(
      len(codes), "bos", *self.config.model.user, "boi"
    )  # fmt: skip
    return jnp.concatenate([start, codes, fields["prefix"]], axis=1)

  def said(self, fields: Fields, key: PRNGKeyArray | None) -> Rows:
    """A question and its answer.

    With word dropout (arXiv 1511.06349) some input words of the answer are
    UNK, and the words after them must be predicted from the image. Without a
    key none are.
    """
    p, unk = self.config.loss.word_dropout, self.ids["unk"]
    fed = embed.fed_words(fields["suffix"], p, unk, key)
    fed = jnp.concatenate([self.asked(fields), fed], axis=1)
    return Rows(fed, fields["suffix"])

  def turns(self, fields: Fields) -> Int[Array, "B T"]:
    """Texts and images in their order."""
    return interleaved.ids(fields, self.image_ids)

  def interleaved(self, fields: Fields) -> Rows:
    """Whole dialogues; PAD where a token is only given."""
    ids = self.turns(fields)
    return Rows(ids[:, :-1], interleaved.targets(fields, ids)[:, 1:])

  def _constant(self, rows: int, *names: str) -> Int[Array, "B n"]:
    ids = jnp.asarray([self.ids[name] for name in names], jnp.int32)
    return jnp.broadcast_to(ids, (rows, len(names)))

  def _sequence(self, params: Params, ids: Int[Array, "B T"]) -> packing.Packed:
    """Plain causal, from the first token on."""
    x = embed.text(self.decoder, params, ids)
    return packing.causal_sequence(x, packing.text_valid(ids))

  # ------------------------------------------------------------------- loss

  def counts(self, batch: Batch) -> dict[str, Any]:
    """Predicted tokens by kind: codes, what ends images, and texts'."""
    drawn = len(batch[_DRAWN]["prompt"]) if _DRAWN in batch else 0
    codes = drawn * self.config.model.image_tokens
    if drawn and self.codec.sizes:
      size = batch[_DRAWN][f"image.{SIZE}"] // self.config.model.vq.factor
      codes = size.prod(axis=1).sum()
    texts = [batch[task]["suffix"] for task in _SAID if task in batch]
    words = sum((suffix != PAD).sum() for suffix in texts)
    found = {
      "image": codes,
      "end": drawn * 2,
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
    """Next-token cross entropy over the whole vocabulary (Liquid §2)."""
    del step
    k_drop, k_words, k_layers = jax.random.split(key, 3)
    params = embed.cast_embedding(params, self.decoder.dtype)
    rows = {}
    if _DRAWN in batch:
      fields = batch[_DRAWN]
      codes = self.codec.tokens(frozen["codec"], fields["image"], None)
      drop = jax.random.uniform(k_drop, (len(codes), 1))
      drop, prompt = drop < self.config.loss.prompt_dropout, fields["prompt"]
      prompt = jnp.where(drop, self.null_of(fields), prompt)
      rows[_DRAWN] = self.drawn(prompt, codes)
    for i, task in enumerate(_SAID):
      if task in batch:
        rows[task] = self.said(batch[task], jax.random.fold_in(k_words, i))
    if _TURNS in batch:
      rows[_TURNS] = self.interleaved(batch[_TURNS])
    found = self._token_losses(params, list(rows.values()), k_layers)
    found = dict(zip(rows, found, strict=True))
    if _DRAWN in batch:
      found[_DRAWN] = token_loss.weighed(found[_DRAWN], [batch[_DRAWN]])
    return *self._objective(self._sums(rows, found), counts), {}

  def _token_losses(
    self, params: Params, rows: list[Rows], key: PRNGKeyArray | None = None
  ) -> list[TokenLosses]:
    """Of the targets of each task, after one pass of the decoder over all."""
    packed = [self._sequence(params, r.fed) for r in rows]
    hidden = packing.hidden_states(self.decoder, params, packed, key)
    states, targets = packing.read_out(
      hidden, packed, [(i, r.targets) for i, r in enumerate(rows)]
    )
    table = decoder.output_table(params["decoder"])
    return [
      token_loss.token_losses(
        self.config.model.decoder, table, h, t, self.config.loss.vocab_chunk
      )
      for h, t in zip(states, targets, strict=True)
    ]

  def _sums(
    self, rows: Mapping[str, Rows], losses: Mapping[str, TokenLosses]
  ) -> dict[str, Sums]:
    """Of each kind of predicted tokens that the rows have."""
    sums = {}
    for task, found in losses.items():
      values = Sums(found.nll, found.hits, jnp.square(found.max_logit))
      image = self.is_image(rows[task].targets)
      masks = {"text": ~image}
      if task == _DRAWN:
        masks = {"image": image, "end": ~image}
      elif task == _TURNS:
        end = jnp.isin(rows[task].targets, jnp.asarray(self._ends))
        masks = {"image": image, "end": end, "text": ~image & ~end}
      for kind, mask in masks.items():
        part = jax.tree.map(lambda x, m=mask: jnp.where(m, x, 0).sum(), values)
        before = sums.get(kind)
        sums[kind] = jax.tree.map(jnp.add, before, part) if before else part
    return sums

  def _objective(
    self, sums: Mapping[str, Sums], counts: Mapping[str, Any]
  ) -> tuple[Float[Array, ""], Metrics]:
    """The loss, and metrics of image codes and of texts.

    "tokens": one mean over all predicted tokens of the global batch, so that
    an image weighs more than a caption. Differs: the released code averages
    each device's rows first. "apart": one mean of images and their ends, one
    of texts.
    """
    c, metrics, total = self.config.loss, {}, jnp.float32(0)
    of_images = counts["image_tokens"] + counts["end_tokens"]
    of_texts = counts["text_tokens"]
    if c.weighting == "tokens":
      of_images = of_texts = of_images + of_texts
    if "image" in sums:
      drawn = sums["image"].nll + sums["end"].nll
      total = drawn / token_loss.positive(of_images)
    if "text" in sums:
      said = c.text_weight * sums["text"].nll
      total = total + said / token_loss.positive(of_texts)
    for kind in ("image", "text"):
      if kind in sums:
        count = token_loss.positive(counts[f"{kind}_tokens"])
        metrics[f"loss_{kind}"] = sums[kind].nll / count
        metrics[f"{kind}_accuracy"] = sums[kind].hits / count
    if c.max_z and "image" in sums:
      # Keeps logits small (Baichuan 2, arXiv 2309.10305 §3.4): through the
      # largest of each position, as UniTok's code has it.
      count = token_loss.positive(counts["image_tokens"])
      metrics["max_z"] = sums["image"].max_z / count
      total = total + c.max_z * metrics["max_z"]
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
      sampling: cfg, temperature, image_top_k, image_top_p, size.
    """
    codes = self._codes(params, prompts, keys, sampling)
    return self.codec.decode(frozen["codec"], codes, self._grid(sampling))

  def stages(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, most: int,
  ) -> Float[Array, "B S H W 3"]:  # fmt: skip
    """Images while they appear, code by code; see `types.Stager`."""
    codes = self._codes(params, prompts, keys, sampling)
    return token_decode.images_of_stages(
      self.codec, frozen["codec"], codes, self._grid(sampling), most
    )

  def redraw(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, given: Float[Array, "B H W 3"], again: Bool[Array, "B N"],
  ) -> Float[Array, "B H W 3"]:  # fmt: skip
    """Images with some cells drawn again; see `types.Redrawer`."""
    codes = self.codec.encode(frozen["codec"], given)
    known = jnp.where(again, PAD, codes)
    codes = self._codes(params, prompts, keys, sampling, known)
    return self.codec.decode(frozen["codec"], codes, self._grid(sampling))

  def _codes(
    self, params: Params, prompts: Batch, keys: Any, sampling: Any,
    known: Int[Array, "B N"] | None = None,
  ) -> Int[Array, "B N"]:  # fmt: skip
    """Codes of the images that `generate` is asked for; see `draw`."""
    ((task, fields),) = prompts.items()
    if task == _TURNS:
      prompt = self.turns(fields)
      boi = self._constant(len(prompt), "boi")
      prompt = jnp.concatenate([prompt, boi], axis=1)
      null = self.null(prompt)
    else:
      prompt, null = fields["prompt"], self.null_of(fields)
    keys = keys if keys.ndim else jax.random.split(keys, len(prompt))
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    return self.draw(params, prompt, null, keys, sampling, known)

  def _grid(self, sampling: Any) -> tuple[int, int]:
    """Rows and columns of the codes that are drawn."""
    return self.codec.grid(liquid_config.drawn_size(self.config, sampling))

  def draw(
    self,
    params: Params,
    prompt: Int[Array, "B P"],
    null: Int[Array, "B P"],
    keys: Key[Array, "B"],
    sampling: Any,
    known: Int[Array, "B N"] | None = None,
  ) -> Int[Array, "B N"]:
    """The codes of `sampling.size` after each prompt, and nothing else.

    Neither eoi nor text is ever drawn: the size says how many codes there are.
    Codes that are known, and not PAD, are fed as they are.
    """
    if known is None:
      n = math.prod(self._grid(sampling))
      known = jnp.full((len(prompt), n), PAD, jnp.int32)
    prompts = [prompt]
    if sampling.cfg != 1:
      prompts.append(null)
    ids = token_decode.draw(
      self.decoder,
      params,
      [self._sequence(params, p) for p in prompts],
      self.image_ids(known),
      lambda keys, states: self.image_ids(
        self.pick(params, states, keys, sampling)
      ),
      keys,
    )
    return ids - self.config.model.code_offset

  def pick(
    self,
    params: Params,
    states: list[Float[Array, "B D"]],
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> Int[Array, "B"]:
    """Draws a code from the states of a prompt and of the null prompt.

    Guidance, temperature, all but the codes left out, top-k, top-p: in this
    order. Differs: the released code leaves the codes alone only where it
    filters too, that is not with top-k 0 and top-p 1.
    """
    m = self.config.model
    scores = token_decode.guided_scores(
      m.decoder, params, m.code_offset, m.vq.codes, states, sampling.cfg
    )
    return sampling_ops.pick_token(
      keys, scores, sampling.temperature, sampling.image_top_k,
      sampling.image_top_p,
    )  # fmt: skip

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
    asked = self.turns(fields) if task == _TURNS else self.asked(fields)
    ends = ("eos", "boi") if task == _TURNS else ("eos",)
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    return text_decode.answer(
      self.decoder,
      params,
      self._sequence(params, asked),
      self.config.text.suffix,
      sampling,
      keys,
      [self.ids[name] for name in ends],
    )

  def score(
    self, params: Params, frozen: Params, prompts: Batch
  ) -> Float[Array, "B"]:
    """Log-likelihood in nats of the suffixes of "i2t" or "text", eos included.

    Args:
      params: all parameters.
      frozen: the tokenizer.
      prompts: B rows of one task, with their suffixes.
    """
    del frozen
    ((_, fields),) = prompts.items()
    params = embed.cast_embedding(params, self.decoder.dtype)
    (found,) = self._token_losses(params, [self.said(fields, None)])
    return -found.nll.sum(axis=1)

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the frozen tokenizer: an upper bound for generation."""
    del params
    return self.codec.reconstruct(frozen["codec"], images)


SPEC = SystemSpec(
  model=liquid_config.ModelConfig,
  loss=liquid_config.LossConfig,
  sampling=liquid_config.SamplingConfig,
  ranges=liquid_config.RANGES,
  tasks=("t2i", "i2t", "text", "dialogue"),
  check=liquid_config.check,
  check_sampling=liquid_config.check_sampling,
  check_redraw=drawn_cells.check_redraw,
  migrate=dict,
  summary=liquid_config.summary,
  losses={"loss_image": "L_image (nats)", "loss_text": "L_text (nats)"},
  build=Liquid,
  codec_path="vq_path",
  drawn_size=liquid_config.drawn_size,
  sentences=liquid_config.sentences,
  text_rows=liquid_config.text_rows,
)
