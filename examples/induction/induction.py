"""Induction heads, and when they form: a task of its own that lit_backdoor's callbacks watch unchanged.

    python examples/induction/induction.py fit --config examples/induction/config.yaml

A sequence of tokens, all different, starts again from its beginning. Where it repeats, the next token is the one that
followed the same token the first time. A one-layer attention-only model cannot find it; a two-layer one can: a
previous-token head in layer 0 tells every position what stood before it, an induction head in layer 1 looks for the
position that was told "the present token", and copies what stands there (Elhage et al. 2021, Olsson et al. 2022).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.utils.data import TensorDataset
from transformer_lens import HookedTransformer, HookedTransformerConfig

from lit_backdoor.functional import Probe, head_name

Batch = tuple[Tensor, Tensor]
"""Tokens [n, n_ctx + 1], the last one only to be predicted, and each row's period [n]."""


class RepeatedSequences(LightningDataModule):
    """Sequences that start again after their period: a new batch for every step, and one fixed batch to measure on.

    The period differs from row to row. With a fixed one, looking back by a fixed number of positions would do, which
    one layer learns without any induction head.

    Args:
        d_vocab: Size of the vocabulary. No token occurs twice within a period.
        n_ctx: Tokens that the model sees.
        longest_period: Periods are drawn from half of n_ctx to this: every token occurs at most twice.
        batch_size: Sequences in a training batch.
        n_val: Sequences in the fixed batch, which validates and probes.
        seed: Seed of all sequences.
    """

    def __init__(
        self,
        d_vocab: int = 64,
        n_ctx: int = 32,
        longest_period: int = 28,
        batch_size: int = 32,
        n_val: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not n_ctx // 2 <= longest_period < min(n_ctx, d_vocab + 1):
            raise ValueError(
                f"data.longest_period: {longest_period} is out of range; {n_ctx // 2} (half of n_ctx) to "
                f"{min(n_ctx - 1, d_vocab)} (below n_ctx, at most d_vocab)"
            )
        self.d_vocab, self.n_ctx, self.longest_period, self.batch_size = d_vocab, n_ctx, longest_period, batch_size
        self._random = torch.Generator().manual_seed(seed)
        self.val_batch = self.draw(n_val)
        self._probe = shuffled_donor(self.val_batch[0], self._random)

    def draw(self, n: int) -> Batch:
        """``n`` new sequences, each with a period of its own."""
        different = torch.rand(n, self.d_vocab, generator=self._random).argsort(dim=1)
        period = torch.randint(self.n_ctx // 2, self.longest_period + 1, (n,), generator=self._random)
        return different.gather(1, torch.arange(self.n_ctx + 1) % period[:, None]), period

    def train_dataloader(self) -> Iterator[Batch]:
        while True:
            yield self.draw(self.batch_size)

    def val_dataloader(self) -> TensorDataset:
        return TensorDataset(*(each[None] for each in self.val_batch))  # one item: the whole batch

    def probes(self) -> dict[str, Probe]:
        """What the monitors measure on; this method is all that they ask of a datamodule."""
        return {"induction": self._probe}


def shuffled_donor(tokens: Tensor, random: torch.Generator) -> Probe:
    """Repeated sequences as recipients, and as donors the same with the tokens of their first half in another order.

    Both runs see the same tokens and end with the same repetition. They differ in nothing but what followed the last
    token when it stood there the first time, always in the first half; and that is what induction answers, in either.
    """
    recipient, answers = tokens[:, :-1], tokens[:, -1]
    n, half = len(tokens), recipient.shape[1] // 2
    order = torch.rand(n, half, generator=random).argsort(dim=1)
    donor = torch.cat([recipient[:, :half].gather(1, order), recipient[:, half:]], dim=1)
    first = (donor == donor[:, -1:]).int().argmax(dim=1)  # argmax: the first of equals
    donor_answers = donor.gather(1, first[:, None] + 1)[:, 0]
    differ = donor_answers != answers  # by chance, a few do not
    return Probe(
        recipient[differ], donor[differ], answers[differ], donor_answers[differ],
        recipient="repeated", donor="shuffled",
    )  # fmt: skip


def attention_scores(patterns: Tensor, period: Tensor) -> tuple[Tensor, Tensor]:
    """How much each head of a layer does what the two heads of the mechanism do, between 0 and 1.

    Args:
        patterns: attention from each position to each, [n, head, query, key].
        period: [n].

    Returns:
        The prefix-matching score [head]: mean attention from the second occurrence of a token to the position after
        its first one. The previous-token score [head]: mean attention from that position back to the first occurrence.
    """
    row, second = (torch.arange(patterns.shape[2], device=period.device) >= period[:, None]).nonzero(as_tuple=True)
    first = second - period[row]
    return patterns[row, :, second, first + 1].mean(dim=0), patterns[row, :, first + 1, first].mean(dim=0)


class InductionModule(LightningModule):
    """A next-token predictor of attention alone, trained on all positions.

    Args:
        d_vocab: As in the data.
        n_ctx: As in the data.
        n_layers: Layers; induction takes two.
        n_heads: Heads in each.
        d_model: Width of the residual stream.
        d_head: Width of a head.
        normalization_type: LN, or null for no layer norm.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
    """

    def __init__(
        self,
        d_vocab: int = 64,
        n_ctx: int = 32,
        n_layers: int = 2,
        n_heads: int = 2,
        d_model: int = 64,
        d_head: int = 32,
        normalization_type: str | None = "LN",
        lr: float = 3e-3,
        weight_decay: float = 0.3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = HookedTransformer(
            HookedTransformerConfig(
                n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_head=d_head, d_vocab=d_vocab, n_ctx=n_ctx,
                attn_only=True, normalization_type=normalization_type, device="cpu",
            )
        )  # fmt: skip

    def on_fit_start(self) -> None:
        self.net.cfg.device = str(self.device)  # Lightning moves the weights without telling TransformerLens

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, repeated = self._losses(self.net(batch[0][:, :-1]), *batch)
        self.log_dict({"train/loss": loss, "train/repeated_loss": repeated}, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(self.net.cfg.n_layers)]
        logits, cache = self.net.run_with_cache(batch[0][:, :-1], names_filter=names)
        loss, repeated = self._losses(logits, *batch)  # type: ignore[arg-type]  # TransformerLens allows for other outputs
        self.log_dict({"val/loss": loss, "val/repeated_loss": repeated})
        self.log("step", float(self.global_step))  # by itself, Lightning files this under the step before
        for layer, name in enumerate(names):
            prefix_matching, previous_token = attention_scores(cache[name], batch[1])
            for head in range(self.net.cfg.n_heads):
                self.log(f"val/prefix_matching/{head_name(layer, head)}", prefix_matching[head])
                self.log(f"val/previous_token/{head_name(layer, head)}", previous_token[head])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        lr, weight_decay = self.hparams["lr"], self.hparams["weight_decay"]
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))

    @staticmethod
    def _losses(logits: Tensor, tokens: Tensor, period: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss at all positions, and at those whose next token is a repetition that can be known."""
        loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")  # [n, n_ctx]
        known = torch.arange(loss.shape[1], device=loss.device) >= period[:, None]
        return loss.mean(), loss[known].mean()


def main(args: list[str] | None = None) -> None:
    """The command line; ``args`` in place of the shell's."""
    LightningCLI(InductionModule, RepeatedSequences, args=args)


if __name__ == "__main__":
    main()
