"""One static HTML file that shows the latents of a coder: opens from disk, and loads nothing from anywhere."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cetsim import checks
from cetsim.interpret.latents import BINS, Latents
from cetsim.interpret.pictures import bars, heat, image_tag, signed, text
from cetsim.interpret.views import heat_map, require_images

MOST = 256  # latents on a page, unless said otherwise

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --hot: #c2410c; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 80rem; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 0; }
p, dl { margin: .3rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; }
dt { opacity: .7; } dd { margin: 0; overflow-wrap: anywhere; }
.bar { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .4rem 1rem; padding: .5rem 0;
  background: Canvas; border-bottom: 1px solid var(--line); align-items: center; }
.bar select, .bar input[type=search] { font: inherit; max-width: 11rem; }
main { display: grid; gap: .8rem; margin-top: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
article { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; min-width: 0; }
article[hidden] { display: none; }
.facts { font-size: .85rem; opacity: .85; }
.tops { display: grid; grid-template-columns: repeat(auto-fill, minmax(3.2rem, 1fr)); gap: .25rem; margin-top: .4rem; }
figure { margin: 0; position: relative; }
figure img { display: block; width: 100%; image-rendering: pixelated; border-radius: 2px; }
figure img.heat { position: absolute; inset: 0; height: auto; }
body:not(.heated) img.heat { display: none; }
figcaption { font-size: .7rem; text-align: center; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.row { display: flex; gap: .6rem; align-items: end; }
.row img { width: 4.5rem; image-rendering: pixelated; border-radius: 2px; }
svg { width: 100%; height: 3rem; display: block; fill: var(--hot); }
.overview svg { max-width: 40rem; height: 5rem; }
"""

_SCRIPT = """
const cards = [...document.querySelectorAll('article')], main = document.querySelector('main');
const sort = document.getElementById('sort'), find = document.getElementById('find');
const heat = document.getElementById('heat'), shown = document.getElementById('shown');
function order() {
  const by = sort.value, way = by === 'latent' ? 1 : -1;
  cards.sort((a, b) => way * (a.dataset[by] - b.dataset[by]) || a.dataset.latent - b.dataset.latent);
  main.append(...cards);
}
function filter() {
  const text = find.value.trim().toLowerCase();
  for (const card of cards) card.hidden = text !== '' && !card.dataset.text.includes(text);
  shown.textContent = cards.filter(card => !card.hidden).length + ' shown';
}
sort.addEventListener('change', order);
find.addEventListener('input', filter);
if (heat) heat.addEventListener('change', () => document.body.classList.toggle('heated', heat.checked));
filter();
"""


def page(
    path,
    latents: Latents,
    images,
    *,
    title: str = "Latents",
    about: dict | None = None,
    which=None,
    labels=None,
    class_names=None,
    pictures=None,
    effects=None,
    grid: tuple[int, int] | None = None,
    skip: int = 0,
) -> Path:
    """Writes one HTML file with a card for each latent: its top images, heat maps, densities, and what it does.

    The file holds all that it shows, and needs no network, so that it can be sent and opened from disk.

    **Arguments:**

    - `path`: of the file, which is replaced.
    - `latents`: from `collect`.
    - `images`: `[examples, height, width]` or `[examples, height, width, 3]` in 0 to 1, or bytes: what `collect` saw.
    - `title`, `about`: what stands above: a line, and facts by name.
    - `which`: numbers of the latents shown; None for the 256 that are active most often.
    - `labels`: `[examples]`, class numbers, of which the most common among the top images is shown.
    - `class_names`: by class number, for labels and effects.
    - `pictures`: `[latents, height, width]`, from `decoder_images`.
    - `effects`: `[latents, classes]`, what a latent does to the logits, such as `W_dec @ head.weight.T`.
    - `grid`, `skip`: of tokens, as in `heat_map`.

    **Returns:** the path.

    **Raises:** ValueError for arrays that do not go together, and latents none of which was ever active.
    """
    images, count = require_images(images, latents), len(latents.top)
    by_rows = {"labels": (labels, len(images)), "pictures": (pictures, count), "effects": (effects, count)}
    for name, (rows, wanted) in by_rows.items():
        if rows is not None and len(rows) != wanted:
            raise ValueError(f"`{name}` must have {wanted} rows, got {len(rows)}")
    labels, pictures, effects = (None if rows is None else np.asarray(rows) for rows, _ in by_rows.values())
    cards = _Cards(latents, images, labels, class_names, pictures, effects, grid, skip)
    shown = _shown(latents, which)
    heated = latents.maps.ndim > 2
    facts = {"latents": f"{len(shown)} shown of {count}, {int(latents.dead.sum())} dead"}
    facts |= {"seen": f"{latents.examples} examples, {latents.vectors} vectors"} | (about or {})
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(
        _document(title, facts, latents, [cards.card(latent) for latent in shown], heated), encoding="utf-8"
    )
    part.replace(path)
    return path


