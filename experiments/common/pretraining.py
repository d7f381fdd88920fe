"""Small transformers trained by backprop on augmented images, or on images and captions, in runs that go on."""

import dataclasses
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from cetsim import datasets, interpret
from cetsim.interpret.clip import unit
from cetsim.interpret.order import batch_rows

PAD = 4  # pixels that a picture is moved by at most


class State(eqx.Module):
    """A run at one moment: arrays of the model, AdamW's state, key and seed of all that is random, and steps made."""

    params: eqx.Module
    optimizer: optax.OptState
    key: Array
    seed: Array
    step: Array


class Pretraining(eqx.Module):
    """Training by backprop: `init`, `advance` and `model`.

    **Arguments:**

    - `make`: of a key, the model. `loss`: of `(model, images, others)`, a number.
    - `x`, `other`: images `[n, channels, height, width]`, and their labels or captions.
    - `steps`, `batch`, `rate`, `decay`: of AdamW, with a tenth of warm-up and a cosine down to a hundredth.
    - `augment`: whether images are moved by up to 4 pixels and mirrored.
    """

    make: Callable = eqx.field(static=True)
    loss: Callable = eqx.field(static=True)
    x: Array
    other: Array
    steps: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    decay: float = eqx.field(static=True)
    augment: bool = eqx.field(static=True)

    def init(self, seed: int) -> State:
        """The run before its first step."""
        model_key, order = jax.random.split(jax.random.key(seed))
        params = eqx.filter(self.make(model_key), eqx.is_inexact_array)
        return State(params, self._optimizer().init(params), order, jnp.asarray(seed), jnp.zeros((), int))

    def advance(self, state: State, steps: int) -> tuple[State, dict]:
        """The run after so many steps (static), and the loss of each."""
        state, losses = jax.lax.scan(lambda state, _: self._step(state), state, length=steps)
        return state, {"loss": losses}

    def model(self, state: State):
        """The model at this moment."""
        return eqx.combine(state.params, self._template())

    def _step(self, state: State):
        rows = batch_rows(state.key, state.step, self.batch, len(self.x))
        x = self.x[rows]
        if self.augment:
            apart = jax.random.fold_in(state.key, 2**31 - 1)  # far from the epochs by which the order is folded
            x = jax.vmap(augmented)(jax.random.split(jax.random.fold_in(apart, state.step), self.batch), x)
        template = self._template()
        loss = lambda params: self.loss(eqx.combine(params, template), x, self.other[rows])  # noqa: E731
        value, slope = jax.value_and_grad(loss)(state.params)
        changes, optimizer = self._optimizer().update(slope, state.optimizer, state.params)
        params = optax.apply_updates(state.params, changes)
        return dataclasses.replace(state, params=params, optimizer=optimizer, step=state.step + 1), value

    def _template(self):
        model = eqx.filter_eval_shape(self.make, jax.random.key(0))
        return eqx.filter(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct), inverse=True)

    def _optimizer(self):
        rise = max(1, self.steps // 10)
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, rise, max(self.steps, rise + 1), self.rate / 100)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=self.decay))


def standardised(data: datasets.Dataset, images):
    """Images `[n, channels, height, width]` less each channel's mean, over its deviation, of the training images.

    A transformer's first layer sees brightness beside all else: with a mean of 0.5 and a deviation of 0.2 each patch
    says above all that it is a patch.
    """
    how = dict(axis=(0, 2, 3), keepdims=True, dtype=np.float64)
    mean, sd = (moment(**how).astype(np.float32) for moment in (data.train_x.mean, data.train_x.std))
    return (images - mean) / sd


def augmented(key, image):
    """The image, moved by up to 4 pixels with zeros behind, and mirrored every other time."""
    place, side = jax.random.split(key)
    padded = jnp.pad(image, ((0, 0), (PAD, PAD), (PAD, PAD)))
    start = jax.random.randint(place, (2,), 0, 2 * PAD + 1)
    moved = jax.lax.dynamic_slice(padded, (jnp.zeros((), start.dtype), *start), image.shape)
    return jnp.where(jax.random.bernoulli(side), moved[:, :, ::-1], moved)


def vit(image: tuple[int, ...], patch: int, width: int, blocks: int, classes: int) -> Callable:
    """A function of a key that makes a vision transformer whose patches' mean is read."""
    sizes = dict(hidden=2 * width, classes=classes, pool="mean", norm="pooled")
    return lambda key: interpret.VisionTransformer(image, patch, width, blocks, 4, **sizes, key=key)


def clip(image: tuple[int, ...], patch: int, width: int, blocks: int) -> Callable:
    """A function of a key that makes a CLIP of captions of digits."""
    sizes = dict(hidden=2 * width, classes=width)

    def make(key):
        keys = jax.random.split(key)
        vision = interpret.VisionTransformer(image, patch, width, blocks, 4, **sizes, key=keys[0])
        text = interpret.TextTransformer(len(datasets.VOCABULARY), 5, width, blocks, 4, **sizes, key=keys[1])
        return interpret.Clip(vision, text, jnp.log(jnp.asarray(10.0)))

    return make


def classified(model, x, labels):
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), labels).mean()


def matched(model, x, captions):
    """CLIP's loss: which caption of the batch goes with an image, and which image with a caption.

    Captions that a batch has several times are all right.
    """
    images = jax.vmap(lambda one: unit(model.vision(one)))(x)
    texts = jax.vmap(lambda one: unit(model.text(one)))(captions)
    logits = images @ texts.T * jnp.exp(model.log_scale)
    same = (captions[:, None] == captions).all(-1).astype(logits.dtype)
    right = same / same.sum(1, keepdims=True)
    return (optax.softmax_cross_entropy(logits, right) + optax.softmax_cross_entropy(logits.T, right)).mean() / 2


@eqx.filter_jit
def said(model, x):
    """What a model says of images."""
    return jax.vmap(model)(x)


@eqx.filter_jit
def best_captions(model, x, captions):
    """The number of the caption that goes best with each image."""
    texts = jax.vmap(lambda one: unit(model.text(one)))(captions)
    return jnp.argmax(jax.vmap(model.vision)(x) @ texts.T, axis=1)


def in_parts(function: Callable, x, size: int = 500) -> list:
    """What a function makes of parts of the images."""
    return [function(jnp.asarray(x[i : i + size])) for i in range(0, len(x), size)]


def accuracy(model, x, labels) -> dict:
    """Share of the images whose class is the likeliest."""
    logits = jnp.concatenate(in_parts(partial(said, model), x))
    return {"accuracy": float((logits.argmax(1) == labels).mean())}


def caption_accuracy(model, x, facts) -> dict:
    """Share of the images whose caption is the best of all captions, and in which its parts are right."""
    every = datasets.all_facts()
    captions = jnp.asarray(datasets.captions_of(every))
    found = every[jnp.concatenate(in_parts(lambda part: best_captions(model, part, captions), x))] == facts
    parts = dict(zip(("colour", "digit", "place"), found.mean(0).tolist(), strict=True))
    return {"accuracy": float(found.all(1).mean())} | parts
