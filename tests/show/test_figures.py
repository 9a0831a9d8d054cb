"""Figures: what they show is what was measured, of models with more heads than colours, and in notebooks."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from lit_backdoor.functional import (
    Head,
    HeadProgress,
    HeadScores,
    Probe,
    RuleHeads,
    ShapleyResult,
    default_edge_sets,
    patch_paths,
)
from lit_backdoor.functional.results import HeadAttribution, Norm
from lit_backdoor.model import build_model
from lit_backdoor.show.circuit import circuit_figure
from lit_backdoor.show.heads import attribution_figure, rules_figure
from lit_backdoor.show.style import HEAD_COLOURS, LARGEST, figure_bytes
from lit_backdoor.show.training import emergence_figure, progress_figure
from lit_backdoor.task import Task

HEADS = [Head(layer, head) for layer in range(3) for head in range(4)]


def test_of_many_heads_those_that_cost_most_have_colours() -> None:
    def scores(step: int, costly: Head, cost: float) -> HeadScores:
        costs = {head: 0.001 * i for i, head in enumerate(HEADS)} | {costly: cost}
        return HeadScores(step, 1.0, {head: 1 - costs[head] for head in HEADS}, 0.0)

    # L0H0 costs much for a while, L0H1 in the end; of the rest the later ones cost more
    figure = emergence_figure([scores(0, HEADS[0], 0.9), scores(1, HEADS[1], 0.5)], "recipient accuracy")
    lines, heat = figure.axes[:2]
    named = {line.get_label(): line.get_color() for line in lines.lines if not str(line.get_label()).startswith("_")}
    coloured = ["L0H0", "L0H1", *(f"L{head.layer}H{head.head}" for head in HEADS[-6:])]
    assert list(named) == ["nothing patched", *(f"{name} patched" for name in coloured), "all patched"]
    assert len(set(named.values())) == len(HEAD_COLOURS) + 2
    assert len(lines.lines) == 1 + len(HEADS) + 1  # the others are there too, in grey
    assert len(heat.get_yticklabels()) == len(HEADS)


def attributed(norm: Norm) -> HeadAttribution:
    return HeadAttribution(
        head=Head(0, 0), mean_logit=1.0, mean_logit_centered=1.0, top_count=1, n_examples=1, mean_logit_diff=1.0,
        n_differing=1, norm=norm,
    )  # fmt: skip


def test_the_figure_says_how_the_final_norm_was_treated() -> None:
    """In a figure of one probe too, the sentence lies inside."""
    assert attribution_figure({"copy": [attributed("none")]})._suptitle is None
    figure = attribution_figure({"copy": [attributed("frozen LN scale")]})
    title = figure._suptitle
    assert title is not None and "constant of each example" in title.get_text()
    figure.draw_without_rendering()
    place = title.get_window_extent()
    assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1


def test_progress_measures_are_drawn_as_they_are() -> None:
    """A column for each rule: losses, shares, key frequencies, gradients, and norms or the cosine."""

    def measured(step: int, rule: int) -> list[HeadProgress]:
        return [
            HeadProgress(
                head=Head(0, head), modulus=11, key=(2, 5) if step else (), explained=step / 10, constant=0.1,
                loss=3.0 - step, restricted_loss=2.0, train_loss=1.0, excluded_loss=4.0, embed_norm=1.0,
                qk_norm=head + step, ov_norm=7.0, gradient_norm=1.0, gradient_share=(1 + head) / 10,
                cosine=math.nan if rule == 0 else -0.5,
            )
            for head in range(2)
        ]  # fmt: skip

    history = {rule: {step: measured(step, index) for step in (2, 0, 1)} for index, rule in enumerate(("benign", "x"))}
    axes = np.array(progress_figure(history).axes).reshape(5, 2)
    losses, shares, keys, gradients, norms = (axis.lines for axis in axes[:, 0])
    assert [list(line.get_ydata()) for line in losses] == [[3, 2, 1], [2] * 3, [1] * 3, [4] * 3]
    assert list(losses[0].get_xdata()) == [0, 1, 2] and list(shares[0].get_ydata()) == [0, 0.1, 0.2]
    (dots,) = keys
    assert sorted(zip(dots.get_xdata(), dots.get_ydata(), strict=True)) == [(1, 2), (1, 5), (2, 2), (2, 5)]
    assert [list(line.get_ydata()) for line in gradients] == [[0.1] * 3, [0.2] * 3]
    assert [list(line.get_ydata()) for line in norms] == [[0, 1, 2], [7] * 3, [1, 2, 3], [7] * 3]
    assert [list(line.get_ydata()) for line in axes[4, 1].lines[:2]] == [[-0.5] * 3] * 2


def test_a_figure_of_many_heads_is_not_endless() -> None:
    many = [replace(attributed("none"), head=Head(layer, head)) for layer in range(12) for head in range(12)]
    assert list(attribution_figure({"one": many, "two": many}).get_size_inches()) == [LARGEST, 5]


def test_more_rules_than_colours() -> None:
    heads = RuleHeads(ShapleyResult({Head(0, 0): -0.5}, {}, 0.5), ShapleyResult({Head(0, 0): 0.5}, {}, 0.5), ())
    rules = {f"rule{index}": heads for index in range(len(HEAD_COLOURS) + 1)}
    assert [text.get_text() for text in rules_figure(rules).axes[1].get_legend().get_texts()] == list(rules)


def test_a_circuit_of_two_runs_that_see_the_same_begins_at_the_heads() -> None:
    """Whoever wants attribution alone gives such a probe; no edge begins at a token, as none differs."""
    tokens, answers = Task((5,)).tokens(0), Task((5,)).answers(0)
    probe, model = Probe(tokens, tokens, answers, answers), build_model(6, d_model=8, d_mlp=8)
    results = patch_paths(model, probe, default_edge_sets(model, probe))
    assert "L0H0" in {text.get_text() for text in circuit_figure(results).axes[0].texts}


@pytest.mark.usefixtures("painted")
def test_text_in_an_svg_can_be_read() -> None:
    svg = figure_bytes(attribution_figure({"copy": [attributed("none")]}), ["svg"])["svg"].decode()
    assert re.search(r"<text[^>]*>L0H0</text>", svg) and '<path id="DejaVu' not in svg


@pytest.mark.usefixtures("painted")
def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    """IPython asks an object for `_repr_png_`; matplotlib's own figures have it only with pyplot's backend."""
    png = attribution_figure({"copy": [attributed("none")]})._repr_png_()
    assert png.startswith(b"\x89PNG\r\n") and len(png) > 10_000
