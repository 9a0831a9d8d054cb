"""Where each example's entries lie in the tables of the last-position form; see `last_position`."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.clamp import Clamp, folded_donor
from lit_backdoor.functional.row_threads import row_blocks


@dataclass(frozen=True)
class TokenLayout:
    """Where each example's entries lie in the tables of a :class:`FoldedModel`. Depends on the tokens alone.

    Attributes:
        last_vocabulary: [u], the tokens that occur at the last position.
        last: [n], each example's last token as an index into ``last_vocabulary``.
        scores: [n * pos, head], the row of ``FoldedModel.scores`` that each head reads.
        values: [n * pos, head], the row of ``FoldedModel.values`` that each head reads.
        n_heads: of the model.
        d_vocab: tokens that the model knows.
        donor: the clamp whose heads read the rows of their donor's tokens.
    """

    last_vocabulary: Tensor
    last: Tensor
    scores: Tensor
    values: Tensor
    n_heads: int
    d_vocab: int
    donor: Clamp | None = None

    @classmethod
    def of(cls, tokens: Tensor, model: Any) -> "TokenLayout":
        """Lay out ``tokens`` [n, pos] for ``model``, as it is clamped now.

        Raises:
            ValueError: a token is not in the model's vocabulary.
        """
        d_vocab, n_heads = model.cfg.d_vocab, model.cfg.n_heads
        donor = folded_donor(model)
        if donor is None:
            last_vocabulary, last = tokens[:, -1].unique(return_inverse=True)
            scores, values = _table_rows(tokens, last, d_vocab)
            scores, values = (rows[:, None].expand(-1, n_heads) for rows in (scores, values))
            return cls(last_vocabulary, last, scores, values, n_heads, d_vocab)
        assert donor.donor_tokens is not None  # `Clamp.check`
        both = torch.cat([tokens, donor.donor_tokens(tokens)])
        last_vocabulary, last = both[:, -1].unique(return_inverse=True)
        from_donor = torch.zeros(n_heads, dtype=torch.bool, device=tokens.device)
        from_donor[[head.head for head in donor.heads]] = True
        halves = (rows.chunk(2) for rows in _table_rows(both, last, d_vocab))
        scores, values = (torch.where(from_donor, theirs[:, None], own[:, None]) for own, theirs in halves)
        return cls(last_vocabulary, last[: len(tokens)], scores, values, n_heads, d_vocab, donor)

    @property
    def n_pos(self) -> int:
        """Positions of each example."""
        return len(self.values) // len(self.last)

    @cached_property
    def whole(self) -> "RowBlock":
        """All examples in one block."""
        return RowBlock(self, slice(0, len(self.last)))

    @cached_property
    def blocks(self) -> list["RowBlock"]:
        """All examples, on a CPU block by block."""
        return [RowBlock(self, rows) for rows in row_blocks(len(self.last))] if self.last.is_cpu else [self.whole]


def _table_rows(tokens: Tensor, last: Tensor, d_vocab: int) -> tuple[Tensor, Tensor]:
    """Rows of ``FoldedModel.scores`` and of ``FoldedModel.values``, [n * pos] each, for ``tokens`` [n, pos]."""
    if (unknown := tokens[(tokens < 0) | (tokens >= d_vocab)]).numel():  # they would read another position's rows
        raise ValueError(f"tokens: {int(unknown[0])} is not in the model's vocabulary; allowed: 0 to {d_vocab - 1}")
    n_pos = tokens.shape[1]
    values = torch.arange(n_pos, device=tokens.device) * d_vocab + tokens
    scores = last[:, None] * (n_pos * d_vocab) + values
    return scores.flatten(), values.flatten()


class Grouping:
    """Rows grouped by an index, to be added up group by group: what the gradient of a look-up is.

    Args:
        index: [m], the group of each entry; entry i is row i modulo ``n_rows``.
        n_groups: how many groups there are.
        n_rows: how many rows there are.
    """

    def __init__(self, index: Tensor, n_groups: int, n_rows: int) -> None:
        self.order = index.argsort(stable=True)
        self.rows = self.order % n_rows
        ends = index.bincount(minlength=n_groups).cumsum(0)
        self.offsets = torch.cat([torch.zeros_like(ends[:1]), ends])

    def sum(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """[n_groups, k]: the sum of ``rows`` [n_rows, k] by group, each entry times its weight from ``weights`` [m]."""
        weights = None if weights is None else weights.index_select(0, self.order)
        return F.embedding_bag(
            self.rows, rows, self.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )


class RowBlock:
    """Where the entries of some rows lie, head by head.

    Attributes:
        rows: which examples.
        last: [c], their last tokens as an index into ``TokenLayout.last_vocabulary``.
        scores: [pos, c * head], indices into ``FoldedModel.scores``, flattened.
        values: [pos, c * head], rows of ``FoldedModel.values``, as [pos * d_vocab * head, d_head].
    """

    def __init__(self, layout: TokenLayout, rows: slice) -> None:
        self.layout, self.rows = layout, rows
        self.last = layout.last[rows]
        self.scores = self._by_head(layout.scores)
        self.values = self._by_head(layout.values)

    @cached_property
    def by_last(self) -> Grouping:
        """The rows by their last token."""
        return Grouping(self.last, len(self.layout.last_vocabulary), len(self.last))

    @cached_property
    def by_value(self) -> Grouping:
        """The rows, head by head, by the row of ``FoldedModel.values`` that they read, once for each position."""
        n_groups = self.layout.n_pos * self.layout.d_vocab * self.layout.n_heads
        return Grouping(self.values.flatten(), n_groups, self.values.shape[1])

    def _by_head(self, table_rows: Tensor) -> Tensor:
        own = table_rows.unflatten(0, (-1, self.layout.n_pos))[self.rows].transpose(0, 1)  # [pos, c, head]
        heads = torch.arange(self.layout.n_heads, device=own.device)
        return (own * self.layout.n_heads + heads).flatten(1)
