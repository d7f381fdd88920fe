"""Command line: `python -m experiments` lists the experiments, `python -m experiments NAME` runs one."""

import importlib
import importlib.util
import signal
import sys
import textwrap
from contextlib import contextmanager

from experiments.options import (
    alignment,
    behavioral_rl,
    behavioral_vision,
    kernel_shape,
    kernels,
    learned_delay,
    random_delay,
    retrograde_rl,
    retrograde_vision,
    streaming_vision,
    tuned_traces,
)

USAGE = "python -m experiments NAME [options]"
# name -> (module with `prepare`, `run` and `redraw`; options; presets)
EXPERIMENTS = {
    "behavioral-vision": ("behavioral_vision", behavioral_vision.BehavioralVision, behavioral_vision.PRESETS),
    "retrograde-vision": ("retrograde_vision", retrograde_vision.RetrogradeVision, retrograde_vision.PRESETS),
    "behavioral-rl": ("behavioral_rl", behavioral_rl.BehavioralRL, behavioral_rl.PRESETS),
    "retrograde-rl": ("retrograde_rl", retrograde_rl.RetrogradeRL, retrograde_rl.PRESETS),
    "random-delay": ("random_delay", random_delay.RandomDelay, random_delay.PRESETS),
    "alignment": ("alignment", alignment.Alignment, alignment.PRESETS),
    "kernel-shape": ("kernel_shape", kernel_shape.KernelShape, kernel_shape.PRESETS),
    "tuned-traces": ("tuned_traces", tuned_traces.TunedTraces, tuned_traces.PRESETS),
    "learned-delay": ("learned_delay", learned_delay.LearnedDelay, learned_delay.PRESETS),
    "streaming-vision": ("streaming_vision", streaming_vision.StreamingVision, streaming_vision.PRESETS),
    "kernels": ("kernels", kernels.Kernels, kernels.PRESETS),
}


def main(arguments: list[str]) -> int:
    """Runs the command line and returns its exit status: 0, 2 for a user's error, 130 or 143 if interrupted."""
    if not arguments or arguments[0] in ("-h", "--help", "list"):
        print(listing())
        return 0
    name, *rest = arguments
    if name not in EXPERIMENTS:
        return fail(f"unknown experiment {name!r}: choose from {', '.join(EXPERIMENTS)}")
    missing = [package for package in ("tyro", "matplotlib") if importlib.util.find_spec(package) is None]
    if missing:
        return fail(f"the experiments need {' and '.join(missing)}: pip install 'cetsim[experiments]'")
    module, kind, presets = EXPERIMENTS[name]
    chosen = parse(name, kind, presets, rest)
    try:
        chosen.check()
        experiment = importlib.import_module(f"experiments.{module}")
        if chosen.plot_only:
            experiment.redraw(chosen)
            return 0
        prepared = experiment.prepare(chosen)
    except (ValueError, OSError) as error:
        return fail(str(error))
    # From here on a ValueError is a fault of the program and keeps its traceback.
    try:
        with _terminated_as_interrupted():
            experiment.run(prepared)
    except OSError as error:
        return fail(f"{error}\nwhat was finished before is kept in {chosen.folder}")
    except (KeyboardInterrupt, SystemExit) as stop:
        status = _status(stop)
        if status in (130, 143):
            command = " ".join(["python -m experiments", *(a for a in arguments if a != "--fresh")])
            print(f"\ninterrupted; what was done is kept in {chosen.folder}\nto go on: {command}", file=sys.stderr)
        return status
    return 0


def _status(stop: BaseException) -> int:
    if isinstance(stop, SystemExit):
        return stop.code
    return 143 if isinstance(stop, _Terminated) else 130


class _Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as schedulers do."""


@contextmanager
def _terminated_as_interrupted():
    """Lets SIGTERM end what goes on as Ctrl-C does: what is being recorded is finished or not begun."""

    def stop(*_):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(name: str, kind: type, presets: dict, arguments: list[str]):
    """Options given, over those of the preset they name; exits with status 2 if they can't be read."""
    import tyro

    return tyro.cli(
        kind,
        args=arguments,
        default=presets.get(named_preset(arguments)) or next(iter(presets.values()), None),
        prog=f"python -m experiments {name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def named_preset(arguments: list[str]) -> str | None:
    """The value given to `--preset`, the last if there are several."""
    named = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=False):
        if argument == "--preset":
            named = following
        elif argument.startswith("--preset="):
            named = argument.removeprefix("--preset=")
    return named


def listing() -> str:
    """The experiments, a line each, with their presets."""
    lines = [f"usage: {USAGE}", "", "experiments:"]
    for name, (_, kind, presets) in EXPERIMENTS.items():
        line = f"{kind.__doc__.splitlines()[0]} Presets: {', '.join(presets) or 'none'}."
        lines += textwrap.wrap(line, 110, initial_indent=f"  {name:<20}", subsequent_indent=" " * 22)
    return "\n".join([*lines, "", "options of one: python -m experiments NAME --help"])


def fail(message: str) -> int:
    """Prints a user's error and returns its exit status."""
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
