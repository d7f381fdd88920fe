"""What may differ between runs of one program, and what is compiled into it."""

import dataclasses

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from cetsim import checks, credit
from cetsim.delays import FixedDelay, LayerwiseDelay
from cetsim.spiking.neurons import AbstractNeuron
from cetsim.traces import AbstractTrace, DelayLine

ACTOR_GRADIENTS = ("mean", "sum")
ANNEALED = ("none", "critic", "both")
CRITICS = ("mlp", "conv")
DERIVATIVES = ("ideal", "cascade")


class Hyperparameters(eqx.Module):
    """What may differ between runs of one program.

    **Fields:**

    - `learning_rate`: of Adam, above 0.
    - `trace`: of every synapse of the actor, or a tuple of one a layer from the top down.
    - `delay`: of log-policy gradients, TD errors and ends of episodes, alike in all layers or layer by layer.
    - `discount`: γ, and `lam`: λ, in [0, 1].
    - `entropy`, `value`: weights of the entropy bonus and of the critic's loss.
    - `critic_rate`: the critic's learning rate in units of the actor's. With the actor's gradient summed over steps a
      broad trace needs a faster critic; with the mean 10 does harm (docs/results.md).
    - `synaptic_lam`: λ of each synapse of the actor, arrays `[out, in]` from the bottom up, in place of `lam` there, at
      the literal rule's cost; None for `lam` in all.
    """

    learning_rate: Float[Array, ""]
    trace: AbstractTrace | tuple[AbstractTrace, ...]
    delay: FixedDelay | LayerwiseDelay
    discount: Float[Array, ""]
    lam: Float[Array, ""]
    entropy: Float[Array, ""]
    value: Float[Array, ""]
    critic_rate: Float[Array, ""]
    synaptic_lam: tuple[Float[Array, "_ _"], ...] | None

    def __init__(
        self,
        learning_rate,
        trace,
        delay,
        discount=0.99,
        lam=0.95,
        entropy=0.01,
        value=0.5,
        critic_rate=1.0,
        synaptic_lam=None,
    ):
        checks.require_above("learning_rate", learning_rate, 0.0)
        checks.require_above("critic_rate", critic_rate, 0.0)
        for name, share in (
            ("discount", discount),
            ("lam", lam),
            *(("synaptic_lam", entry) for entry in synaptic_lam or ()),
        ):
            checks.require_within(name, share, "[0, 1]")
        for name, weight in (("entropy", entropy), ("value", value)):
            checks.require_at_least(name, weight, 0.0)
        delays = delay.delays if isinstance(delay, LayerwiseDelay) else (delay,)
        if not all(isinstance(entry, FixedDelay) for entry in delays):
            raise ValueError(f"`delay` must be a FixedDelay or a LayerwiseDelay of them, got {delay!r}")
        traces = trace if isinstance(trace, tuple) else (trace,)
        checks.require_same_dt("`trace` and `delay`", *(entry.dt for entry in (*traces, *delays)))
        numbers = dict(learning_rate=learning_rate, discount=discount, lam=lam, entropy=entropy, value=value)
        for name, number in (numbers | {"critic_rate": critic_rate}).items():
            checks.require_one_number(name, number)
            setattr(self, name, jnp.asarray(number, dtype=float))
        self.trace, self.delay = trace, delay
        self.synaptic_lam = None if synaptic_lam is None else tuple(jnp.asarray(lam, float) for lam in synaptic_lam)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled into a program.

    **Fields:**

    - `updates`: of a whole run.
    - `environments`: side by side.
    - `rollout`: steps of each environment between two updates.
    - `hidden`: units of the hidden layers of actor and critic.
    - `critic`: `"mlp"`, with these hidden layers, or, where observations are images, `"conv"` (see
      `cetsim.rl.images.critic`; the paper's in SpaceInvaders), which learns by ordinary backprop only.
    - `form`: of the rule, see `cetsim.credit.synaptic_factors`; the authors' is `"authors_linear"`.
    - `clip`: largest global norm of the gradients of actor and critic, of each if `clip_each`, else of both as one (the
      authors'). Together the actor has 1 to 4 % of the norm, and learns later and worse (docs/guides/late-control.md).
    - `epsilon`: added to the square root in Adam's denominator.
    - `actor_gradient`: whether the actor's gradient is the `"mean"` over steps and environments, as those of the critic
      and the entropy bonus are (the paper's), or the `"sum"` over steps and the mean over environments, which makes it
      larger by `rollout` than the others under the one clip.
    - `anneal`: whose learning rate falls linearly to 0 over the run: `"none"`, `"critic"` (the authors' CartPole), or
      `"both"`.
    - `random_lam`: two ends, in [0, 1], between which λ of every synapse of the actor is drawn uniformly at `init` (the
      authors' SpaceInvaders: 0.1 and 0.99), at the literal rule's cost. None takes that of `Hyperparameters`.
    - `truncation`: whether an episode that was broken off is worth what would have come (`"bootstrap"`), or nothing, as
      in the paper (`"terminate"`).
    - `reset_cascade`: whether synapses forget an episode's activity the moment it ends, which the paper's do not: what
      its last steps, of a whole delay, would have been credited with is lost.
    - `late_critic`: whether the critic too learns through traces from late TD errors.
    - `late_flag`: whether the ends of episodes come one step later still and cut λ-traces there, as in the authors'
      code.
    - `center_td`: decay, per update, in [0, 1), of a running mean of TD errors that is taken off what the actor's
      synapses are sent. A blurred trace multiplies that mean with activity of wrong moments, against the policy
      gradient while the critic knows little (docs/guides/late-control.md); it goes to 0 as the critic learns. None
      sends TD errors as they are (the authors'), so that without delay the update is the policy gradient's own.
    - `hold_actor`: the actor's synapses are sent nothing of a rollout whose mean TD error, before any centring, is
      further from 0 than this share of its root mean square, in (0, 1]: they wait until the critic knows what to
      expect. The entropy bonus does not wait. None holds nothing back.
    - `window`: steps of the past that layers keep the factors of. None takes what costs less, the kernel's own window
      (all but 1e-4 of its area) or the stages of every synapse, for which traces must be concrete at `init`.
    - `neuron`: of the actor's hidden layers, such as `cetsim.spiking.LIF(0.2, 0.2, dt=0.2)`, whose steps are those of
      the environment. Its synapses learn by e-prop's local rule, see `cetsim.rl.actors`; those of an `ALIF` with the
      approximate adaptation factor. None for ReLU, which the critic has in any case.
    - `derivative`: how f', which errors pass on their way down, waits for them: `"ideal"`, as it was, or in a
      `"cascade"` at the soma, the layer's trace, whose weights should sum to 1. In the trace of a synapse f' is exact.

    **Reference:** arXiv:2506.14598, reinforcement learning.
    """

    updates: int
    environments: int = 4
    rollout: int = 128
    hidden: tuple[int, ...] = (256, 256)
    critic: str = "mlp"
    form: str = "activation"
    clip: float = 0.5
    clip_each: bool = True
    epsilon: float = 1e-5
    actor_gradient: str = "mean"
    anneal: str = "none"
    random_lam: tuple[float, float] | None = None
    truncation: str = "bootstrap"
    reset_cascade: bool = False
    late_critic: bool = False
    late_flag: bool = False
    center_td: float | None = 0.9
    hold_actor: float | None = None
    window: int | None = None
    neuron: AbstractNeuron | None = None
    derivative: str = "ideal"

    def __post_init__(self):
        for name in ("updates", "environments", "rollout", *(["window"] if self.window is not None else [])):
            object.__setattr__(self, name, checks.require_whole(name, getattr(self, name)))
        object.__setattr__(self, "hidden", tuple(checks.require_whole("hidden", units) for units in self.hidden))
        if self.neuron is not None:
            checks.require_instance("neuron", self.neuron, AbstractNeuron, "a neuron such as spiking.LIF(), or None")
            if self.neuron.shape or self.neuron.constant is None:
                what = "a learned one" if self.neuron.constant is None else f"{self.neuron.shape[0]} of them"
                raise ValueError(f"`neuron` must have one time constant that is not learned, got {what}")
        for name in ("clip_each", "reset_cascade", "late_critic", "late_flag"):
            object.__setattr__(self, name, checks.require_flag(name, getattr(self, name)))
        checks.require_in("form", self.form, credit.FORMS)
        checks.require_in("derivative", self.derivative, DERIVATIVES)
        for name in ("clip", "epsilon"):
            checks.require_above(name, getattr(self, name), 0.0)
            object.__setattr__(self, name, checks.require_static(name, getattr(self, name)))
        checks.require_in("critic", self.critic, CRITICS)
        if self.critic == "conv" and self.late_critic:
            raise ValueError("`critic` must be 'mlp' where it is late, got 'conv'")
        checks.require_in("actor_gradient", self.actor_gradient, ACTOR_GRADIENTS)
        checks.require_in("anneal", self.anneal, ANNEALED)
        if self.center_td is not None:
            object.__setattr__(self, "center_td", checks.require_static("center_td", self.center_td))
            checks.require_within("center_td", self.center_td, "[0, 1)")
        if self.hold_actor is not None:
            object.__setattr__(self, "hold_actor", checks.require_static("hold_actor", self.hold_actor))
            checks.require_within("hold_actor", self.hold_actor, "(0, 1]")
        if self.random_lam is not None:
            low, high = self.random_lam
            if not 0 <= low <= high <= 1:
                raise ValueError(f"`random_lam` must be two ends in [0, 1], the lower first, got {self.random_lam}")
        checks.require_in("truncation", self.truncation, ("bootstrap", "terminate"))

    @property
    def frames(self) -> int:
        """Steps of all environments between two updates."""
        return self.environments * self.rollout


def without_delay(learning_rate, dt: float = 0.2, **options) -> Hyperparameters:
    """Hyperparameters of the plain actor-critic: signals at once, and a memory of no length."""
    return Hyperparameters(learning_rate, DelayLine(0.0, dt, 0.0), FixedDelay(0.0, dt, 0.0), **options)


def undelayed(hyper: Hyperparameters) -> Hyperparameters:
    """The same with signals at once and a memory of no length."""
    trace = hyper.trace[0] if isinstance(hyper.trace, tuple) else hyper.trace
    at_once = DelayLine(0.0, trace.dt, 0.0), FixedDelay(0.0, trace.dt, 0.0)
    where = lambda hyper: (hyper.trace, hyper.delay)  # noqa: E731
    return eqx.tree_at(where, hyper, at_once, is_leaf=lambda node: node is hyper.trace or node is hyper.delay)
