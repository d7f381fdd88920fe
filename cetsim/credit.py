"""The three-factor rule: learning signals that arrive late meet traces of the activity that caused them.

With write times t_s (when activity happened), arrival times a_r (when signal r comes) and a kernel w,

    M[r, s] = w(a_r - t_s)      λ = Mᵀ L      ΔW ∝ - Σ_s (gain(s) ∘ λ(s)) x(s)ᵀ

Times are counted in steps. `literal` is the definition (every synapse's trace is stepped through time), `adjoint` the
fast form (one filter of the post-neurons' signal, then backprop's own matmul), `chunked` a recursion with a state
whose size does not depend on the delay. They agree to rounding. All return the gradient, that is -ΔW.
Biases are synapses with input 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real, Shaped

from cetsim import checks, state_space, steps
from cetsim.traces import AbstractTrace

FORMS = ("activation", "preactivation", "authors_linear")


class Update(NamedTuple):
    """Gradient of one layer. **Fields:** `weight`: [out, in]. `bias`: [out]."""

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]


def synaptic_factors(form: str, derivative, error, error_gate=0.0, remembered=None):
    """What enters the trace and what it meets: the post-synaptic gain of e, and the learning signal L.

    | form | gain | L |
    | --- | --- | --- |
    | `"activation"` | f'(z) | ∂ℓ/∂a |
    | `"preactivation"` | 1 | f'(z) ∂ℓ/∂a = ∂ℓ/∂z |
    | `"authors_linear"` | f'(z) | ∂ℓ/∂z |

    **Arguments:**

    - `derivative`: f'(z), `[time, *out]`, or None where f is the identity.
    - `error`: ∂ℓ/∂a, `[time, *out]`, or what stands in for it.
    - `error_gate`: activity enters only at steps where ‖error‖² is above it; 0 is off.
    - `remembered`: what is left of f'(z) when the error comes, and makes ∂ℓ/∂z of it; f'(z) itself if None.

    **Returns:** `(gain, signal)`, each `[time, *out]`.

    **Reference:** arXiv:2506.14598; the last form and the gate are the authors' code.
    """
    checks.require_in("form", form, FORMS)
    remembered = derivative if remembered is None else remembered
    signal = error if derivative is None or form == "activation" else remembered * error
    gain = jnp.ones_like(error) if derivative is None or form == "preactivation" else derivative
    if isinstance(error_gate, int | float) and error_gate == 0:
        return gain, signal
    size = jnp.sum(error**2, axis=tuple(range(1, error.ndim)), keepdims=True)
    return jnp.where((error_gate <= 0) | (size > error_gate), gain, 0.0), signal


def credit_matrix(
    trace: AbstractTrace,
    arrival_steps: Real[Array, " signals"],
    write_steps: Real[Array, " writes"],
    horizon: int | Int[Array, ""] | None = None,
    regular: bool = False,
) -> Float[Array, "signals writes *post"]:
    """How much of each write every signal meets, M[r, s] = w(a_r - t_s): the one primitive of the rule.

    **Arguments:**

    - `trace`: the kernel w, shared (`trace.shape == ()`) or one a post-neuron.
    - `arrival_steps`, `write_steps`: in steps, in any order.
    - `horizon`: signals that arrive outside steps 0 ≤ a < horizon are not met here; None for no end. May be traced.
    - `regular`: promises that both run over consecutive steps, so that the kernel is read once per lag.

    **Returns:** `[signals, writes, *trace.shape]`.
    """
    with checks.once(trace, arrival_steps, write_steps):
        arrival_steps, write_steps = steps.count(arrival_steps), steps.count(write_steps)
        dtype = steps.wider(arrival_steps.dtype, write_steps.dtype)
        arrival_steps, write_steps = arrival_steps.astype(dtype), write_steps.astype(dtype)
        signals, writes = arrival_steps.shape[0], write_steps.shape[0]
        if regular:
            lags = arrival_steps[0] - write_steps[0] + jnp.arange(1 - writes, signals, dtype=dtype)
        else:
            lags = arrival_steps[:, None] - write_steps[None, :]
        matrix = trace.weights(lags)
    if regular:
        matrix = matrix[np.arange(signals)[:, None] - np.arange(writes)[None, :] + writes - 1]
    met = arrival_steps >= 0
    if horizon is not None:
        met &= arrival_steps < horizon
    return jnp.where(met.reshape(-1, *(1,) * (matrix.ndim - 1)), matrix, jnp.zeros_like(matrix))


def remember(matrix: Float[Array, "signals writes *post"], signal: Shaped[Array, "signals *out"]):
    """Credit of every write, λ = Mᵀ L, `[writes, *out]`: the adjoint of the trace, applied to the signals.

    In the wider dtype of the two: kernels are kept in at least float32.
    """
    dtype = steps.wider(matrix.dtype, signal.dtype)
    matrix, signal = matrix.astype(dtype), signal.astype(dtype)
    combine = lambda m, s: jnp.tensordot(m, s, axes=((0,), (0,)), precision="highest")  # noqa: E731
    for _ in range(matrix.ndim - 2):
        combine = jax.vmap(combine, in_axes=(2, 1), out_axes=1)
    return combine(matrix, signal)


def recall(matrix: Float[Array, "signals writes *post"], activity: Float[Array, "writes *out"]):
    """What is left of past activity when each signal arrives, M θ, `[signals, *out]`: the trace itself."""
    return remember(jnp.swapaxes(matrix, 0, 1), activity)


def _check(trace, x, gain, signal, arrival_steps, write_steps):
    """Shapes of one segment of a linear layer, in floats of at least 32 bits; a scalar third factor is spread over
    the post-neurons.
    """
    dtypes = (jnp.result_type(rows) for rows in (x, gain, signal))
    dtype = steps.wider(jnp.float32, jax.tree.leaves(trace)[0].dtype, *dtypes)
    x, gain, signal = (jnp.asarray(rows, dtype) for rows in (x, gain, signal))
    if x.ndim != 2 or gain.ndim != 2 or x.shape[0] != gain.shape[0]:
        raise ValueError(f"`x` and `gain` must be [time, in] and [time, out], got {x.shape} and {gain.shape}")
    if signal.ndim == 1:
        signal = jnp.broadcast_to(signal[:, None], (signal.shape[0], gain.shape[1]))
    if signal.ndim != 2 or signal.shape[1] != gain.shape[1]:
        raise ValueError(f"`signal` must be [signals] or [signals, out], got {signal.shape} for out = {gain.shape[1]}")
    if write_steps is None:
        write_steps = jnp.arange(x.shape[0])
    if write_steps.shape != x.shape[:1]:
        raise ValueError(f"`write_steps` must have shape {x.shape[:1]}, got {write_steps.shape}")
    if arrival_steps.shape != signal.shape[:1]:
        raise ValueError(f"`arrival_steps` must have shape {signal.shape[:1]}, got {arrival_steps.shape}")
    if trace.shape not in ((), gain.shape[1:], (gain.shape[1], x.shape[1] + 1)):
        raise ValueError(
            f"the trace must be shared or one a post-neuron, got shape {trace.shape} for out = {gain.shape[1]}"
        )
    with_bias = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)
    return with_bias, gain, signal, steps.count(arrival_steps), steps.count(write_steps)


def _split(total) -> Update:
    return Update(total[:, :-1], total[:, -1])


def adjoint(
    trace: AbstractTrace,
    x: Shaped[Array, "time inputs"],
    gain: Shaped[Array, "time out"],
    signal: Shaped[Array, "signals ..."],
    arrival_steps: Real[Array, " signals"],
    write_steps: Real[Array, " time"] | None = None,
    *,
    horizon: int | None,
) -> Update:
    """The update of a linear layer over one segment, by filtering the signal backwards: ΔW = -(gain ∘ Mᵀ L)ᵀ X.

    **Arguments:**

    - `x`: presynaptic activity, one row a write. `gain`: the post-synaptic factor of e.
    - `signal`: L, `[signals, out]`, or `[signals]` for a scalar third factor.
    - `arrival_steps`: when each signal comes, in steps. `write_steps`: when each row was written (0, 1, ... if None).
    - `horizon`: signals from this step on are dropped; None keeps all.

    **Returns:** the gradient, `Update(weight, bias)`.

    **Reference:** adjoint filtering as in Wan (1996), "Adjoint LMS".
    """
    x, gain, signal, arrival_steps, write_steps = _check(trace, x, gain, signal, arrival_steps, write_steps)
    if len(trace.shape) > 1:
        raise ValueError(f"a kernel per synapse needs `literal`, got a trace of shape {trace.shape}")
    credit = remember(credit_matrix(trace, arrival_steps, write_steps, horizon), signal)
    return _split(jnp.matmul((gain * credit).T, x, precision="highest"))


def _on_the_axis_of_time(x, gain, signal, arrival_steps, write_steps, length: int):
    """Rows placed at their steps 0..length-1, empty elsewhere; rows outside are dropped."""

    def place(rows, at):
        inside = (at >= 0) & (at < length)
        at = jnp.where(inside, jnp.round(at).astype(jnp.int32), length)
        return jnp.zeros((length, rows.shape[1]), rows.dtype).at[at].add(rows, mode="drop")

    return place(x, write_steps), place(gain, write_steps), place(signal, arrival_steps)


def literal(
    trace: AbstractTrace,
    x: Shaped[Array, "time inputs"],
    gain: Shaped[Array, "time out"],
    signal: Shaped[Array, "signals ..."],
    arrival_steps: Real[Array, " signals"],
    write_steps: Real[Array, " time"] | None = None,
    *,
    horizon: int,
) -> Update:
    """The same update from its definition: every synapse's trace stepped through time, ΔW = -Σ_t L(t) trace(t).

    Slow, and the oracle for the other two. It alone takes a kernel per synapse: a trace of shape `[out, in + 1]`, the
    last column for the biases. Arguments as in `adjoint`; all times are whole steps, and no two writes share one.
    """
    x, gain, signal, arrival_steps, write_steps = _check(trace, x, gain, signal, arrival_steps, write_steps)
    dense = _on_the_axis_of_time(x, gain, signal, arrival_steps, write_steps, horizon)

    def body(carry, now):
        state, total = carry
        x, gain, signal = now
        state, remembered = trace.step(state, gain[:, None] * x[None, :])
        return (state, total + signal[:, None] * remembered), None

    shape = (gain.shape[1], x.shape[1])
    start = trace.init(shape, compensated=False)
    (_, total), _ = jax.lax.scan(body, (start, jnp.zeros(shape, jnp.result_type(start, x))), dense)
    return _split(total)


def chunk_update(
    trace: AbstractTrace,
    state: Float[Array, "stages out inputs"],
    x: Float[Array, "time inputs"],
    gain: Float[Array, "time out"],
    arriving: Float[Array, "time out"],
    resets: Int[Array, " edges"] | None = None,
):
    """One chunk of m steps with a state per synapse touched once: what it adds to the update, and the state after.

        Σ_u L_u ∘ trace_u = Σ_k (Σ_u L_u (cΦ^u)_k) S_k + (gain ∘ Kᵀ L)ᵀ X
        S ← Φ^m S + Σ_s Φ^(m-1-s) Γ ⊗ gain_s x_sᵀ

    (exponent u for a trace read before its input, u + 1 after).

    **Arguments:**

    - `state`: S, from `trace.init((out, in), compensated=False)`.
    - `x`, `gain`: what is written at each step.
    - `arriving`: the signals that arrive at each step.
    - `resets`: where traces are emptied now and then, how often they were before each step of the chunk and before the
      one after it, `[time + 1]`, not counting from before it.

    **Returns:** `(state, gradient [out, in])`.
    """
    length = x.shape[0]
    resets = jnp.zeros(length + 1, int) if resets is None else resets
    met, kept = resets[:-1, None] == resets[None, :-1], resets[:-1] == resets[-1]
    from_before, to_after = ((resets[at] == 0).astype(x.dtype) for at in (slice(0, length), length))

    def one_kernel(trace, state, x, gain, arriving):
        # `out` is absent here when kernels differ per post-neuron, present when they are shared.
        with checks.once(trace):
            reads, kicks, transition = state_space.powers(trace.system(), length)
            reads = reads[:-1] if trace.read == "before" else reads[1:]
            now = jnp.arange(length)
        within = remember(credit_matrix(trace, now, now, regular=True) * met.astype(x.dtype), arriving)
        old = jnp.einsum("uk,u,u...->k...", reads, from_before, arriving, precision="highest")
        total = jnp.einsum("k...,k...i->...i", old, state, precision="highest")
        total += jnp.einsum("s...,si->...i", gain * within, x, precision="highest")
        state = to_after * (state + jnp.tensordot(transition, state, axes=1, precision="highest"))
        written = kicks[::-1] * kept[:, None].astype(kicks.dtype)
        return state + jnp.einsum("sk,s...,si->k...i", written, gain, x, precision="highest"), total

    if trace.shape:
        one_kernel = jax.vmap(one_kernel, in_axes=(0, 1, None, 1, 1), out_axes=(1, 0))
    return one_kernel(trace, state, x, gain, arriving)


def chunked(
    trace: AbstractTrace,
    x: Shaped[Array, "time inputs"],
    gain: Shaped[Array, "time out"],
    signal: Shaped[Array, "signals ..."],
    arrival_steps: Real[Array, " signals"],
    write_steps: Real[Array, " time"] | None = None,
    *,
    horizon: int,
    chunk: int = 64,
) -> Update:
    """The same update by the recursion over chunks of `chunk` steps: memory independent of the delay and the time.

    For long delays with small layers and low orders. Arguments as in `literal`.
    """
    x, gain, signal, arrival_steps, write_steps = _check(trace, x, gain, signal, arrival_steps, write_steps)
    if len(trace.shape) > 1:
        raise ValueError(f"a kernel per synapse needs `literal`, got a trace of shape {trace.shape}")
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1 step, got {chunk}")
    chunks = -(-horizon // chunk)
    dense = _on_the_axis_of_time(x, gain, signal, arrival_steps, write_steps, horizon)
    pieces = [jnp.pad(rows, ((0, chunks * chunk - horizon), (0, 0))).reshape(chunks, chunk, -1) for rows in dense]

    def body(carry, piece):
        state, total = carry
        state, more = chunk_update(trace, state, *piece)
        return (state, total + more), None

    shape = (gain.shape[1], x.shape[1])
    start = trace.init(shape, compensated=False)
    (_, total), _ = jax.lax.scan(body, (start, jnp.zeros(shape, jnp.result_type(start, x))), pieces)
    return _split(total)
