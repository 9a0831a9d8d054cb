"""The circuit: through which edges of a model the answer comes, drawn as thick as what each costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

from lit_backdoor.functional import Edge, Head, PathPatchingResult, cost_above_floor, edge_name, head_name
from lit_backdoor.show.style import new_figure
from lit_backdoor.show.training import GROUP_NAMES, GROUP_STYLES

DRAWN = 0.02
"""An edge that costs less is a hairline."""
NUMBERED = 0.1
"""An edge that costs at least this has its number."""
WIDEST = 9.0
"""Line width of an edge that costs everything, in points."""

KINDS = {
    "Q": ("into the query", GROUP_STYLES["Q"][0]),
    "K": ("into the key", GROUP_STYLES["K"][0]),
    "V": ("into the value", GROUP_STYLES["V"][0]),
    "D": ("past the heads", GROUP_STYLES["D"][0]),
    "mlp": ("head to MLP", GROUP_STYLES["A_mlp"][0]),
    "logits": ("head to logits", GROUP_STYLES["A_logits"][0]),
}
"""What edges there are, and their colours; those of the groups."""


@dataclass(frozen=True)
class _Box:
    """A node."""

    x: float
    y: float
    text: str
    width: float = 1.15
    height: float = 0.62

    def right(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    def left(self, part: str = "") -> tuple[float, float]:
        """Where an edge comes in; query, key and value of a head have a place each."""
        return self.x - self.width / 2, self.y + {"Q": 0.2, "K": 0.0, "V": -0.2}.get(part, 0.0)


def circuit_figure(results: Sequence[PathPatchingResult], others: str | None = None) -> Figure:
    """The nodes of a model and, as thick as what it costs, every edge through which the donor's run can be seen; beside
    it what whole groups of edges cost.

    A cost is the share of the recipient's accuracy above the floor that is lost when the edge, or the group, sees the
    donor; see :func:`lit_backdoor.functional.cost_above_floor`.

    Args:
        results: of one probe at one step, with nothing patched, single edges, and groups.
        others: name of the tokens that are the same in both runs; None if there are none. They have no edges of
            theirs: dotted lines say that heads read them.
    """
    unpatched = next(result for result in results if not result.edges)

    def cost(result: PathPatchingResult) -> float:
        return cost_above_floor(unpatched.recipient_accuracy, result.recipient_accuracy, result.floor)

    costs = {result.edges[0]: cost(result) for result in results if len(result.edges) == 1}
    groups: dict[str, float] = {result.group: cost(result) for result in results if result.group}
    boxes = _boxes(list(costs))
    right = max(box.x for box in boxes.values())
    figure = new_figure(3.6 + 1.05 * right, 5.4)
    axis, bars = figure.subplots(1, 2, width_ratios=[right + 1.5, 2.2])
    if others is not None:
        boxes |= _draw_others(axis, boxes, others)
    for edge in sorted(costs, key=lambda edge: costs[edge] if costs[edge] > 0 else 0.0):
        _draw_edge(axis, boxes, edge, costs[edge])
    for box in boxes.values():
        _draw_box(axis, box)
    ys = [box.y for box in boxes.values()]
    axis.set(xlim=(-0.8, right + 0.8), ylim=(min(ys) - 1.9, max(ys) + 0.6), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.legend(handles=_legend(costs), loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=5, frameon=False,
                fontsize=8.5)  # fmt: skip
    what = f"Cost to the {unpatched.recipient} answers of an edge that sees the {unpatched.donor} run"
    if isnan(cost_above_floor(unpatched.recipient_accuracy, 0, unpatched.floor)):
        what += f"\n(undefined: the model does not give the {unpatched.recipient} answers)"
    axis.set_title(what, fontsize=10.5)
    _draw_groups(bars, groups)
    return figure


def _boxes(edges: Sequence[Edge]) -> dict[object, _Box]:
    """A place for every node: tokens to the left, then each layer's heads and MLP, then the logits."""
    senders = {edge.sender for edge in edges if isinstance(edge.sender, str)}  # none where the two runs see the same
    heads = sorted(
        {edge.sender for edge in edges if isinstance(edge.sender, Head)}
        | {Head(edge.receiver.layer or 0, edge.receiver.head) for edge in edges if edge.receiver.head is not None}
    )
    mlps = sorted({edge.receiver.layer or 0 for edge in edges if edge.receiver.part == "mlp"})
    n_layers, n_heads = heads[-1].layer + 1, max(head.head for head in heads) + 1
    top = (n_heads - 1) / 2
    boxes: dict[object, _Box] = {sender: _Box(0.0, -0.35 * n_heads, sender) for sender in senders}
    x = 0.0
    for layer in range(n_layers):
        x += 2.7
        boxes |= {head: _Box(x, top - head.head, head_name(*head)) for head in heads if head.layer == layer}
        if layer in mlps:
            x += 2.3
            boxes["mlp", layer] = _Box(x, 0.55 * top, "MLP" if n_layers == 1 else f"L{layer} MLP", height=1.1)
    boxes["logits"] = _Box(x + 2.2, -0.3 * n_heads, "logits", height=1.1)
    return boxes


