"""Numbers that are none, counts that are not whole, flags that are words: a ValueError of one line that names them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import mlp

import cetsim
from cetsim import FixedDelay, LayerwiseDelay, checks
from cetsim.traces import CascadingTrace


def test_every_constructor_takes_numbers_and_refuses_what_is_none():
    """As users call them: without the checks of types that the other tests run with."""
    program = Path(__file__).with_name("wrong_arguments.py")
    path = os.pathsep.join([str(program.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedDelay("2.0"), r"^`delay` must be a number or an array of numbers, got '2.0'$"),
        (lambda: FixedDelay(2.0, "0.2"), r"^`dt` must be a number or an array of numbers, got '0.2'$"),
        (lambda: CascadingTrace(4.0), r"^`order` must be a whole number, got 4.0$"),
        (lambda: CascadingTrace(4, 1e300), "^`delay` must be finite"),
        (lambda: CascadingTrace(4, np.full((40, 40), 2.0) - np.eye(40) * 3), r"got -1.0 at index \(0, 0\)$"),
        (lambda: CascadingTrace(4, np.arange(1.0, 20.0) * 1j), "^`delay` must be a number or an array of numbers, got"),
        (lambda: CascadingTrace(4, np.ma.masked_array([1.0, 2.0], [0, 1])), "must have no masked entries, got 1"),
        (lambda: FixedDelay(2.0, keep_late="false"), "^`keep_late` must be True or False, got 'false'$"),
        (lambda: FixedDelay(2.0, max_delay=[4.0]), r"^`max_delay` must be one number, got shape \(1,\)$"),
        (lambda: CascadingTrace(4, 2.0, read=["before"]), "^`read` must be one of 'before', 'after', got"),
        (lambda: jax.jit(FixedDelay)(jnp.array(2)).delay, None),
        (lambda: jax.jit(FixedDelay)(True), "^`delay` must be a number or an array of numbers, got"),
        (lambda: jax.jit(lambda n: CascadingTrace(n))(3), "^`order` must be a whole number known before tracing"),
        (lambda: jax.jit(lambda m: FixedDelay(2.0, max_delay=m))(4.0), "^`max_delay` must be a number known before"),
    ],
)
def test_messages(make, message):
    with jax.enable_x64(False) if message and "finite" in message else jax.enable_x64(True):
        if message is None:
            assert make() == 2.0
            return
        with pytest.raises(ValueError, match=message) as caught:
            make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_numbers_are_finite_in_the_precision_they_will_have():
    with jax.enable_x64(True):
        assert FixedDelay(0.0, 1e-300).dt == 1e-300
        checks.require_finite("x", np.array([1e300]))
    with jax.enable_x64(False), pytest.raises(ValueError, match="`x` must be finite, got array"):
        checks.require_finite("x", np.array([1e300]))


def test_bfloat16_and_small_integers_are_numbers():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint32):
        checks.require_above("x", jnp.ones(3, dtype), 0.5)
        with pytest.raises(ValueError, match="`x` must be above 1"):
            checks.require_above("x", jnp.ones(3, dtype), 1.0)


class TestSameDt:
    @pytest.mark.parametrize("one", [0.1 * 3, float(np.float32(0.3)), 0.3 * (1 + 1e-15)])
    def test_what_differs_by_rounding_is_one_dt(self, one):
        assert checks.same_dt(one, 0.3)
        assert checks.same_dt(0.3, one)
        LayerwiseDelay((FixedDelay(3.0, one), FixedDelay(0.6, 0.3)))
        cetsim.attach(mlp(), CascadingTrace(3, 3.0, one), FixedDelay(3.0, 0.3))
        cetsim.attach(mlp(), CascadingTrace(3, 3.0, 0.3), FixedDelay(3.0, one))

    def test_a_real_difference_is_shown_with_all_digits(self):
        assert not checks.same_dt(0.2, 0.2000001)
        with pytest.raises(ValueError, match=r"must have one dt, got 0.2 s and 0.2000001 s$"):
            LayerwiseDelay((FixedDelay(1.0, 0.2), FixedDelay(0.0, 0.2000001)))
        with pytest.raises(ValueError, match=r"must have one dt, got 0.2000001 s and 0.2 s$"):
            cetsim.attach(mlp(), CascadingTrace(3, 1.0, 0.2000001), FixedDelay(1.0, 0.2))
