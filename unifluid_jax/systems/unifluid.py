"""UniFluid: one decoder for continuous image tokens and discrete text.

Paper: UniFluid (arXiv 2503.13436) §3 and §4.1. What it leaves open follows
PaliGemma (projector, text layout), RAR (position tables) and MAR (head).
Decoding lives in `unifluid_decode.py`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.kl_vae import load_vae
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import PAD, UNK, Batch, Metrics, Params, Prompts
from unifluid_jax.models import decoder, diffusion_head, kl_vae, stack
from unifluid_jax.models.vit import Vit
from unifluid_jax.ops import diffusion, order, patches
from unifluid_jax.ops.attention import block_causal_mask
from unifluid_jax.ops.cross_entropy import chunked_cross_entropy
from unifluid_jax.systems import unifluid_decode
from unifluid_jax.systems.common import cost, packing


class UniFluid:
  """The System of `config.system == "unifluid"`."""

  def __init__(self, config: Config):
    """Builds the networks; no arrays are made here."""
    m = config.model
    self.config = config
    dtype = jnp.dtype(m.dtype)
    self.decoder = decoder.Decoder(
      m.decoder, dtype, m.remat, m.scan, m.attention
    )
    self.vit = Vit(m.vit, dtype, m.remat, m.scan)
    # Of the vision encoder in training. The other fused kernels take masks
    # only, or were not timed with its heads.
    self.vit_kernel = "mosaic" if m.attention == "mosaic" else "plain"
    self.head = diffusion_head.DiffusionHead(m.head, m.token_channels, dtype)
    self.vae = kl_vae.KlVae(m.vae, dtype)
    self.project = nn.Dense(
      m.decoder.width, dtype=dtype, kernel_init=nn.initializers.zeros
    )
    self.embed_token = nn.Dense(m.decoder.width, dtype=dtype)
    self.schedule = diffusion.cosine_schedule()

  # ------------------------------------------------------------- parameters

  def init(self, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters; see the System protocol."""
    m = self.config.model
    keys = jax.random.split(key, 7)
    width, pixels = m.decoder.width, m.vit.image_size
    tokens, states = (1, m.token_channels), (1, width)
    x, position = jnp.zeros((1, *states)), jnp.zeros((1, 1), jnp.int32)
    table = nn.initializers.truncated_normal(0.02)

    def fresh(network, key, *inputs):
      return network.init(key, *inputs)["params"]

    return {
      "decoder": fresh(
        self.decoder, keys[0], x, position, jnp.ones((1, 1, 1), bool)
      ),
      "vit": fresh(self.vit, keys[1], jnp.zeros((1, pixels, pixels, 3))),
      "projector": fresh(self.project, keys[2], jnp.zeros((1, m.vit.width))),
      "image": {
        "in": fresh(self.embed_token, keys[3], jnp.zeros(tokens)),
        "position": table(keys[4], (m.image_tokens, width)),
        "next_position": table(keys[5], (m.image_tokens, width)),
        "boi": table(keys[6], (width,)),
      },
      "head": fresh(
        self.head, key, jnp.zeros(tokens), position[0], jnp.zeros(states)
      ),
    }

  def load_frozen(self) -> Any:
    """The VAE, unless the run trains on text and understanding alone."""
    batch = self.config.batch
    if batch.get("t2i", 0) + batch.get("edit", 0) == 0:
      return {}
    return load_vae(self.config.model)

  def step_cost(self) -> tuple[int, float]:
    """Backbone tokens and model FLOPs of a step; see `cost.step_cost`."""
    return cost.step_cost(self.config)

  # -------------------------------------------------------------- embedding

  def embed_text(
    self, params: Params, tokens: Int[Array, "B T"]
  ) -> Float[Array, "B T D"]:
    """Token embeddings, scaled as Gemma scales them."""
    return self.decoder.apply(
      {"params": params["decoder"]}, tokens, method="embed"
    )

  def embed_pixels(
    self,
    params: Params,
    images: Float[Array, "B *F H W 3"],
    kernel: str = "plain",
  ) -> Float[Array, "B n D"]:
    """Vision features, projected; not scaled, as in PaliGemma.

    Features of F images follow one another, with nothing between them.
    `kernel` is that of the encoder's attention, see `attention.attend`.
    """
    frames = images.reshape(-1, *images.shape[-3:])
    features = self.vit.apply({"params": params["vit"]}, frames, kernel)
    x = self.project.apply({"params": params["projector"]}, features)
    return x.reshape(images.shape[0], -1, x.shape[-1])

  def embed_tokens(
    self, params: Params, x: Float[Array, "B n C"]
  ) -> Float[Array, "B n D"]:
    """Image tokens without their positions."""
    return self.embed_token.apply({"params": params["image"]["in"]}, x)

  def embed_image(
    self,
    params: Params,
    x: Float[Array, "B N C"],
    cells: Int[Array, "B N"],
  ) -> Float[Array, "B N D"]:
    """Inputs that predict the tokens of `cells` in that order.

    Slot 0 is BOI, slot i carries token i-1 and where it stands; every slot
    also carries where the token it predicts will stand (UniFluid §3.2, RAR).
    """
    table = params["image"]
    tokens = self.embed_tokens(params, parallel.constrain(x[:, :-1], "BTC"))
    position = parallel.gather(table["position"], None, "fsdp")
    tokens = tokens + order.current(position, cells)
    boi = jnp.broadcast_to(table["boi"], (x.shape[0], 1, tokens.shape[-1]))
    inputs = jnp.concatenate([boi.astype(tokens.dtype), tokens], axis=1)
    coming = parallel.gather(table["next_position"], None, "fsdp")
    inputs = inputs + order.next(coming, cells).astype(inputs.dtype)
    return parallel.constrain(inputs, "BTD")

  def prompt_parts(
    self,
    params: Params,
    frozen: Any,
    prompts: Prompts,
    kernel: str = "plain",
  ) -> packing.Packed:
    """The bidirectional prefix of a generation or editing example."""
    parts = []
    if prompts.source is not None:
      x = self.embed_pixels(params, prompts.source, kernel)
      parts.append(packing.prefix(x, packing.all_valid(x)))
      if self.config.model.edit_latents:
        x = self.embed_source(params, frozen, prompts.source_image)
        parts.append(packing.prefix(x, packing.all_valid(x)))
    x = self.embed_text(params, prompts.text)
    parts.append(packing.prefix(x, packing.text_valid(prompts.text)))
    return packing.join(parts)

  def embed_source(
    self, params: Params, frozen: Any, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B N D"]:
    """The VAE tokens of an image to edit, with positions, as a prefix."""
    x = self.encode(frozen, images, None, None)
    position = params["image"]["position"].astype(self.decoder.dtype)
    return self.embed_tokens(params, x) + position

  def encode(
    self,
    frozen: Any,
    images: Float[Array, "B H W 3"] | None,
    moments: Float[Array, "B h w c2"] | None,
    key: PRNGKeyArray | None,
  ) -> Float[Array, "B N C"]:
    """Normalised image tokens in raster order; without a key the mode."""
    if moments is None:
      vae = {"params": frozen["vae"]}
      moments = self.vae.apply(vae, images, method="encode")
    z = kl_vae.sample(moments.astype(jnp.float32), key)
    z = kl_vae.to_latents(z, frozen["latent_mean"], frozen["latent_scale"])
    return patches.patchify(z, self.config.model.patch)

  # ------------------------------------------------------------------- loss

  def counts(self, batch: Batch) -> dict[str, Any]:
    """Tokens of images and of answers, and answers; see `Trainable.counts`."""
    drawn = [e.prompt for e in (batch.t2i, batch.edit) if e is not None]
    answers = [e.suffix for e in (batch.i2t, batch.text) if e is not None]
    words = sum((suffix != PAD).sum() for suffix in answers)
    return {
      "image_tokens": sum(map(len, drawn)) * self.config.model.image_tokens,
      "answer_tokens": jnp.maximum(words, 1),
      "answers": sum(map(len, answers)),
    }

  def loss(
    self,
    params: Params,
    frozen: Any,
    batch: Batch,
    counts: Mapping[str, Any],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics]:
    """L = L_visual + lambda * L_text over one backbone pass (UniFluid §4.1)."""
    keys = jax.random.split(key, 5)
    c, params = self.config, self._with_narrow_table(params)
    r = order.randomness(step, c.order.random_until, c.order.raster_from)
    tasks, images, texts = [], [], []
    for i, e in enumerate((batch.t2i, batch.edit)):
      if e is not None:
        source = (e.source, e.source_image) if e is batch.edit else ()
        packed, target = self._pack_image(
          params, frozen, Prompts(e.prompt, *source), e, keys[i], r
        )
        images.append((len(tasks), target))
        tasks.append(packed)
    for i, example in enumerate((batch.i2t, batch.text)):
      if example is not None:
        texts.append((len(tasks), example.suffix))
        k = jax.random.fold_in(keys[4], i)
        tasks.append(self._pack_answer(params, example, k))
    hidden = self._backbone(params, tasks, keys[2])
    total, metrics = jnp.float32(0), {}
    if images:
      total, metrics = self._visual_loss(
        params, tasks, hidden, images, counts, keys[3]
      )
      drawn = sum(target.shape[0] * target.shape[1] for _, target in images)
      metrics["order_randomness"] = r * (drawn / counts["image_tokens"])
    if texts:
      text, more = self._text_loss(params, tasks, hidden, texts, counts)
      metrics |= more
      total = total + c.loss.text_weight * text
    return total, metrics

  def _with_narrow_table(self, params: Params) -> Params:
    """Parameters with tables of the vocabulary in the dtype of their uses.

    Their gradients, of lookups and of logits, are summed in it over devices.
    """
    cast = decoder.cast_tables(params["decoder"], self.decoder.dtype)
    return params | {"decoder": cast}

  def _for_loops(self, params: Params) -> Params:
    """Parameters with weights in the dtype of their products.

    Each use narrows them to it: decoding would, of all of them, for every
    token.
    """
    params, dtype = self._with_narrow_table(params), self.decoder.dtype
    layers = stack.narrow(params["decoder"]["layers"], dtype)
    return params | {
      "decoder": params["decoder"] | {"layers": layers},
      "head": diffusion_head.narrow(params["head"], dtype),
    }

  def _pack_image(self, params, frozen, prompts, example, key, r):
    """A generation example as a sequence, and the tokens it must predict."""
    c = self.config
    k_latent, k_order, k_drop = jax.random.split(key, 3)
    moments = getattr(example, "moments", None)
    x = self.encode(frozen, example.image, moments, k_latent)
    b, n, _ = x.shape
    cells = order.sample_orders(k_order, b, n, r)
    x = order.take_tokens(x, cells)
    # One draw for both: with equal rates p of edits, p/2 lose their text
    # alone, p/2 their source alone, p/2 both, as InstructPix2Pix trains.
    u, p = jax.random.uniform(k_drop, (b, 1)), c.loss.prompt_dropout
    text = jnp.where(u < p, packing.null_prompt(prompts.text), prompts.text)
    prompts = prompts._replace(text=text)
    head = self.prompt_parts(params, frozen, prompts, self.vit_kernel)
    if prompts.source is not None and c.loss.image_dropout:
      hidden = (u >= p / 2) & (u < p / 2 + c.loss.image_dropout)
      head = packing.hide_source(head, text.shape[1], hidden[:, 0])
    tail = self.embed_image(params, x, cells)
    tail = packing.causal(tail, packing.all_valid(tail))
    return packing.join([head, tail]), x

  def _pack_answer(self, params, example, key):
    """An understanding or text example: predicts its suffix.

    With word dropout (arXiv 1511.06349) some words of the answer are unknown
    to the words after them, which then must be read off the image.
    """
    parts = []
    if hasattr(example, "image"):
      x = self.embed_pixels(params, example.image, self.vit_kernel)
      parts.append(packing.prefix(x, packing.all_valid(x)))
    fed, p = example.suffix[:, :-1], self.config.loss.word_dropout
    if p:
      lost = (jax.random.uniform(key, fed.shape) < p) & (fed != PAD)
      fed = jnp.where(lost, UNK, fed)
    tokens = jnp.concatenate([example.prefix, fed], axis=1)
    x = self.embed_text(params, tokens)
    p = example.prefix.shape[1]
    valid = packing.text_valid(tokens)
    parts.append(packing.prefix(x[:, :p], valid[:, :p]))
    parts.append(packing.causal(x[:, p:], valid[:, p:]))
    return packing.join(parts)

  def _backbone(self, params, tasks, key):
    """One decoder pass over all tasks; hidden states a task."""
    groups = parallel.batch_groups()
    whole = packing.merge(tasks, groups)
    mask = block_causal_mask(whole.block, whole.valid)
    hidden, _ = self.decoder.apply(
      {"params": params["decoder"]},
      parallel.constrain(whole.x, "BTD"),
      packing.positions(whole.valid),
      mask,
      dropout_key=key,
    )
    sizes = [t.x.shape[0] for t in tasks]
    return packing.split(hidden, sizes, groups)

  def _visual_loss(self, params, tasks, hidden, images, counts, key):
    """MSE + VB of every image token, several noise draws each (MAR)."""
    z, x0 = [], []
    for i, target in images:
      n, length = target.shape[1], tasks[i].x.shape[1]
      z.append(hidden[i][:, length - n : length])
      x0.append(target)
    z = parallel.constrain(jnp.concatenate(z), "BTD")
    x0 = parallel.constrain(jnp.concatenate(x0), "BTC")
    draws = self.config.loss.draws
    x0 = jnp.broadcast_to(x0, (draws, *x0.shape))
    k_t, k_noise = jax.random.split(key)
    t = diffusion.sample_steps(k_t, draws, x0.shape[1:-1])
    noise = jax.random.normal(k_noise, x0.shape, jnp.float32)
    x_t = diffusion.q_sample(self.schedule, x0, t, noise)
    # Said outright: between weights split over fsdp and a batch split over
    # it, the partitioner would rather split the products' sums.
    x_t = parallel.constrain(x_t, "_BTC")
    t = parallel.constrain(t, "_BT")
    out = self.head.apply({"params": params["head"]}, x_t, t, z)
    mse, vb = diffusion.loss_terms(self.schedule, out, x0, x_t, t, noise)
    count = draws * counts["image_tokens"]
    mse, vb = mse.sum() / count, vb.sum() / count
    return mse + vb, {"loss_visual": mse + vb, "mse": mse, "vb": vb}

  def _text_loss(self, params, tasks, hidden, texts, counts):
    """Cross entropy of the answers; labels smoothed if configured.

    The mean is over all answer tokens, or within each answer first, as
    PaliGemma's, which gives a word of a long answer less weight. UniFluid
    does not say; captions of the embedded world are learned faster the first
    way (docs/results.md), transfers take the second.
    """
    h, suffix = [], []
    for i, target in texts:
      a, length = target.shape[1], tasks[i].x.shape[1]
      h.append(hidden[i][:, length - a : length])
      suffix.append(target)
    # Each device scores its part of the vocabulary for all rows of its fsdp
    # group: the states of some answers travel, not the table nor its gradient.
    h = parallel.constrain(jnp.concatenate(h), "GTD")
    suffix = parallel.constrain(jnp.concatenate(suffix), "GT")
    config = self.config.model.decoder
    table = decoder.output_table(params["decoder"])

    def logits(x):
      return parallel.constrain(decoder.logits(config, table, x), "GTV")

    c = self.config.loss
    nll, hits = chunked_cross_entropy(
      logits, h, suffix, c.vocab_chunk, c.label_smoothing
    )
    mask = (suffix != PAD).astype(jnp.float32)
    count, nll = counts["answer_tokens"], nll * mask
    loss, accuracy = nll.sum() / count, (hits * mask).sum() / count
    if c.text_mean == "answers":
      lengths = jnp.maximum(mask.sum(axis=1), 1)
      loss = (nll.sum(axis=1) / lengths).sum() / counts["answers"]
    return loss, {"loss_text": loss, "text_accuracy": accuracy}

  # ------------------------------------------------------------------ decode

  def generate(
    self,
    params: Params,
    frozen: Any,
    prompts: Prompts,
    key: Key[Array, "*rows"],
    sampling: Any,
    cells: Int[Array, "B N"] | None = None,
  ) -> Float[Array, "B H W 3"]:
    """Images for prompts; see `unifluid_decode.generate`."""
    return unifluid_decode.generate(
      self, self._for_loops(params), frozen, prompts, key, sampling, cells
    )

  def answer(
    self,
    params: Params,
    frozen: Any,
    images: Float[Array, "B *F H W 3"] | None,
    prefix: Int[Array, "B P"],
    sampling: Any,
  ) -> Int[Array, "B A"]:
    """Token ids; see `unifluid_decode.answer`."""
    del frozen
    return unifluid_decode.answer(
      self, self._for_loops(params), images, prefix, sampling
    )

  def reconstruct(
    self, frozen: Any, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the frozen VAE and back: the limit of generation."""
    variables = {"params": frozen["vae"]}
    moments = self.vae.apply(variables, images, method="encode")
    z = kl_vae.sample(moments, None)
    return self.vae.apply(variables, z, method="decode")
