"""The convolutional network of the paper's CIFAR-10 experiments."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from cetsim import checks
from cetsim.nn.batch_norm import BatchNorm
from cetsim.nn.conv import AvgPool2d, Conv2d, fastest_layout
from cetsim.nn.init import xavier


def cnn(
    image: tuple[int, int, int] = (3, 32, 32),
    channels: tuple[int, ...] = (32, 64, 128),
    hidden: int = 512,
    classes: int = 10,
    *,
    statistics: str = "segment",
    layout: str | None = None,
    key: Array,
) -> eqx.nn.Sequential:
    """3x3 convolutions, each with ReLU, 2x2 average pool and batch norm without affine parameters; two linear layers.

    Batch norm keeps a state: make the model by `eqx.nn.make_with_state(cnn)(key=key)` and call it as
    `logits, state = model(x, state)` on one image `[channels, height, width]`, inside a `vmap` over time with
    `axis_name="time"`. Weights as by `xavier`.

    **Arguments:**

    - `image`: shape of one.
    - `channels`: of each convolution.
    - `hidden`: units of the first linear layer.
    - `statistics`: of batch norm, `"segment"` or `"running"`.
    - `layout`: of the images inside; None for the backend's faster one.

    **Raises:** ValueError for an image that cannot be halved once a convolution.

    **Reference:** arXiv:2506.14598, CIFAR-10.
    """
    hidden, classes = checks.require_whole("hidden", hidden), checks.require_whole("classes", classes)
    layout = fastest_layout() if layout is None else layout
    before, height, width = image
    halvings = 2 ** len(channels)
    if height % halvings or width % halvings:
        raise ValueError(f"height and width must be multiples of {halvings} to be pooled, got {height} x {width}")
    *conv_keys, hidden_key, last_key = jax.random.split(key, len(channels) + 2)
    layers = [eqx.nn.Lambda(_channels_last)] if layout == "channels_last" else []
    for after, conv_key in zip(channels, conv_keys, strict=True):
        conv = xavier(Conv2d(before, after, layout=layout, key=conv_key), conv_key)
        pool, norm = AvgPool2d(layout=layout), BatchNorm(after, statistics, layout=layout)
        layers += [conv, eqx.nn.Lambda(jax.nn.relu), pool, norm]
        before = after
    features = before * (height // halvings) * (width // halvings)
    first, last = eqx.nn.Linear(features, hidden, key=hidden_key), eqx.nn.Linear(hidden, classes, key=last_key)
    layers += [eqx.nn.Lambda(jnp.ravel), xavier(first, hidden_key), eqx.nn.Lambda(jax.nn.relu), xavier(last, last_key)]
    return eqx.nn.Sequential(layers)


def _channels_last(x):
    return jnp.moveaxis(x, 0, -1)
