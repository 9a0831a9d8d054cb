"""Somebody else's project: the first of five tokens is repeated after the last. It knows nothing of this package but
the Probe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_backdoor.functional import Probe
from tests.helpers.both_kinds import KINDS, VOCAB, make_model

SHAPE = {"n_heads": 2, "d_head": 5, "normalization_type": "LN", "act_fn": "gelu"}


class CopyModule(LightningModule):
    """Two layers, layer norm, GELU, heads of an odd size, and the model at an attribute of its own."""

    def __init__(self, kind: str = "TransformerBridge", lr: float = 1e-2, optimizer: str = "Adam") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.parts = nn.ModuleDict({"net": make_model(kind, **SHAPE)})

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.parts["net"](batch[0])[:, -1], batch[0][:, 0])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        given = self.parts["net"](batch[0])[:, -1].argmax(-1)
        self.log("val/copy_accuracy", (given == batch[0][:, 0]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        kind: Any = getattr(torch.optim, self.hparams["optimizer"])
        return kind(self.parameters(), lr=self.hparams["lr"])


def sequences(n: int, seed: int) -> Tensor:
    """Random tokens, [n, 5]."""
    return torch.randint(VOCAB, (n, 5), generator=torch.Generator().manual_seed(seed))


def loader(n: int, seed: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(sequences(n, seed)), batch_size=64)


class CopyData(LightningDataModule):
    """40 training batches of 64, one validation batch; no probes."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(40 * 64, seed=1)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(64, seed=2)


def margin(logits: Tensor, probe: Probe) -> float:
    """A metric of one's own: how far the largest logit is ahead of the second."""
    first, second = logits.topk(2).values.unbind(-1)
    return float((first - second).mean())


def copy_probes(n: int = 128) -> Mapping[str, Probe]:
    """Recipient and donor differ in the first token alone."""
    recipient = sequences(n, seed=3)
    donor = recipient.clone()
    donor[:, 0] = (recipient[:, 0] + 1 + torch.arange(n) % (VOCAB - 1)) % VOCAB
    return {"copy": Probe(recipient, donor, recipient[:, 0], donor[:, 0], metrics={"margin": margin})}


class CopyProbes:
    """Probes whose number of examples is an option."""

    def __init__(self, n: int = 32) -> None:
        self.n = n

    def __call__(self) -> Mapping[str, Probe]:
        return copy_probes(self.n)


class OneBatch(CopyData):
    """The same batch at every step: a run that goes on sees what one sees that was not stopped."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(64, seed=1)


class CopyDataWithProbes(CopyData):
    def probes(self) -> Mapping[str, Probe]:
        return copy_probes()


def train(
    folder: Path,
    *callbacks: Callback,
    module: CopyModule | None = None,
    datamodule: Any = None,
    kind: str = KINDS[0],
    **options: Any,
) -> CopyModule:
    """Train `module`, else a new `CopyModule`, with some callbacks.

    In `folder` unless `default_root_dir` says otherwise; from `ckpt_path`, if there is one.
    """
    start = {"ckpt_path": options.pop("ckpt_path"), "weights_only": True} if "ckpt_path" in options else {}
    module_options = {name: options.pop(name) for name in ("lr", "optimizer") if name in options}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    torch.manual_seed(0)
    module = module or CopyModule(kind, **module_options)
    settings = {**quiet, "default_root_dir": folder, "max_steps": 6, "logger": False, "accelerator": "cpu", **options}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, datamodule or CopyData(), **start)
    return module
