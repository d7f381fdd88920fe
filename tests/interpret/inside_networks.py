"""Small networks of every kind that is opened, and a coder that stands in for a trained one."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import cetsim

TOKENS, WIDTH, HEADS = 5, 8, 2  # 4 patches and a class token


class Coder(eqx.Module):
    """latents = relu(W_enc x + b), x̂ = latents W_dec."""

    W_enc: jax.Array
    b: jax.Array
    W_dec: jax.Array

    def encode(self, x):
        return jax.nn.relu(self.W_enc @ x + self.b)

    def decode(self, latents):
        return latents @ self.W_dec


def coder(d, latents=6, seed=0):
    rng = np.random.default_rng(seed)
    arrays = rng.normal(size=(latents, d)), rng.uniform(0.5, 1, latents), rng.normal(size=(latents, d))
    return Coder(*map(jnp.asarray, arrays))


class Block(eqx.Module):
    """A pre-norm transformer block; every module acts on one token but for the attention."""

    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.Sequential

    def __init__(self, key):
        keys = jax.random.split(key)
        self.norms = (eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH))
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, use_output_bias=True, key=keys[0])
        self.mlp = cetsim.nn.mlp((WIDTH, 6, WIDTH), jnp.tanh, key=keys[1])

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


class Transformer(eqx.Module):
    """A vision transformer on images `[4, 4]` with patches of 2 x 2."""

    embed: eqx.nn.Linear
    cls: jax.Array
    positions: jax.Array
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 6)
        self.embed, self.head = eqx.nn.Linear(4, WIDTH, key=keys[0]), eqx.nn.Linear(WIDTH, 3, key=keys[1])
        self.cls, self.positions = jax.random.normal(keys[2], (WIDTH,)), jax.random.normal(keys[3], (TOKENS, WIDTH))
        self.blocks, self.norm = (Block(keys[4]), Block(keys[5])), eqx.nn.LayerNorm(WIDTH)

    def __call__(self, image):
        patches = image.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        x = jnp.concatenate([self.cls[None], jax.vmap(self.embed)(patches)]) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[0]))


def mlp():
    return cetsim.nn.mlp((4, 6, 5, 3), jnp.tanh, key=jax.random.key(0)), (4,), None


def equinox_mlp():
    return eqx.nn.MLP(4, 3, width_size=5, depth=2, activation=jnp.tanh, key=jax.random.key(0)), (4,), None


def cnn(layout="channels_last"):
    made = eqx.nn.make_with_state(cetsim.nn.cnn)
    model, state = made((2, 8, 8), (3, 4), 5, 3, layout=layout, key=jax.random.key(0))
    return model, (2, 8, 8), state


def resnet():
    made = eqx.nn.make_with_state(cetsim.nn.resnet20)
    model, state = made(3, (2, 3, 4), 1, statistics="running", layout="channels_first", key=jax.random.key(0))
    return model, (1, 8, 8), state


def transformer():
    return Transformer(jax.random.key(0)), (4, 4), None


def attached():
    """With traces, and an embedding of its own tree: names and values are those of the plain model."""
    model, shape, state = mlp()
    return cetsim.attach(model, cetsim.CascadingTrace(2, 0.6), cetsim.FixedDelay(0.4)), shape, state


KINDS = {each.__name__: each for each in (mlp, equinox_mlp, cnn, resnet, transformer, attached)}


def images(shape, count=3, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, *shape)))


def copied(state):
    """A state that can be used, of which others can be made."""
    return jax.tree.map(lambda leaf: leaf, state)


def outputs(model, state, x):
    """What a model says of every image, without its state."""
    call = model if state is None else lambda x: model(x, copied(state))[0]
    return jax.vmap(call, axis_name="time")(x)


def captured(function, state, x):
    """What a function made by `capture` says of every image: outputs without states, and values."""

    def call(x):
        if state is None:
            return function(x)
        output, values = function(x, copied(state))
        return output[0] if isinstance(output, tuple) else output, values

    return jax.vmap(call, axis_name="time")(x)
