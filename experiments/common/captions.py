"""What captions and titles say of the runs they are of: every option that a reader meets is put into words here."""

import re
from collections.abc import Mapping

import pandas as pd

from experiments.common.checks import SEGMENT
from experiments.common.conditions import WITHOUT_DELAY
from experiments.common.tables import DATASETS

PAPER = "arXiv:2506.14598"
UNSTATED = "of training whose length it does not state"
FORMS = {  # of the rule: docs/concepts/rule.md
    "activation": "rule as in the paper's text",
    "preactivation": "rule with inputs alone in the traces",
    "authors_linear": "rule as in the authors' linear layers",
    "authors": "rule as in the authors' code",
}
GATES = {  # of retrograde-vision, which images are learned from: with their share and threshold, and as a tick
    "quantile": ("the {share} of largest loss", "largest\nlosses"),
    "threshold": ("those of a loss above {threshold:g}", "loss above\na bound"),
    "running": ("about {share}, above a bound that follows the losses", "above a\nmoving bound"),
    "random": ("{share}, picked by chance", "by chance"),
    "none": ("all", "all"),
}
DERIVATIVES = {"ideal": "exactly", "cascade": "in a cascade"}
PLACEMENTS = {"shown": "when shown", "random": "at random times"}
BOUNDARIES = {"reset": "segments start with empty traces", "carry": "time goes on from segment to segment"}
_AGENTS = {  # by option of an agent, and its value where it has several
    "anneal": "learning rates fall to 0",
    "anneal=both": "learning rates fall to 0",
    "anneal=critic": "the critic's learning rate falls to 0",
    "actor_gradient=sum": "the actor's gradient is summed over steps",
    "critic=conv": "the critic has convolutions",
    "normalization=peak": "the largest weight of a trace is 1",
    "cascade=first_stage": "activity enters a cascade's first stage alone",
    "truncation=terminate": "episodes that are cut short count as ended",
    "reset_cascade": "traces are emptied when an episode ends",
    "late_critic": "the critic learns late too",
    "late_flag": "episodes end one step late for the λ-traces",
    "random_lam": "λ of each synapse is drawn from {}",
    "center_td=None": "TD errors are sent as they are",
    "center_td": "TD errors less a running mean of decay {}",
    "hold_actor": "the actor waits while the mean TD error is above {} of the root mean square",
    "clip_each": "gradients of actor and critic are clipped together",
    "epsilon": "Adam's ε is {}",
    "discount": "discount γ is {}",
    "lam": "λ is {}",
    "entropy": "weight of the entropy bonus is {}",
    "neurons=lif": "the actor's hidden neurons are leaky integrate-and-fire",
    "derivative=cascade": "slopes that errors pass are remembered in a cascade",
}  # fmt: skip


def plural(count: int, thing: str) -> str:
    """A number of things."""
    return f"{count:,} {thing}{'s' * (count != 1)}"


def listed(words: list[str]) -> str:
    """The words with commas between them, and "and" before the last."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def seeds(frame: pd.DataFrame, text: str = "Line: mean; dots: seeds; band: their range.") -> str:
    """How seeds are drawn, as a sentence; empty of a single one."""
    return f" {text}" if frame["seed"].nunique() > 1 else ""


def gate(threshold: float) -> str:
    """The error gate."""
    return f"error gate {f'{threshold:g}'.replace('e-0', 'e-')}" if threshold else "no error gate"


def subject(frame: pd.DataFrame) -> str:
    """Dataset, network and form of the rule."""
    first = frame.iloc[0]
    return f"{DATASETS.get(first['dataset'], first['dataset'])}, {first['network']}, {FORMS[first['form']]}"


def settings(frame: pd.DataFrame, gated: bool = True, images: int = SEGMENT) -> str:
    """What runs, a row each, have in common: `gated` if by the error gate too; `images` are of a segment."""
    late = frame[~frame["trace"].isin(WITHOUT_DELAY)]
    gates = f", {gate((late if len(late) else frame)['error_gate'].iloc[-1])}" if gated else ""
    steps = " or ".join(f"{step:,}" for step in sorted(set(frame["step"])))
    rates = [f"{rate:g}" for rate in sorted(set(frame["learning_rate"]))]
    text = f"{subject(frame)}{gates}; {plural(frame['seed'].nunique(), 'seed')}, {steps} segments of {images:,} images"
    return (
        f"{text}, learning rate{f' {rates[0]}' if len(rates) == 1 else f's {listed(rates)}, chosen on held-out images'}"
    )


def agent(frame: pd.DataFrame) -> str:
    """What runs of agents, a row each, have in common."""
    first = frame.iloc[-1]
    network = re.sub(r"actor and critic (\S+)", r"actor and critic with \1 hidden units", first["network"])
    ratio = f"the critic's learning rate {first['critic_rate']:g} times the actor's"
    rates = "one learning rate for both" if first["critic_rate"] == 1 else ratio
    count, frames = plural(frame["seed"].nunique(), "seed"), f"{frame['step'].iloc[0] / 1e6:.3g}M frames"
    form = "" if first["form"] == "activation" else f" {FORMS[first['form']].capitalize()}."
    changed = listed(options) if (options := variant(first["variant"])) else ""
    changed = f" {changed[0].upper()}{changed[1:]}." if changed else ""
    return f"{first['dataset']}, {network}; {count}, {frames}, {rates}.{form}{changed}"


def variant(options: str) -> list[str]:
    """An agent's options that are not as by default, such as `"anneal=both, lam=0.9"`, in words."""
    found = re.findall(r"(\w+)(?:=(\([^)]*\)|[^,]+))?", options)
    words = [(f"{name}={value}" if value else name, name, value) for name, value in found]
    return [_AGENTS.get(whole) or _AGENTS[name].format(value) for whole, name, value in words]


def salient(first: Mapping) -> str:
    """How credit travels through layers and which images are learned from, of a run's columns."""
    share = f"{100 * first['fraction']:g} %"
    some = GATES[first["gate"]][0].format(share=share, threshold=first["threshold"])
    return (
        f"errors take {first['delay_s']:g} s from a layer to the one below; of {first['segment']:,} images {some} are "
        f"learned from; slopes are remembered {DERIVATIVES[first['derivative']]}; {BOUNDARIES[first['boundary']]}"
    )


def left_out(frame: pd.DataFrame) -> str:
    """How many runs diverged, as a sentence; empty if none."""
    lost = frame.loc[frame["lost"], "run"].nunique()
    return f" Left out: {plural(lost, 'run')} that diverged." if lost else ""


def published(frame: pd.DataFrame | None = None, marks: str = "Hollow marks", length: str = "") -> str:
    """What marks of the paper's values are, as a sentence, and of runs how long, beside the runs on images of a frame.

    The paper does not state how long it trains on images. Ours come to its numbers in 12,000 segments.
    """
    if not length:
        length = UNSTATED
        length += ", probably longer" if frame["step"].max() < 12_000 else ""
    return f" {marks}: the paper's ({PAPER}), {length}."
