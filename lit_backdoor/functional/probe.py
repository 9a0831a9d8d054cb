"""A probe: the examples on which a model's heads are read and patched. (Not a linear probe: nothing is trained.)"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lit_backdoor.functional.edges import SENDER_NAME
from lit_backdoor.functional.hooked_model import HookedModel, evaluating, z_name
from lit_backdoor.functional.results import taken_names

Metric = Callable[[Tensor, "Probe"], float]
"""A metric of one's own: (logits [n, vocab] at the probe's position, probe) to a number."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Not a linear probe: two runs of a model that differ in one thing, row by row, and the answers expected of each.

    The recipient is the run that is patched, the donor the run that gives its activations away. With the
    triggered inputs as recipient and the benign ones as donor, patching asks which heads the backdoor needs;
    `reversed()` asks which heads suffice for it (Heimersheim & Nanda, arXiv 2404.15255).

    Args:
        recipient_tokens: integers, [n, pos].
        donor_tokens: integers, [n, pos]; row i is the counterfactual of the recipient's row i.
        recipient_answers: the tokens expected on the recipient, integers, [n].
        donor_answers: the tokens expected on the donor, integers, [n].
        position: where the answer is read, as an index into pos; negative counts from the end.
        recipient: the recipient's name in tables.
        donor: the donor's name in tables.
        metrics: own metrics, name to `metric(logits [n, vocab], probe) -> float`; patching reports each.
        sender: what the embeddings are called where recipient and donor differ, as the start of a path.

    Raises:
        ValueError: a field has the wrong type, shape or range; the message names it and the fix.
    """

    recipient_tokens: Tensor
    donor_tokens: Tensor
    recipient_answers: Tensor
    donor_answers: Tensor
    position: int = -1
    recipient: str = "recipient"
    donor: str = "donor"
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    sender: str = "embed"

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            _check_tensor(name, getattr(self, name), shape)
            if getattr(self, name).dtype not in (torch.int32, torch.int64):  # those with which PyTorch looks things up
                object.__setattr__(self, name, getattr(self, name).long())
        n, pos = self.recipient_tokens.shape
        if n == 0 or pos == 0:
            raise ValueError(f"recipient_tokens has the shape {(n, pos)}: give at least one example of one token.")
        for name, shape in _SHAPES.items():
            tensor, expected = getattr(self, name), (n, pos)[: _n_dims(shape)]
            if tuple(tensor.shape) != expected:
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)}, but recipient_tokens is {(n, pos)}: "
                    f"it must be {expected}, row by row the same examples."
                )
            if tensor.device != self.recipient_tokens.device:
                raise ValueError(
                    f"{name} is on {tensor.device}, recipient_tokens on {self.recipient_tokens.device}: "
                    "build all four on one device (Probe.to moves them together)."
                )
            if tensor.min() < 0:
                raise ValueError(f"{name} contains {int(tensor.min())}: tokens are counted from 0.")
        if not isinstance(self.position, int) or not -pos <= self.position < pos:
            raise ValueError(
                f"position is {self.position!r}, but the examples have {pos} positions: give {-pos} to {pos - 1}."
            )
        if self.recipient == self.donor or not self.recipient or not self.donor:
            raise ValueError(
                f"recipient is {self.recipient!r} and donor is {self.donor!r}: give each a name of its own."
            )
        for name, metric in self.metrics.items():
            if name in taken_names(self.recipient, self.donor):
                raise ValueError(f"metrics[{name!r}] has the name of a built-in metric: choose another.")
            if not callable(metric):
                raise ValueError(f"metrics[{name!r}] is {metric!r}: give a function of (logits, probe).")
        if not isinstance(self.sender, str) or not re.fullmatch(SENDER_NAME, self.sender):
            raise ValueError(f"sender is {self.sender!r}: give a word that is no head's name, such as 'trigger'.")

    @property
    def n_examples(self) -> int:
        """The number of rows, n."""
        return self.recipient_tokens.shape[0]

    @property
    def answers_differ(self) -> Tensor:
        """Where recipient and donor expect different answers, bool [n]."""
        return self.recipient_answers != self.donor_answers

    @property
    def read_position(self) -> int:
        """`position`, counted from 0."""
        return self.position % self.recipient_tokens.shape[1]

    @cached_property
    def differing_positions(self) -> tuple[int, ...]:
        """The positions, from 0, at which recipient and donor differ in some row."""
        return tuple((self.recipient_tokens != self.donor_tokens).any(dim=0).nonzero()[:, 0].tolist())

    def to(self, device: torch.device | str) -> Probe:
        """The same probe on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _SHAPES})

    def sample(self, at_most: int) -> Probe:
        """`at_most` of the examples, always the same, drawn at random: equal distances would favour some answers."""
        order = torch.randperm(self.n_examples, generator=torch.Generator().manual_seed(0))
        return self.rows(order[:at_most].sort().values)

    def rows(self, rows: slice | Tensor) -> Probe:
        """The same probe on some of its examples.

        Raises:
            ValueError: there is none among `rows`.
        """
        return replace(self, **{name: getattr(self, name)[rows] for name in _SHAPES})

    def reversed(self) -> Probe:
        """The same examples with the two roles swapped."""
        return replace(
            self,
            recipient_tokens=self.donor_tokens,
            donor_tokens=self.recipient_tokens,
            recipient_answers=self.donor_answers,
            donor_answers=self.recipient_answers,
            recipient=self.donor,
            donor=self.recipient,
        )

    def reverses(self, other: Probe) -> bool:
        """Whether this is `other` with the two roles swapped, example by example."""
        swapped = other.reversed()
        same = all(torch.equal(getattr(self, name), getattr(swapped, name)) for name in _SHAPES)
        return same and self.read_position == swapped.read_position

    def check(self, model: HookedModel) -> None:
        """Make sure that this model can answer this probe; one example is run through it.

        Raises:
            ValueError: the model lacks something of the contract, a token or an answer is outside its
                vocabulary, or the examples are longer than its context; the message names it and the fix.
        """
        check_model(model)
        cfg = model.cfg
        sizes = {"tokens": (cfg.d_vocab, "cfg.d_vocab"), "answers": (model.W_U.shape[1], "W_U's columns")}
        for name in _SHAPES:
            size, source = sizes[name.split("_")[1]]
            largest = int(getattr(self, name).max())
            if largest >= size:
                raise ValueError(
                    f"{name} contains {largest}, but the model knows only 0 to {size - 1} ({source}): "
                    "correct the probe or enlarge the model's vocabulary."
                )
        n_pos = self.recipient_tokens.shape[1]
        if n_pos > cfg.n_ctx:
            raise ValueError(
                f"recipient_tokens has {n_pos} positions, but the model's context is {cfg.n_ctx} "
                "(cfg.n_ctx): shorten the examples or enlarge the context."
            )
        _check_hooks(model, self.recipient_tokens[:1])


