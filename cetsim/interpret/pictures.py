"""Pictures as parts of an HTML file that loads nothing."""

import base64
import html
import struct
import zlib

import numpy as np


def text(value) -> str:
    """As it stands, for HTML."""
    return html.escape(str(value))


def png(picture) -> bytes:
    """A PNG file of `[height, width]`, `[height, width, 3]` or `[height, width, 4]` in 0 to 1.

    **Raises:** ValueError for another shape.
    """
    picture = np.asarray(picture)
    kinds = {2: 0, 3: {3: 2, 4: 6}.get(picture.shape[-1])}
    kind = kinds.get(picture.ndim)
    if kind is None:
        raise ValueError(f"a picture must be [height, width], or with 3 or 4 channels behind, got {picture.shape}")
    pixels = np.clip(np.round(picture * 255), 0, 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    # Each line of the picture begins with the number of its filter; 0 is none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def image_tag(picture, alt: str, kind: str = "") -> str:
    """An image that holds its own pixels."""
    data = base64.b64encode(png(picture)).decode()
    return f'<img class="{kind}" alt="{text(alt)}" src="data:image/png;base64,{data}">'


def heat(weights: np.ndarray) -> np.ndarray:
    """A map in 0 to 1 as red of that opacity."""
    weights = np.clip(weights, 0, 1)
    red = np.broadcast_to(np.array([1.0, 0.2, 0.0]), (*weights.shape, 3))
    return np.concatenate([red, 0.75 * weights[..., None]], axis=-1)


def signed(picture: np.ndarray) -> np.ndarray:
    """White at 0, red above, blue below, by the largest entry."""
    size = np.abs(picture).max() or 1.0
    weight = picture / size
    return np.stack([1 - np.clip(-weight, 0, 1), 1 - np.abs(weight), 1 - np.clip(weight, 0, 1)], axis=-1)


def bars(counts: np.ndarray, label: str) -> str:
    """Bars side by side, as a picture that scales."""
    top, width = max(int(counts.max()), 1), len(counts)
    drawn = "".join(
        f'<rect x="{i}.05" width=".9" y="{1 - count / top:.4f}" height="{count / top:.4f}"/>'
        for i, count in enumerate(counts)
        if count
    )
    view = f'viewBox="0 0 {width} 1" preserveAspectRatio="none"'
    return f'<svg {view} role="img" aria-label="{text(label)}">{drawn}</svg>'
