"""The residual network of the paper's TinyImageNet experiments."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks
from cetsim.nn.batch_norm import BatchNorm
from cetsim.nn.conv import Conv2d, fastest_layout
from cetsim.nn.init import xavier

_BLOCKS = 3  # in each of the three stages: 1 + 3·3·2 convolutions and the linear layer make 20 layers


class BasicBlock(eqx.nn.StatefulLayer):
    """Two convolutions and a way around them, relu(N(W2 relu(N(W1 x))) + shortcut(x)), N being batch norm.

    The shortcut has no parameters: it takes every `stride`-th pixel and adds channels of zeros behind those there are.
    """

    convs: tuple[Conv2d, Conv2d]
    norms: tuple[BatchNorm, BatchNorm]
    layout: str = eqx.field(static=True)
    stride: int = eqx.field(static=True)

    def __init__(self, before: int, after: int, stride: int = 1, *, statistics: str, layout: str, key: Array):
        first, second = jax.random.split(key)
        self.layout, self.stride = layout, stride
        self.convs = (_convolution(before, after, stride, layout, first), _convolution(after, after, 1, layout, second))
        self.norms = (BatchNorm(after, statistics, layout=layout), BatchNorm(after, statistics, layout=layout))

    def __call__(self, x: Float[Array, "..."], state: eqx.nn.State, *, key=None):
        """One image in the block's layout to `(image, state)`; `key` is not used."""
        y, state = self.norms[0](self.convs[0](x), state)
        y, state = self.norms[1](self.convs[1](jax.nn.relu(y)), state)
        return jax.nn.relu(y + self._shortcut(x, y.shape)), state

    def _shortcut(self, x, shape):
        channel = _channel_axis(self.layout)
        every = [slice(None, None, self.stride)] * 3
        every[channel] = slice(None)
        added = [(0, 0)] * 3
        added[channel] = (0, shape[channel] - x.shape[channel])
        return jnp.pad(x[tuple(every)], added)


class ResNet(eqx.nn.StatefulLayer):
    """A convolution, residual blocks, the mean over the image and a linear layer; made by `resnet20`."""

    stem: Conv2d
    norm: BatchNorm
    blocks: tuple[BasicBlock, ...]
    head: eqx.nn.Linear
    layout: str = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "channel height width"], state: eqx.nn.State, *, key=None
    ) -> tuple[Float[Array, "class"], eqx.nn.State]:
        """One image, channels first whatever the layout inside, to `(logits, state)`; `key` is not used."""
        channel = _channel_axis(self.layout)
        y, state = self.norm(self.stem(jnp.moveaxis(x, 0, channel)), state)
        y = jax.nn.relu(y)
        for block in self.blocks:
            y, state = block(y, state)
        return self.head(jnp.moveaxis(y, channel, 0).mean((1, 2))), state


def _convolution(before: int, after: int, stride: int, layout: str, key) -> Conv2d:
    """3 x 3, without a bias: the batch norm behind it takes off the mean."""
    return xavier(Conv2d(before, after, stride=stride, use_bias=False, layout=layout, key=key), key)


def _channel_axis(layout: str) -> int:
    return 0 if layout == "channels_first" else 2


def resnet20(
    classes: int = 200,
    channels: tuple[int, ...] = (16, 32, 64),
    in_channels: int = 3,
    *,
    statistics: str = "segment",
    layout: str | None = None,
    key: Array,
) -> ResNet:
    """The ResNet-20 for small images: a 3 x 3 convolution, three stages of three basic blocks, mean, linear layer.

    The second and third stage begin with a stride of 2. Batch norm has no affine parameters and keeps a state: make the
    model by `eqx.nn.make_with_state(resnet20)(key=key)` and call it as `logits, state = model(x, state)` on one image
    `[in_channels, height, width]`, inside a `vmap` over time with `axis_name="time"`. Its activations stand in its own
    code, so that `attach` takes `form="preactivation"`. Weights as by `xavier`; convolutions have no biases.

    **Arguments:**

    - `classes`: number of logits.
    - `channels`: in each stage.
    - `in_channels`: of an image.
    - `statistics`: of batch norm, `"segment"` or `"running"`.
    - `layout`: of the images inside; None for the backend's faster one.

    **Raises:** ValueError unless there are three numbers of channels, none smaller than the one before, and for a
    number below 1.

    **Reference:** He et al., Deep residual learning for image recognition (2016), section 4.2; arXiv:2506.14598.
    """
    if len(channels) != 3 or channels[0] < 1 or any(after < before for before, after in itertools.pairwise(channels)):
        raise ValueError(f"`channels` must be three numbers above 0, none smaller than the one before, got {channels}")
    checks.require_whole("classes", classes)
    checks.require_whole("in_channels", in_channels)
    layout = fastest_layout() if layout is None else layout
    stem_key, head_key, *keys = jax.random.split(key, 2 + 3 * _BLOCKS)
    blocks, before = [], channels[0]
    for i, block_key in enumerate(keys):
        after, stride = channels[i // _BLOCKS], 2 if i in (_BLOCKS, 2 * _BLOCKS) else 1
        blocks.append(BasicBlock(before, after, stride, statistics=statistics, layout=layout, key=block_key))
        before = after
    stem = _convolution(in_channels, channels[0], 1, layout, stem_key)
    head = xavier(eqx.nn.Linear(before, classes, key=head_key), head_key)
    return ResNet(stem, BatchNorm(channels[0], statistics, layout=layout), tuple(blocks), head, layout)
