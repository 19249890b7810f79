"""UniToken: images as discrete tokens and as continuous features at once.

Paper: UniToken (arXiv 2504.04423) §3. What it leaves open follows its released
code, which finetunes Lumina-mGPT (arXiv 2408.02657), and so Chameleon.

Rows of the tasks, plain causal from the first token on. D are the discrete
tokens of an image (soi, height, width, rows of codes each with a new line,
eoi), C its continuous features; what is in <> is predicted:

  t2i    bos prompt turn <D turn>
  i2t    bos D[:-1] <sep> C eoi question turn <answer turn>
  text   bos question turn <answer turn>, or bos <text turn>

Differs: the released code has sep and C in t2i rows too, behind the codes. No
code can see them, only eoi and turn, which are given when images are drawn.
Its stray token before soi, a bare space of its tokenizer, is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.vq import VqCodec
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import (
  PAD,
  Batch,
  Metrics,
  Params,
  Part,
  SystemSpec,
)
from unifluid_jax.models import decoder
from unifluid_jax.models.adapter import Adapter
from unifluid_jax.models.vit import Vit
from unifluid_jax.ops import sampling as sampling_ops
from unifluid_jax.systems import unitoken_config
from unifluid_jax.systems.common import (
  cost,
  drawn_cells,
  embed,
  networks,
  packing,
  text_decode,
  token_decode,
  token_loss,
)
from unifluid_jax.systems.common import text_loss as texts

Fields = Mapping[str, Any]  # name → array [B, ...] of one task
# States [B, n, D], the ids [B, n] that they predict, PAD where none, and the
# fields whose weights count.
Predictions = list[tuple[Any, Any, Fields]]


class UniToken:
  """The System of `config.system == "unitoken"`."""

  held = ()

  def __init__(self, config: Config):
    """Builds the networks; no arrays are made here."""
    m = config.model
    self.config = config
    dtype = jnp.dtype(m.dtype)
    self.decoder = decoder.Decoder(
      m.decoder, dtype, m.remat, m.scan, m.attention
    )
    self.vit = Vit(m.vit, dtype, m.remat, m.scan)
    self.adapter = Adapter(m.decoder.width, dtype)
    # In float32, as its weights: convolutions in bfloat16 give other codes.
    self.codec = VqCodec(m.vq, m.vq_path, m.image_size)
    self.ids = networks.special_ids(config.text.special, m.decoder.vocab)
    # The discrete tokens of an image, PAD for its codes.
    self.template = unitoken_config.template(
      m, self.ids, m.image_size, m.image_size
    )
    self.inputs = unitoken_config.inputs(config, self.codec)
    self.grid = m.grid, m.grid
    self.parts = {
      name: rows
      for name, rows in unitoken_config.PARTS.items()
      if m.continuous or name == "decoder"
    }
    # Runs on text alone need no codec. Exact: a code that flips is another.
    images = config.batch.get("t2i") or config.batch.get("i2t")
    codec = Part(self.codec.shapes, self.codec.load, exact=True)
    self.frozen = {"codec": codec} if images else {}

  def init(self, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters; see the System protocol."""
    m = self.config.model
    keys = jax.random.split(key, 3)
    x, position = jnp.zeros((1, 1, m.decoder.width)), jnp.zeros((1, 1), int)
    mask = jnp.ones((1, 1, 1), bool)
    inputs = {
      "decoder": (self.decoder, x, position, mask),
      "vit": (self.vit, jnp.zeros((1, *[m.vit.image_size] * 2, 3))),
      "projector": (self.adapter, jnp.zeros((1, 1, m.vit.width))),
    }
    return {
      name: inputs[name][0].init(k, *inputs[name][1:])["params"]
      for name, k in zip(self.parts, keys, strict=False)
    }

  def cost(self) -> cost.StepCost:
    """Tokens and FLOPs of one step; the frozen tokenizer is not counted."""
    return unitoken_config.step_cost(self.config)

  # ------------------------------------------------------------------- rows

  def discrete(self, codes: Int[Array, "B N"]) -> Int[Array, "B n"]:
    """The discrete tokens of images."""
    row = jnp.broadcast_to(self.template, (len(codes), len(self.template)))
    ids = codes.astype(jnp.int32) + self.config.model.code_offset
    return row.at[:, self.template == PAD].set(ids)

  def continuous(
    self, params: Params, fields: Fields, line: Float[Array, "B 1 D"]
  ) -> packing.Packed:
    """The continuous features of images, at any resolution (UniToken §3.1).

    Args:
      params: all parameters.
      fields: "seen", see `data/fields.Crops`.
      line: the embedded new line that ends each row of the grid.
    """
    views, index = fields["seen.views"], fields["seen.index"]
    x = embed.pixels(self.vit, self.adapter, params, views)
    x = jnp.concatenate([x, line.astype(x.dtype)], axis=1)
    x = jnp.take_along_axis(x, index[..., None], axis=1)
    x = parallel.constrain(x, "BTD")
    return packing.causal_sequence(x, fields["seen.valid"])

  def asked(
    self, params: Params, fields: Fields, fed: Int[Array, "B n"] | None = None
  ) -> packing.Packed:
    """A question, after the image it is about if there is one.

    Args:
      params: all parameters.
      fields: "prefix"; "codes" and "seen" of images.
      fed: tokens of the answer that follow.
    """
    text = [fields["prefix"], *([] if fed is None else [fed])]
    if "codes" not in fields:
      return self._sequence(params, jnp.concatenate(text, axis=1))
    image = self.discrete(fields["codes"])
    bos = self._constant(image, "bos")
    if not self.config.model.continuous:
      ids = jnp.concatenate([bos, image, *text], axis=1)
      return self._sequence(params, ids)
    sep, line = self._constant(image, "sep"), self._constant(image, "line")
    # One lookup for all: the line's row is taken out and used in C.
    n = 1 + image.shape[1]
    ids = [bos, image[:, :-1], sep, line, image[:, -1:], *text]
    ids = jnp.concatenate(ids, axis=1)
    x, valid = embed.text(self.decoder, params, ids), packing.text_valid(ids)
    features = self.continuous(params, fields, x[:, n : n + 1])
    return packing.causal_sequence(
      jnp.concatenate([x[:, :n], features.x, x[:, n + 1 :]], axis=1),
      jnp.concatenate(
        [valid[:, :n], features.valid, valid[:, n + 1 :]], axis=1
      ),
    )

  def drawn(
    self,
    params: Params,
    prompt: Int[Array, "B P"],
    image: Int[Array, "B n"],
    drop: Bool[Array, "B 1"],
  ) -> packing.Packed:
    """A prompt and the discrete tokens that follow it.

    Rows to drop begin with soi, at position 0: neither BOS nor prompt.
    """
    prompt = jnp.where(drop, PAD, prompt)
    return self._sequence(params, jnp.concatenate([prompt, image], axis=1))

  def _sequence(self, params: Params, ids: Int[Array, "B T"]) -> packing.Packed:
    """Plain causal, from the first token on."""
    x = embed.text(self.decoder, params, ids)
    return packing.causal_sequence(x, packing.text_valid(ids))

  def _constant(self, like: Any, name: str) -> Int[Array, "B 1"]:
    return jnp.full((len(like), 1), self.ids[name], jnp.int32)

  # ------------------------------------------------------------------- loss

  def counts(self, batch: Batch) -> dict[str, Any]:
    """Predicted tokens: of images, with sep, and of texts."""
    m, tokens = self.config.model, 0
    if "t2i" in batch:
      tokens += len(batch["t2i"]["prompt"]) * (len(self.template) + 1)
    if "i2t" in batch and m.continuous and self.config.loss.supervise_sep:
      tokens += len(batch["i2t"]["prefix"])
    texts = [f["suffix"] for f in batch.values() if "suffix" in f]
    words = sum((suffix != PAD).sum() for suffix in texts)
    return {
      "image_tokens": tokens,
      "text_tokens": jnp.maximum(words, 1) if texts else 0,
    }

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, Any],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """Next-token cross entropy of images and answers (UniToken §3.3)."""
    del step
    k_drop, k_words, k_layers = jax.random.split(key, 3)
    params = embed.cast_embedding(params, self.decoder.dtype)
    rows, targets = [], []
    if "t2i" in batch:
      packed, target = self._pack_image(params, frozen, batch["t2i"], k_drop)
      rows.append(packed)
      targets.append(("image", target, batch["t2i"]))
    for i, task in enumerate(("i2t", "text")):
      if task in batch:
        fed = embed.fed_words(
          batch[task]["suffix"],
          self.config.loss.word_dropout,
          self.ids["unk"],
          jax.random.fold_in(k_words, i),
        )
        rows.append(self.asked(params, batch[task], fed))
        targets.append(("text", batch[task]["suffix"], {}))
    # Rows to read are up to four times as long as rows to draw.
    hidden = packing.hidden_states_apart(self.decoder, params, rows, k_layers)
    predicted: dict[str, Predictions] = {"image": [], "text": []}
    for i, (kind, target, fields) in enumerate(targets):
      (states,), _ = packing.read_out(hidden, rows, [(i, target)])
      predicted[kind].append((states, target, fields))
    if "i2t" in batch:
      i = int("t2i" in batch)
      predicted["image"] += self._separators(hidden[i])
    return *self._objective(params, predicted, counts), {}

  def revise(
    self, params: Params, seen: Any, key: PRNGKeyArray, step: Any
  ) -> None:
    """Gradients alone change parameters."""

  def _pack_image(
    self, params: Params, frozen: Params, fields: Fields, key: PRNGKeyArray
  ) -> tuple[packing.Packed, Int[Array, "B n"]]:
    """A generation example, and the tokens that it must predict."""
    codes = self.codec.tokens(frozen["codec"], fields["image"], None)
    drop = jax.random.uniform(key, (len(codes), 1))
    drop = drop < self.config.loss.prompt_dropout
    image = self.discrete(codes)
    target = [image, self._constant(image, "turn")]
    target = jnp.concatenate(target, axis=1)
    # Nothing stands before a first soi that could predict it.
    target = target.at[:, :1].set(jnp.where(drop, PAD, target[:, :1]))
    return self.drawn(params, fields["prompt"], image, drop), target

  def _separators(self, hidden: Float[Array, "B T D"]) -> Predictions:
    """What predicts sep in i2t rows: the last new line of the image."""
    c = self.config
    if not (c.model.continuous and c.loss.supervise_sep):
      return []
    last = len(self.template) - 1  # BOS, then D without eoi
    return [(hidden[:, last : last + 1], self._constant(hidden, "sep"), {})]

  def _objective(
    self,
    params: Params,
    predicted: Mapping[str, Predictions],
    counts: Mapping[str, Any],
  ) -> tuple[Float[Array, ""], Metrics]:
    """One mean over all predicted tokens, and the z-loss.

    The z-loss, the mean of the squared log-normaliser (PaLM, arXiv 2204.02311
    §5), keeps Chameleon's logits from drifting.

    Differs: the mean is over the global batch, where the released code averages
    each device's rows first; `text_weight` may raise the weight of answers,
    which are short beside images.
    """
    c, metrics = self.config.loss, {}
    table = decoder.output_table(params["decoder"])
    weights = {"image": 1.0, "text": c.text_weight}
    total = log_z = jnp.float32(0)
    for kind, rows in predicted.items():
      if not rows:
        continue
      found = [
        token_loss.weighed(
          token_loss.token_losses(
            self.config.model.decoder, table, h, target, c.vocab_chunk
          ),
          [fields],
        )
        for h, target, fields in rows
      ]
      nll, hits = (
        sum(getattr(x, name).sum() for x in found) for name in ("nll", "hits")
      )
      log_z = log_z + sum(jnp.square(x.log_z).sum() for x in found)
      total = total + weights[kind] * nll
      metrics[f"loss_{kind}"] = nll / counts[f"{kind}_tokens"]
      metrics[f"{kind}_accuracy"] = hits / counts[f"{kind}_tokens"]
    images, texts = counts["image_tokens"], counts["text_tokens"]
    metrics["z_loss"] = log_z / (images + texts)
    total = total / (images + c.text_weight * texts)
    return total + c.z_loss * metrics["z_loss"], metrics

  # ----------------------------------------------------------------- decode

  def generate(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "*rows"],
    sampling: Any,
  ) -> Float[Array, "B H W 3"]:
    """Images in [-1, 1] of "t2i" prompts.

    Args:
      params: all parameters.
      frozen: the tokenizer.
      prompts: B rows.
      keys: one key, split by row, or one key per row.
      sampling: cfg, temperature, image_top_k.
    """
    codes = self._codes(params, prompts, keys, sampling)
    return self.codec.decode(frozen["codec"], codes)

  def stages(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, most: int,
  ) -> Float[Array, "B S H W 3"]:  # fmt: skip
    """Images while they appear, code by code; see `types.Stager`."""
    codes = self._codes(params, prompts, keys, sampling)
    return token_decode.images_of_stages(
      self.codec, frozen["codec"], codes, self.grid, most
    )

  def redraw(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, given: Float[Array, "B H W 3"], again: Bool[Array, "B N"],
  ) -> Float[Array, "B H W 3"]:  # fmt: skip
    """Images with some cells drawn again; see `types.Redrawer`."""
    codes = self.codec.encode(frozen["codec"], given)
    known = jnp.where(again, PAD, codes)
    codes = self._codes(params, prompts, keys, sampling, known)
    return self.codec.decode(frozen["codec"], codes)

  def _codes(
    self, params: Params, prompts: Batch, keys: Any, sampling: Any,
    known: Int[Array, "B N"] | None = None,
  ) -> Int[Array, "B N"]:  # fmt: skip
    """Codes of the images that `generate` is asked for; see `draw`."""
    prompt = prompts["t2i"]["prompt"]
    keys = keys if keys.ndim else jax.random.split(keys, len(prompt))
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    return self.draw(params, prompt, keys, sampling, known)

  def draw(
    self,
    params: Params,
    prompt: Int[Array, "B P"],
    keys: Key[Array, "B"],
    sampling: Any,
    known: Int[Array, "B N"] | None = None,
  ) -> Int[Array, "B N"]:
    """N codes after each prompt.

    soi, the sizes and the new lines are given; codes are all that is drawn.
    Codes that are known, and not PAD, are fed as they are.
    The null condition of guidance begins with soi, without BOS or prompt, and
    counts its positions from there. The last new line and eoi, which no code
    sees, are not fed.
    """
    soi = self._constant(prompt, "soi")
    drops = [False] if sampling.cfg == 1 else [False, True]
    plan, first = self.template[1:-2], self.config.model.code_offset
    forced = jnp.broadcast_to(plan, (len(prompt), len(plan)))
    if known is not None:
      known_ids = jnp.where(known == PAD, PAD, known + first)
      forced = forced.at[:, plan == PAD].set(known_ids)
    ids = token_decode.draw(
      self.decoder,
      params,
      [self.drawn(params, prompt, soi, jnp.full(soi.shape, d)) for d in drops],
      forced,
      lambda keys, states: self.pick(params, states, keys, sampling),
      keys,
    )
    return ids[:, plan == PAD] - first

  def pick(
    self,
    params: Params,
    states: Sequence[Float[Array, "B D"]],
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> Int[Array, "B"]:
    """Draws the id of a code from the states of a prompt and of none.

    Guidance, all but the codes left out, top-k, temperature: in this order.
    """
    m = self.config.model
    scores = token_decode.guided_scores(
      m.decoder, params, m.code_offset, m.vq.codes, states, sampling.cfg
    )
    codes = sampling_ops.pick_token(
      keys, scores, sampling.temperature, sampling.image_top_k
    )
    return codes + m.code_offset

  def answer(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> Int[Array, "B A"]:
    """Token ids of "i2t" or "text" prompts up to the end of the turn."""
    del frozen
    ((_, fields),) = prompts.items()
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    return text_decode.answer(
      self.decoder,
      params,
      self.asked(params, fields),
      self.config.text.suffix,
      sampling,
      keys,
      self.ids["turn"],
    )

  def score(
    self, params: Params, frozen: Params, prompts: Batch
  ) -> Float[Array, "B"]:
    """Log-likelihood of the suffixes of "i2t" or "text"; see `types.Scorer`."""
    del frozen
    ((_, fields),) = prompts.items()
    params = embed.cast_embedding(params, self.decoder.dtype)
    rows = [self.asked(params, fields, fields["suffix"][:, :-1])]
    hidden = packing.hidden_states(self.decoder, params, rows)
    (states,), (suffix,) = packing.read_out(
      hidden, rows, [(0, fields["suffix"])]
    )
    return texts.log_likelihood(
      self.config.model.decoder,
      decoder.output_table(params["decoder"]),
      states,
      suffix,
      self.config.loss.vocab_chunk,
    )

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the frozen tokenizer: an upper bound for generation."""
    del params
    return self.codec.reconstruct(frozen["codec"], images)


SPEC = SystemSpec(
  model=unitoken_config.ModelConfig,
  loss=unitoken_config.LossConfig,
  sampling=unitoken_config.SamplingConfig,
  ranges=unitoken_config.RANGES,
  tasks=("t2i", "i2t", "text"),
  check=unitoken_config.check,
  check_redraw=drawn_cells.check_redraw,
  migrate=dict,
  summary=unitoken_config.summary,
  losses={"loss_image": "L_image (nats)", "loss_text": "L_text (nats)"},
  build=UniToken,
  codec_path="vq_path",
  text_rows=lambda config: config.model.text_rows,
)
