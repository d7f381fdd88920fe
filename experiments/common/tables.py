"""Tables of results: reading and writing them, what runs ended with, one printed form, and the paper's numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cetsim import sweep
from cetsim.files import write_atomic
from experiments.common.checks import UserError
from experiments.common.conditions import DEFAULTS, RECORDED, WITHOUT_DELAY, Condition, recorded
from experiments.common.options import Files

CITATION = "Learning From the Past with Cascading Eligibility Traces, arXiv:2506.14598"
DATASETS = {"digits": "digits (8x8)", "mnist": "MNIST", "cifar10": "CIFAR-10", "tinyimagenet": "TinyImageNet"}
SUBJECT = ("dataset", "network", "form", "boundary")  # what one figure is of
NEEDED = ("trace", "order", "delay_s", "metric", "step", "value")
_PAPERS_TASKS = {
    "LunarLander-v3": "LunarLander-v2", "LunarLander-v3 LIF": "LunarLander-v2 LIF",
    "MinAtar SpaceInvaders": "MinAtar/SpaceInvaders-v0",
}  # fmt: skip
_RANK = (*WITHOUT_DELAY, "delay line", "balanced", "sharp", "CET - ET", "CET", "double exponential", "ET", "e-prop")


def read(path: Path) -> pd.DataFrame:
    """Rows of a results.csv, of this version or an older one.

    **Raises:** UserError if the file is missing, lacks a column or holds text where a number belongs.
    """
    if not path.exists():
        raise UserError(f"there is no {path} to draw from: run the experiment first, without --plot-only")
    try:
        rows = pd.read_csv(path, keep_default_na=False, na_values=[""], low_memory=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for name in NEEDED:
        if name not in rows:
            raise UserError(f"{path} lacks the column {name}")
        if name not in ("trace", "metric") and not pd.api.types.is_numeric_dtype(rows[name]):
            raise UserError(f"{path} must hold numbers in the column {name}, got {rows[name].iloc[0]!r}")
    return tidy(rows)


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with every field of a condition, those that a table leaves out as by default."""
    rows = rows.reset_index(drop=True).rename(columns={old: name for name, old in RECORDED.items()})
    for name, default in (DEFAULTS | {"layer": "", "variant": ""}).items():
        rows[name] = rows[name].fillna(default) if name in rows and rows[name].notna().any() else default
    if "run" not in rows:  # as in tables of version 0.1.0
        alike = [name for name in rows if name not in ("layer", "step", "metric", "value")]
        rows["run"] = rows.groupby(alike, dropna=False, sort=False).ngroup()
    whole = {name: int for name, default in DEFAULTS.items() if type(default) is int}
    return rows.astype(whole | {"step": "Int64"})


def of_options(rows: pd.DataFrame, options: Files) -> pd.DataFrame:
    """Rows of the runs that were measured on the test set, those of the dataset and form asked for if there are any.

    **Raises:** UserError if there are none.
    """
    if "dataset" not in rows or rows["dataset"].isna().all():  # nothing was trained
        return rows
    rows = rows[rows["run"].isin(rows.loc[rows["metric"].isin(["test_accuracy", "test_return"]), "run"])]
    if rows.empty:
        raise UserError("there are no rows of test results to draw: the experiment has not finished any run")
    for name in ("dataset", "form", "variant"):
        wanted = rows[name] == getattr(options, name, None)
        rows = rows[wanted] if wanted.any() else rows
    return rows


def write(folder: Path) -> None:
    """Regenerates results.csv from all that is recorded in a folder, without columns that hold defaults alone."""
    rows, plain = sweep.load(folder).rows, recorded(Condition())
    unsaid = [n for n in plain if n in rows and n not in NEEDED and (rows[n].dropna() == plain[n]).all()]
    first = ("experiment", "scenario", "dataset", "network", "form")
    kept = sorted(rows.drop(columns=unsaid), key=lambda name: first.index(name) if name in first else len(first))
    write_atomic(folder / "results.csv", rows[kept].to_csv(index=False, lineterminator="\n"))


def finals(rows: pd.DataFrame, metric: str = "test_accuracy") -> pd.DataFrame:
    """The last value of a metric in each run, a row each with the run's columns; NaN in runs that diverged.

    **Raises:** UserError if there is none.
    """
    found = rows[rows["metric"] == metric]
    if found.empty:
        raise UserError(f"there are no rows of {metric} to draw: the experiment has not finished any run")
    ends = found.loc[found.groupby("run", sort=False)["step"].idxmax()].reset_index(drop=True)
    lost = ends["run"].isin(diverged(rows)) | ends["value"].isna()
    return ends.assign(value=ends["value"].where(~lost), lost=lost)


def diverged(rows: pd.DataFrame) -> set:
    """The runs that diverged."""
    return set(rows.loc[(rows["metric"] == "diverged") & (rows["value"] > 0), "run"])


def last(rows: pd.DataFrame, metric: str) -> pd.Series:
    """The last value of a metric in the table of each run, by run."""
    return rows[rows["metric"] == metric].drop_duplicates("run", keep="last").set_index("run")["value"]


