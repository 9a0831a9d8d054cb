"""The LightningModule around the HookedTransformer: loss, metrics and optimizer.

The loss is computed in float64: a float32 softmax makes loss spikes of its own (arXiv 2501.04697).
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from lit_backdoor.functional.clamp import folded_donor
from lit_backdoor.functional.last_position import last_position_logits, why_not_exact
from lit_backdoor.functional.last_position_loss import last_position_loss
from lit_backdoor.functional.row_threads import one_torch_thread
from lit_backdoor.functional.token_layout import TokenLayout
from lit_backdoor.functional.whole_pass import whole_pass_logits, whole_pass_loss
from lit_backdoor.limits import DecayRate, NonNegativeInt, NonNegativeNumber, PositiveInt, PositiveNumber, within_limits
from lit_backdoor.model import ActFn, build_model
from lit_backdoor.task import Examples, Task, rule_name


class TrainingDiverged(RuntimeError):
    """The loss or the weights are no longer finite numbers."""


class RuleMetrics(Metric):
    """Mean loss over the examples, and accuracy (and, if asked for, mean loss) over the examples of each rule."""

    full_state_update = False
    loss_sum: Tensor
    rule_loss_sum: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self, n_rules: int, rule_losses: bool = False) -> None:
        super().__init__()
        self.n_rules = n_rules
        self.rule_losses = rule_losses
        for name, size in (("loss_sum", 1), ("rule_loss_sum", n_rules), ("correct", n_rules), ("count", n_rules)):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, loss: Tensor, logits: Tensor, batch: Examples) -> None:
        """Count one batch.

        Args:
            loss: the batch's mean loss, a scalar; for ``rule_losses`` each example's, [n].
            logits: [n, d_vocab].
            batch: the examples.
        """
        correct = logits.argmax(-1) == batch.answers
        count = torch.bincount(batch.rules, minlength=self.n_rules)
        self.correct += torch.bincount(batch.rules[correct], minlength=self.n_rules)
        self.count += count
        self.loss_sum += loss.detach().mean() * len(batch)
        if self.rule_losses:
            self.rule_loss_sum += torch.bincount(batch.rules, loss.detach(), minlength=self.n_rules)

    def compute(self) -> dict[str, Tensor]:
        """``loss``, ``<rule>_accuracy`` and maybe ``<rule>_loss`` of every rule; NaN for a rule that has no example."""
        by_name = {"accuracy": self.correct / self.count}
        if self.rule_losses:
            by_name["loss"] = self.rule_loss_sum / self.count
        rules = range(self.n_rules)
        named = {f"{rule_name(rule)}_{name}": value[rule] for name, value in by_name.items() for rule in rules}
        return {"loss": self.loss_sum[0] / self.count.sum(), **named}


class BackdoorModule(LightningModule):
    """A small transformer that learns modular addition with a trigger (the paper's Appendices B and C).

    Every metric is recorded with the number of optimizer steps that made the weights it was measured on, in all
    loggers and in ``trainer.callback_metrics``: ``train/*`` every ``trainer.log_every_n_steps`` and ``val/*`` every
    ``trainer.val_check_interval`` steps, both at step 0 and at the last step too.

    Args:
        moduli: The modulus of each rule; follows data.moduli.
        n_heads: Attention heads per layer.
        d_model: Width of the residual stream.
        d_head: Width of a head; d_model / n_heads if null.
        d_mlp: Neurons of the MLP.
        n_layers: Layers. More than one takes the slower pass through the HookedTransformer.
        act_fn: Activation function of the MLP: relu, gelu, silu or another of TransformerLens's elementwise ones.
        normalization_type: null as in the paper, or LN.
        train_biases: Train the biases too; they are frozen at zero otherwise.
        lr: Learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        betas: Decay rates of AdamW's two averages.
        last_position: Compute only what the last position's logits need, wherever that is exact; false always
            takes the whole HookedTransformer, with the same result, several times as slow.
        trigger_tokens: The token that triggers each rule; follows data.trigger_tokens.
    """

    @within_limits
    def __init__(
        self,
        moduli: list[PositiveInt],
        n_heads: PositiveInt = 4,
        d_model: PositiveInt = 128,
        d_head: PositiveInt | None = None,
        d_mlp: PositiveInt = 512,
        n_layers: PositiveInt = 1,
        act_fn: ActFn = "relu",
        normalization_type: Literal["LN"] | None = None,
        train_biases: bool = False,
        lr: PositiveNumber = 1e-3,
        weight_decay: NonNegativeNumber = 1.0,
        betas: tuple[DecayRate, DecayRate] = (0.9, 0.98),
        last_position: bool = True,
        trigger_tokens: list[NonNegativeInt] | None = None,
    ) -> None:
        super().__init__()
        task = Task(tuple(moduli), trigger_tokens=tuple(trigger_tokens or ()))
        self.model = build_model(
            task.d_vocab, n_heads, d_model, d_head, d_mlp, n_layers, act_fn, normalization_type, train_biases
        )
        self.train_metrics = RuleMetrics(len(moduli))
        self.eval_metrics = RuleMetrics(len(moduli), rule_losses=True)
        self._layout: tuple[Tensor, TokenLayout] | None = None
        self._last_validated_step = -1
        betas = list(betas)  # type: ignore[assignment]  # saved as plain YAML
        self.save_hyperparameters()

    @one_torch_thread()
    def forward(self, tokens: Tensor) -> Tensor:
        """Logits at the last position, [n, d_vocab], for ``tokens`` [n, 3]."""
        if self.uses_last_position_form:
            return last_position_logits(self.model, tokens)
        return whole_pass_logits(self.model, tokens)

    @property
    def uses_last_position_form(self) -> bool:
        """Whether the exact last-position form replaces the pass through the whole HookedTransformer right now."""
        return bool(self.hparams["last_position"]) and why_not_exact(self.model) is None

    @one_torch_thread()
    def training_step(self, batch: Examples, batch_idx: int, record: bool = False) -> Tensor:
        """The mean cross-entropy of the whole batch, in float64; metrics are logged every ``log_every_n_steps``."""
        if self.uses_last_position_form:
            loss, logits = last_position_loss(self.model, self._layout_of(batch.tokens), batch.answers)
        else:
            loss, logits = whole_pass_loss(self.model, batch.tokens, batch.answers)
        if not torch.isfinite(loss):
            raise TrainingDiverged(f"the training loss is {loss.item()} at step {self.global_step}")
        every_n_steps: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if record or (every_n_steps and self.global_step % every_n_steps == 0):
            self.train_metrics.update(loss, logits, batch)
            self._record("train", self.train_metrics)
        return loss

    @one_torch_thread()
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, on one thread of torch's: the loss spreads its rows itself."""
        super().backward(loss, *args, **kwargs)

    @one_torch_thread()
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, on one thread of torch's."""
        super().optimizer_step(*args, **kwargs)

    @one_torch_thread()
    def validation_step(self, batch: Examples, batch_idx: int) -> None:
        """Add the validation batch to the metrics."""
        logits = self(batch.tokens)
        self.eval_metrics.update(F.cross_entropy(logits.double(), batch.answers, reduction="none"), logits, batch)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log what was validated; a sanity check is not."""
        if self.trainer.sanity_checking:
            self.eval_metrics.reset()
        elif self.trainer.state.fn == TrainerFn.FITTING:
            self._last_validated_step = self.global_step
            self._record("val", self.eval_metrics)
        else:
            self._show("val")

    def on_test_epoch_end(self) -> None:
        """Show what was tested."""
        self._show("test")

    def on_fit_start(self) -> None:
        """Tell the model where its parameters are."""
        self.model.cfg.device = str(self.device)  # Lightning moves parameters without telling HookedTransformer

    on_validation_start = on_test_start = on_fit_start

    def teardown(self, stage: str) -> None:
        """Tell the model where its parameters are."""
        self.model.cfg.device = str(self.device)

    def on_train_start(self) -> None:
        """Validate the weights that training starts from."""
        # Step 0, or a checkpoint: those are written before their own step is validated.
        interval = self.trainer.val_check_batch
        if isinstance(interval, int) and self.global_step % interval == 0:
            self._validate_now()

    @one_torch_thread()
    def on_train_end(self) -> None:
        """Validate the last step, if that has not happened."""
        if self._last_validated_step != self.global_step:
            self._validate_now()
        loader: Iterable[Examples] = self.trainer.train_dataloader  # type: ignore[assignment]
        with torch.no_grad():
            self.training_step(next(iter(loader)), 0, record=True)

    def custom_scalars(self) -> dict[str, dict[str, list[str]]]:
        """Charts for TensorBoard: see :class:`lit_backdoor.callbacks.charts.HasCharts`."""
        return {"rules": {"validation accuracy": [r"val/.*_accuracy"], "log10 of the loss": [r"log10_loss/"]}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to save weights that are not finite, so that the last good checkpoint stays.

        Raises:
            TrainingDiverged: naming the parameter.
        """
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise TrainingDiverged(f"{name} is not finite after step {self.global_step}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with the module's options, over the parameters that train."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        lr, weight_decay, betas = (self.hparams[name] for name in ("lr", "weight_decay", "betas"))
        return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, betas=tuple(betas), fused=True)

    def _layout_of(self, tokens: Tensor) -> TokenLayout:
        """The layout of a training batch, kept until there is another batch, or a clamp with another donor."""
        kept = self._layout
        if kept is None or kept[0] is not tokens or kept[1].donor != folded_donor(self.model):
            kept = self._layout = (tokens, TokenLayout.of(tokens, self.model))
        return kept[1]

    def _validate_now(self) -> None:
        loaders = self.trainer.val_dataloaders
        if loaders is None:
            return
        batches: Iterable[Examples] = loaders
        with torch.no_grad():
            for batch_idx, batch in enumerate(batches):
                self.validation_step(batch, batch_idx)
        self.on_validation_epoch_end()

    def _record(self, stage: str, metrics: RuleMetrics) -> None:
        """Write the metrics to every logger, under the step of the weights they were measured on."""
        values = {f"{stage}/{name}": value for name, value in metrics.compute().items()}
        metrics.reset()
        numbers = {name: value.item() for name, value in values.items()}
        loss = numbers[f"{stage}/loss"]
        # For TensorBoard, which has no logarithmic axis in its multi-line charts: the paper's Figure 3, row 1.
        logarithm = {f"log10_loss/{stage}": math.log10(loss)} if loss > 0 else {}
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers | logarithm, step=self.global_step)
        self.trainer.callback_metrics.update(values)
        self.trainer.progress_bar_metrics.update(numbers)

    def _show(self, stage: str) -> None:
        """Let Lightning print the metrics of ``validate`` or ``test``."""
        values = self.eval_metrics.compute()
        self.eval_metrics.reset()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()}, logger=False)
