"""`python -m cetsim`: what runs here, and where to go from it."""

import platform

import equinox
import jax
import optax

import cetsim


def main() -> None:
    """Prints versions, devices and the first places to look."""
    libraries = {"Python": platform.python_version(), "jax": jax.__version__, "equinox": equinox.__version__}
    versions = ", ".join(f"{name} {version}" for name, version in (libraries | {"optax": optax.__version__}).items())
    devices = ", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices())
    print(f"cetsim {cetsim.__version__}: learning when credit arrives late (arXiv:2506.14598)\n")
    print(f"{versions}\ndevices: {devices}\n")
    print("traces in a model of yours   help(cetsim.attach), help(cetsim.CascadingTrace)")
    print("what each layer got          cetsim.summary(model)")
    print("sweeps, agents               help(cetsim.sweep.run), help(cetsim.rl)")
    print("experiments of the paper     python -m experiments, from a checkout")


if __name__ == "__main__":
    main()
