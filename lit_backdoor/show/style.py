"""What all figures share: sizes, colours and files."""

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

LARGEST = 24.0
"""Inches: no side of a figure is longer, however many heads there are."""

HEAD_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""

FONTS = ["DejaVu Sans", "Verdana", "sans-serif"]
"""An SVG is shown in the first that the reader has; figures are laid out in DejaVu Sans, and Verdana is as wide."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size, in inches, but not larger than :data:`LARGEST`.

    A notebook shows it as it is, without pyplot. The method for that is the figure's own: some loggers take a subclass
    of matplotlib's for something else.
    """
    figure = Figure(figsize=(min(width, LARGEST), min(height, LARGEST)), layout="constrained")
    figure._repr_png_ = partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    return figure_bytes(figure, ["png"])["png"]


def head_colour(index: int) -> str:
    """The same colour for the same head in every figure."""
    return HEAD_COLOURS[index % len(HEAD_COLOURS)]


def figure_bytes(figure: Figure, kinds: Sequence[str] = ("png", "svg")) -> dict[str, bytes]:
    """The figure as files, by kind, ``png`` or ``svg``; the same figure always gives the same bytes.

    Text in an SVG stays text, which can be searched, copied and read aloud.
    """
    options: dict[str, dict[str, Any]] = {"png": {"dpi": 130}, "svg": {"dpi": 130, "metadata": {"Date": None}}}
    files = {}
    with mpl.rc_context({"svg.hashsalt": "lit_backdoor", "svg.fonttype": "none", "font.sans-serif": FONTS}):
        for kind in kinds:
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, **options[kind])
            files[kind] = buffer.getvalue()
    return files


def cell_edges(steps: Sequence[int]) -> np.ndarray:
    """Edges of the cells whose centres are ``steps``."""
    centres = np.asarray(steps, dtype=float)
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([centres[:1], middles, centres[-1:]])