def _draw_others(axis: Axes, boxes: Mapping[object, _Box], name: str) -> dict[object, _Box]:
    """The box of the tokens that do not differ, with lines to the heads; a line from the MLP to the logits too."""
    heads = [box for node, box in boxes.items() if isinstance(node, Head)]
    box = _Box(0.0, max(head.y for head in heads) - 0.35, name)
    lines = [(box.right(), head.left()) for head in heads]
    lines += [(boxes[node].right(), boxes["logits"].left()) for node in boxes if node == ("mlp", 0)]
    for (x0, y0), (x1, y1) in lines:
        axis.plot([x0, x1], [y0, y1], color="0.7", linewidth=0.9, linestyle=":", zorder=1)
    return {"others": box}


def _draw_edge(axis: Axes, boxes: Mapping[object, _Box], edge: Edge, cost: float) -> None:
    part = edge.receiver.part
    from_head = isinstance(edge.sender, Head)
    receiver: object = ("mlp", edge.receiver.layer or 0) if part == "mlp" else part
    if edge.receiver.head is not None:
        receiver = Head(edge.receiver.layer or 0, edge.receiver.head)
    (x0, y0), (x1, y1) = boxes[edge.sender].right(), boxes[receiver].left(part)
    bend = (x1 - x0) * 0.45
    inner = [(x0 + bend, y0), (x1 - bend, y1)]
    if not from_head and part in ("mlp", "logits"):  # past the heads, below all of them
        floor = min(box.y for box in boxes.values()) - (1.35 if part == "mlp" else 2.0)
        inner = [(x0 + 0.25 * (x1 - x0), floor), (x1 - 0.25 * (x1 - x0), floor)]
    points = np.array([(x0, y0), *inner, (x1, y1)])
    thick = cost >= DRAWN
    colour = _kind(edge)[1] if thick else "0.78"
    width = max(WIDEST * min(cost, 1.0), 1.0) if thick else 0.6
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    axis.add_patch(
        PathPatch(curve, facecolor="none", edgecolor=colour, linewidth=width, alpha=0.85, capstyle="butt",
                  zorder=2 if thick else 1)
    )  # fmt: skip
    if cost >= NUMBERED:
        t = {"Q": 0.8, "K": 0.68, "V": 0.56}.get(part, 0.35 if from_head else 0.5)
        weights = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
        x, y = weights @ points
        label = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colour, "linewidth": 0.8}
        axis.text(x, y, f"{cost:.0%}", fontsize=8, ha="center", va="center", bbox=label, zorder=5)


def _draw_box(axis: Axes, box: _Box) -> None:
    corner = box.x - box.width / 2, box.y - box.height / 2
    axis.add_patch(
        FancyBboxPatch(corner, box.width, box.height, boxstyle="round,pad=0,rounding_size=0.12", facecolor="#f4f4f1",
                       edgecolor="0.25", linewidth=1.2, zorder=3)
    )  # fmt: skip
    axis.text(box.x + (0.1 if box.text[-2:-1] == "H" else 0), box.y, box.text, ha="center", va="center", fontsize=10,
              zorder=4)  # fmt: skip
    if box.text[-2:-1] == "H":
        for part in "QKV":
            x, y = box.left(part)
            axis.text(x + 0.05, y, part, ha="left", va="center", fontsize=6.5, color="0.35", zorder=4)


def _kind(edge: Edge) -> tuple[str, str]:
    part = edge.receiver.part
    past = not isinstance(edge.sender, Head) and part in ("mlp", "logits")
    return KINDS["D" if past else part]


def _legend(costs: Mapping[Edge, float]) -> list[Line2D]:
    used = dict.fromkeys(_kind(edge) for edge in sorted(costs, key=edge_name))
    kinds = [kind for kind in KINDS.values() if kind in used]
    lines = [Line2D([], [], color=colour, linewidth=4, label=text) for text, colour in kinds]
    widths = ((1.0, "all of it"), (0.5, "half"), (0.1, "a tenth"))
    lines += [Line2D([], [], color="0.4", linewidth=WIDEST * share, label=text) for share, text in widths]
    return lines


def _draw_groups(axis: Axes, groups: Mapping[str, float]) -> None:
    names = list(groups)
    labels = [GROUP_NAMES.get(name, name) for name in names]
    values = [0.0 if isnan(value) else min(max(value, 0.0), 1.0) for value in groups.values()]
    bars = axis.barh(labels, values, color=[GROUP_STYLES[name][0] for name in names], height=0.62)
    axis.bar_label(bars, ["" if isnan(v) else f"{v:.0%}" for v in groups.values()], fontsize=8, padding=3)
    axis.set(xlim=(0, 1.25), xticks=[0, 0.5, 1], xticklabels=["0", "50%", "100%"])
    axis.set_title("of all heads together", fontsize=10.5)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