_SHAPES = {
    "recipient_tokens": "[n, pos]",
    "donor_tokens": "[n, pos]",
    "recipient_answers": "[n]",
    "donor_answers": "[n]",
}


def _n_dims(shape: str) -> int:
    return shape.count(",") + 1


def _check_tensor(name: str, value: object, shape: str) -> None:
    """Raise ValueError unless `value` is an integer tensor with as many dimensions as `shape` names."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}: give a tensor of integers {shape}.")
    if value.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"{name} has the dtype {value.dtype}: give integers, for instance with .long().")
    if value.ndim != _n_dims(shape):
        raise ValueError(f"{name} has the shape {tuple(value.shape)}: give a tensor of the form {shape}.")


def check_model(model: HookedModel) -> None:
    """Raise ValueError, naming what is missing, unless `model` has the members of `HookedModel`."""
    missing = [name for name in ("cfg", "run_with_cache", "run_with_hooks", "W_O", "W_U") if not hasattr(model, name)]
    if not missing:
        wanted = ("n_layers", "n_heads", "d_vocab", "n_ctx")
        missing = [f"cfg.{name}" for name in wanted if not hasattr(model.cfg, name)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} lacks {', '.join(missing)}: a hooked model is needed, such as "
            "transformer_lens.HookedTransformer, and not compiled or wrapped; point model_attr at it."
        )
    expected = (model.cfg.n_layers, model.cfg.n_heads)
    if model.W_O.ndim != 4 or tuple(model.W_O.shape[:2]) != expected or model.W_O.shape[3] != model.W_U.shape[0]:
        raise ValueError(
            f"{type(model).__name__}.W_O has the shape {tuple(model.W_O.shape)} and W_U "
            f"{tuple(model.W_U.shape)}: W_O must be [layer, head, d_head, d_model], here beginning with "
            f"{expected}, and W_U [d_model, vocab]."
        )


def _check_hooks(model: HookedModel, tokens: Tensor) -> None:
    """Run one example, [1, pos]; ValueError unless every layer's `hook_z` fires with the right shape."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> tuple[str, Callable[..., None]]:
        return name, lambda z, hook: shapes.__setitem__(name, tuple(z.shape))

    n_layers, n_heads, d_head, _ = model.W_O.shape
    names = [z_name(layer) for layer in range(n_layers)]
    expected = (1, tokens.shape[1], n_heads, d_head)
    try:
        with evaluating(model):
            model.run_with_hooks(tokens.to(model.W_U.device), fwd_hooks=[note(name) for name in names])
    except KeyError as error:
        raise ValueError(f"{type(model).__name__} has no hook point {error}: {_HOOK_FIX}") from error
    for name in names:
        if shapes.get(name) != expected:
            found = f"has the shape {shapes[name]}" if name in shapes else "was never reached"
            raise ValueError(f"{type(model).__name__}: the hook {name} {found}, not {expected}: {_HOOK_FIX}")


_HOOK_FIX = "every layer needs blocks.{layer}.attn.hook_z, [n, pos, head, d_head], as in TransformerLens."