def like_last(frame: pd.DataFrame, names: Sequence[str], free: str = "error_gate", **asked) -> pd.DataFrame:
    """Rows that agree in `names` with the last one, or with the last that has what was `asked` for.

    What has no delay goes with any value of `free`: backprop has no gate.
    """
    late = ~frame["trace"].isin(WITHOUT_DELAY)
    of_interest = frame[late] if late.any() else frame
    for name, value in asked.items():
        of_interest = of_interest[of_interest[name] == value] if (of_interest[name] == value).any() else of_interest
    same = pd.Series(True, frame.index)
    for name in names:
        same &= (frame[name] == of_interest[name].iloc[-1]) | ((name == free) & ~late)
    return frame[same]


def latest(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Of rows that agree in `names` the longest, then the last: runs that differ only in length or learning rate."""
    return frame.sort_values("step", kind="stable").drop_duplicates(list(names), keep="last").sort_index()


def everywhere(frame: pd.DataFrame, across: str, values: Sequence) -> pd.DataFrame:
    """The rows, those without delay once at each of the values: what does not wait is the same everywhere."""
    still = frame["trace"].isin(WITHOUT_DELAY)
    return pd.concat([frame[~still], *(frame[still].assign(**{across: value}) for value in values)])


def traces(frame: pd.DataFrame) -> list[tuple[str, int]]:
    """The traces of a frame, the one that remembers best first."""
    found = set(zip(frame["trace"], frame["order"].astype(int), strict=True))
    return sorted(found, key=lambda key: (_RANK.index(key[0]), -key[1]))


def of_trace(frame: pd.DataFrame, key: tuple[str, int]) -> pd.DataFrame:
    """The rows of a trace."""
    return frame[(frame["trace"] == key[0]) & (frame["order"] == key[1])]


def label(trace: str, order: float) -> str:
    """Name of a trace as readers know it, CET(10), balanced(10), sharp(10) or CET(10) - ET."""
    return f"{trace}({order:g})" if trace in ("balanced", "sharp") else trace.replace("CET", f"CET({order:g})")


def cell(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± standard deviation, and how many of the runs diverged (have NaN)."""
    values = np.asarray(values, float)
    sound = scale * values[~np.isnan(values)]
    if not sound.size:
        return "diverged" if values.size else ""
    text = f"{sound.mean():.{digits}f}" + (f" ± {sound.std(ddof=1):.{digits}f}" if sound.size > 1 else "")
    return text + (f" ({values.size - sound.size} div.)" if sound.size < values.size else "")


def text(title: str, head: Sequence[str], body: Sequence[tuple[str, Sequence[str]]], width: int = 14) -> str:
    """A table as it is printed: `head` names the rows, then each column; `body` has a row's name and its cells."""
    first = max(len(name) for name in (head[0], *(name for name, _ in body))) + 2
    width = max(width, *(2 + len(one) for _, row in body for one in row), 0)
    lines = [(head[0], head[1:]), *body]
    rows = (f"{name:<{first}}" + "".join(f"{one:>{width}}" for one in row).rstrip() for name, row in lines)
    return "\n".join(["", title, *rows])


def table(title: str, frame: pd.DataFrame, across: str, head: str = "", paper: pd.DataFrame | None = None,
          scale: float = 100.0, digits: int = 1) -> str:  # fmt: skip
    """Mean ± standard deviation over seeds of each trace (rows) at each place, the paper's below it.

    **Arguments:**

    - `frame`: a row a run, with its `value`.
    - `across`: the column whose values head the table's columns; `head`: what they are called.
    - `paper`: published values, from `published`.
    """
    places, body = list(dict.fromkeys(frame[across].sort_values())), []
    for key in traces(frame):
        at = dict(list(of_trace(frame, key).groupby(across)["value"]))
        body.append((label(*key), [cell(at.get(place, ()), scale, digits) for place in places]))
        theirs = {} if paper is None else of_trace(paper, key).groupby(across)["value"].first()
        theirs = [f"{scale * theirs[place]:.0f}" if place in theirs else "" for place in places]
        if any(theirs):
            body.append(("  paper", theirs))
    return text(title, [head, *(place if isinstance(place, str) else f"{place:g}" for place in places)], body)


def published(task: str, metric: str, scenario: str = "behavioral", delays: Sequence | None = None) -> pd.DataFrame:
    """The paper's values of a dataset or environment, as rows of `trace`, `order`, `delay_s` and `value`.

    Those of no delay are among them in every scenario, their trace named as in our tables: once, or, where `delays` are
    asked for, at each of them.
    """
    rows = pd.read_csv(Path(__file__).with_name("paper.csv"))
    name = _PAPERS_TASKS.get(task, DATASETS.get(task, task))
    rows = rows[(rows["task"] == name) & (rows["metric"] == metric) & rows["scenario"].isin([scenario, "none"])]
    still = rows["trace"] == "backprop"
    trace = rows["trace"].mask(still, "backprop" if task in DATASETS else "no delay")
    rows = rows.assign(trace=trace, order=rows["order"].mask(still, 0))[["trace", "order", "delay_s", "value"]]
    return rows if delays is None else everywhere(rows[still | rows["delay_s"].isin(delays)], "delay_s", delays)