def _shown(latents: Latents, which) -> list[int]:
    count = len(latents.top)
    if which is None:
        if latents.dead.all():
            raise ValueError(f"at least one of the {count} latents must be active to be shown, got none above zero")
        often = np.argsort(-latents.frequency, kind="stable")[:MOST]
        return sorted(int(latent) for latent in often if not latents.dead[latent])
    which = [checks.require_whole("which", latent, least=0) for latent in which]
    if any(latent >= count for latent in which):
        raise ValueError(f"`which` must be latents from 0 to {count - 1}, got {checks.shown(which)}")
    return which


def _document(title: str, facts: dict, latents: Latents, cards: list[str], heated: bool) -> str:
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    alive = latents.frequency[~latents.dead]
    counts, _ = np.histogram(np.log10(alive), bins=40, range=(-6, 0))
    heat = '<label><input type="checkbox" id="heat" checked> heat maps</label>' if heated else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>{_STYLE}</style>
</head>
<body class="{"heated" if heated else ""}">
<header class="overview">
<h1>{text(title)}</h1>
<dl>{listed}</dl>
{bars(counts, "latents by log10 of their frequency, from -6 to 0")}
<p class="facts">How many latents are active how often, from one vector in a million (left) to all (right).</p>
</header>
<div class="bar">
<label>sort by <select id="sort"><option value="latent">number</option><option value="frequency">frequency</option>
<option value="maximum">largest activation</option></select></label>
<label>find <input type="search" id="find" placeholder="number or class"></label>
{heat}<span id="shown"></span>
</div>
<main>
{"".join(cards)}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


class _Cards(NamedTuple):
    """What the cards of a page are made of; see `page`."""

    latents: Latents
    images: np.ndarray
    labels: np.ndarray | None
    class_names: Any
    pictures: np.ndarray | None
    effects: np.ndarray | None
    grid: tuple[int, int] | None
    skip: int

    def card(self, latent: int) -> str:
        """The card of one latent."""
        lines = self._lines(latent)
        words = " ".join([str(latent), *lines[1:]]).lower()
        numbers = {
            "latent": latent,
            "frequency": self.latents.frequency[latent],
            "maximum": self.latents.maximum[latent],
        }
        data = " ".join(f'data-{name}="{value:g}"' for name, value in numbers.items())
        facts = "".join(f'<p class="facts">{text(line)}</p>' for line in lines)
        picture = "" if self.pictures is None else image_tag(signed(self.pictures[latent]), f"decoder of {latent}")
        density = bars(self.latents.histogram[latent], f"activations by log10, from {BINS[0]:g} to {BINS[-1]:g}")
        tops = "".join(
            self._top(latent, place, int(example))
            for place, example in enumerate(self.latents.top[latent])
            if example >= 0
        )
        return (
            f'<article {data} data-text="{text(words)}"><h2>{latent}</h2>{facts}'
            f'<div class="row">{picture}{density}</div><div class="tops">{tops}</div></article>\n'
        )

    def _lines(self, latent: int) -> list[str]:
        """How active it is, on which classes, and what it does to the logits."""
        mean, maximum = self.latents.mean[latent], self.latents.maximum[latent]
        lines = [f"active on {self.latents.frequency[latent]:.3%}, mean {mean:.3g}, at most {maximum:.3g}"]
        top = self.latents.top[latent][self.latents.top[latent] >= 0]
        if self.labels is not None and top.size:
            classes, counts = np.unique(self.labels[top], return_counts=True)
            lines.append(f"{counts.max()} of the top {top.size} are {self._name(classes[counts.argmax()])}")
        if self.effects is not None:
            order = np.argsort(self.effects[latent], kind="stable")
            up, down = (", ".join(map(self._name, part)) for part in (order[:-4:-1], order[:3]))
            lines.append(f"for {up}; against {down}")
        return lines

    def _top(self, latent: int, place: int, example: int) -> str:
        """One of its top images, with the heat map over it."""
        over = ""
        if self.latents.maps.ndim > 2:
            size = self.images.shape[1:3]
            weights = heat_map(self.latents.maps[latent, place], size, grid=self.grid, skip=self.skip)
            over = image_tag(heat(weights / self.latents.maximum[latent]), "", "heat")
        label = "" if self.labels is None else f", {self._name(self.labels[example])}"
        image = image_tag(self.images[example], f"example {example}{label}")
        return f"<figure>{image}{over}<figcaption>{self.latents.strength[latent, place]:.3g}</figcaption></figure>"

    def _name(self, number) -> str:
        return str(number) if self.class_names is None else str(self.class_names[int(number)])
