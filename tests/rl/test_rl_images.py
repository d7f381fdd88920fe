"""The convolutional critic: its patches against XLA's convolution, and a run that learns with it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import jit
from worlds import corridor

from cetsim.rl import ActorCriticRun, Learner, Settings, images, networks, without_delay
from cetsim.rl.environments import Environment, split_signs
from cetsim.rl.policies import Categorical

SHAPE = (8, 7, 2)
SETTINGS = Settings(updates=4, environments=3, rollout=11, hidden=(6,), critic="conv")


def pictures() -> Environment:
    """The corridor, its observation repeated over an image."""
    plain, size = corridor(), int(np.prod(SHAPE))
    picture = lambda x: jnp.resize(x, size)  # noqa: E731

    def reset(key):
        state, observation = plain.reset(key)
        return state, picture(observation)

    def step(key, state, action):
        state, step = plain.step(key, state, action)
        return state, step._replace(observation=picture(step.observation), final=picture(step.final))

    return plain._replace(size=size, reset=reset, step=step, image=SHAPE)


def test_patches_are_a_convolution():
    layer = images.PatchConv(2, 5, key=jax.random.key(0))
    layer = eqx.tree_at(lambda layer: layer.bias, layer, jnp.arange(5.0))
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
    kernel = layer.weight.reshape(5, 3, 3, 2)
    numbers = ("NHWC", "OHWI", "NHWC")
    plain = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers) + layer.bias
    np.testing.assert_allclose(layer(x), plain, rtol=1e-12)
    np.testing.assert_allclose(layer(x[0]), plain[0], rtol=1e-12)


def test_many_images_at_once_are_each_alone():
    critic = images.critic(SHAPE, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 2, int(np.prod(SHAPE))))
    values = networks.outputs(critic, x)
    assert values.shape == (3, 2, 1)
    np.testing.assert_allclose(values, jax.vmap(jax.vmap(critic))(x), rtol=1e-10)
    sizes = [layer.weight.shape for layer in critic.layers if hasattr(layer, "weight")]
    assert sizes == [(16, 18), (32, 144), (32, 288), (512, 2 * 1 * 32), (1, 512)]


def test_a_run_learns_values_with_it():
    """Its gradient is autodiff's of the same critic written with XLA's convolution; the actor's is as without it."""
    run = ActorCriticRun(pictures(), SETTINGS)
    state = run.init(without_delay(1e-2), jax.random.key(0))
    _, rollout = jit(run.roll_out)(state.agent.params, state.vector_env, jax.random.key(1))
    model = run.learner.networks(state.agent.params)
    td_error, targets = jit(run.learner.td_errors)(state.agent.hyper, model.critic, rollout)
    _, grads, _ = jit(run.learner.gradient)(state.agent, rollout)
    arrays = [layer for layer in model.critic.layers if hasattr(layer, "weight")]

    @jit
    @jax.grad
    def of(weights):
        x, numbers = rollout.observation.reshape(-1, *SHAPE), ("NHWC", "OHWI", "NHWC")
        for weight, layer in zip(weights[:3], arrays[:3], strict=True):
            kernel = weight.reshape(weight.shape[0], 3, 3, -1)
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers) + layer.bias
            x = jax.nn.relu(x)
        x = jax.nn.relu(x.reshape(len(x), -1) @ weights[3].T)
        return 0.25 * jnp.mean((x @ weights[4].T - targets.reshape(-1, 1)) ** 2)

    expected = of([layer.weight for layer in arrays])
    found = [layer.weight for layer in grads.critic.layers if getattr(layer, "weight", None) is not None]
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-12)
    assert td_error.shape == (11, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: images.critic((6, 9, 1), key=jax.random.key(0)), "images of at least 7 x 7, got 6 x 9"),
        (lambda: dataclasses.replace(SETTINGS, critic="cnn"), "`critic` must be one of 'mlp', 'conv', got 'cnn'"),
        (
            lambda: dataclasses.replace(SETTINGS, late_critic=True),
            "must be 'mlp' where it is late, got 'conv'",
        ),
        (lambda: ActorCriticRun(corridor(), SETTINGS).learner, "must be 'mlp' where observations are no images"),
        (lambda: ActorCriticRun(split_signs(pictures()), SETTINGS).learner, "where observations are no images"),
        (lambda: Learner(4, Categorical(2), SETTINGS), "where observations are no images"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
