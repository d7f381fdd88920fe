"""Makes peers/braintrace.npz: online gradients of spiking neurons by braintrace's D_RTRL and EProp.

In an environment of its own, of Python 3.11: `pip install braintrace==0.2.6`, then
`python tests/spiking/make_braintrace.py`.

- `recurrent`: leaky integrate-and-fire neurons that see inputs and their own spikes of the step before, by `D_RTRL`:
  the learning signals meet e-prop's eligibility ψ x̂ at once.
- `eprop`: the same neurons by `EProp` with a filter κ, x̄ ← κ x̄ + x̂: ψ meets it when the signal comes.
- `filtered`: leaky integrators, by `EProp` with a filter κ of the eligibility, ē ← κ ē + x̂: an exponential trace.
"""

from pathlib import Path

import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)
brainstate.environ.set(precision=64)
STEPS, IN, OUT, DECAY, THRESHOLD, STEEPNESS, KAPPA = 40, 5, 4, 0.85, 0.25, 4.0, 0.9


@jax.custom_jvp
def spike(u):
    """H(u)."""
    return (u > 0).astype(u.dtype)


@spike.defjvp
def _(primals, tangents):
    return spike(*primals), tangents[0] / (1 + STEEPNESS * jnp.abs(primals[0])) ** 2


class Neurons(brainstate.nn.Module):
    """Neurons that see inputs and, where they spike, their own spikes of the step before."""

    def __init__(self, weight, spiking: bool):
        super().__init__()
        self.synapses, self.spiking = brainstate.ParamState(weight), spiking

    def init_state(self, batch_size=None, **_):
        """v = 0."""
        self.v = brainstate.HiddenState(jnp.zeros(OUT))

    def update(self, x):
        """One step; the output is the spike, or v."""
        v = self.v.value
        own = jax.lax.stop_gradient(spike(v - THRESHOLD)) if self.spiking else jnp.zeros(0)
        current = braintrace.matmul(jnp.concatenate([x, own]), self.synapses.value)
        v = DECAY * v + (1 - DECAY) * current
        if self.spiking:
            v = v - THRESHOLD * own
        self.v.value = v
        return spike(v - THRESHOLD) if self.spiking else v


def online(weight, x, signal, algorithm, spiking, **options):
    """Outputs, and the gradient of Σ signal · output that the algorithm accumulates."""
    learner = braintrace.compile(Neurons(weight, spiking), algorithm, x[0], **options)
    total, outputs = 0.0, []
    states = learner.model.states(brainstate.ParamState) if hasattr(learner, "model") else learner.param_states
    for now, wanted in zip(x, signal, strict=True):

        def loss(now=now, wanted=wanted):
            output = learner(now)
            return jnp.sum(wanted * output), output

        grads, output = brainstate.transform.grad(loss, states, has_aux=True)()
        total = total + next(iter(jax.tree.leaves(grads)))
        outputs.append(output)
    return np.stack(outputs), np.asarray(total).T


def main():
    """Writes the arrays."""
    rng = np.random.default_rng(0)
    x, signal = (rng.random((STEPS, IN)) < 0.5) * 1.0, rng.normal(size=(STEPS, OUT))
    weight = rng.normal(size=(IN + OUT, OUT))
    arrays = dict(x=x, signal=signal, weight=weight.T)
    arrays |= dict(decay=DECAY, threshold=THRESHOLD, steepness=STEEPNESS, kappa=KAPPA)
    x, signal, weight = map(jnp.asarray, (x, signal, weight))
    for name, algorithm, w, spiking, options in (
        ("recurrent", braintrace.D_RTRL, weight, True, {}),
        ("eprop", braintrace.EProp, weight, True, {"kappa_filter_decay": KAPPA}),
        ("filtered", braintrace.EProp, weight[:IN], False, {"kappa_filter_decay": KAPPA}),
    ):
        arrays[f"{name}_outputs"], arrays[f"{name}_gradient"] = online(w, x, signal, algorithm, spiking, **options)
    np.savez_compressed(Path(__file__).parent / "peers/braintrace.npz", **arrays)


if __name__ == "__main__":
    main()
