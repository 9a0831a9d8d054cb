"""What if: heads are clamped while a model trains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lit_backdoor.callbacks.run import ContractError, find_model, imported
from lit_backdoor.functional.clamp import (
    ActiveClamp,
    Clamp,
    DonorTokens,
    clamped,
    head_parameters,
    require_heads,
)
from lit_backdoor.functional.heads import head_set, head_set_name
from lit_backdoor.limits import NonNegativeInt, PositiveInt, Share, within_limits
from lit_backdoor.runs.schema import Value


class HeadClamp(Callback):
    """Replaces what some heads write while the model trains, and lets gradients flow through what is left.

    It acts inside ``training_step``, and nowhere else unless asked: validation has it with ``validation=True``, a
    monitor with its own ``clamped=True``. So everything else is measured without. To report both, give two monitors
    names: ``HeadPatchingMonitor()`` and ``HeadPatchingMonitor(clamped=True, name="clamped")``.

    The clamp is a hook on ``hook_z``. Our own module's exact last-position form folds it instead, at no extra cost,
    but for a ``donor`` of which only a share is mixed in. Without the clamp, before and after it, training is bit for
    bit what it would be without this callback. It has no state: what it does follows from the step.

    A clamped head has no gradient under ``zero``, yet weight decay goes on to shrink its parameters, and momentum to
    move them. ``hold`` keeps them.

    Args:
        heads: Which, one or more: L0H2, L0H0+L0H2 or [[0, 2]], say.
        mode: What a head writes instead: zero; mean (of the batch, position by position); donor (what it writes on the
            donor's tokens). Or freeze: it writes as usual, and its parameters stay as they are, bit for bit.
        from_step: Optimizer steps that are done when the clamp begins.
        until_step: Optimizer steps that are done when it ends; null for the end of training.
        strength: Share of the head's output that is replaced.
        ramp_steps: Optimizer steps over which that share rises, linearly from 0.
        hold: Keep the heads' parameters too, bit for bit, against gradients, weight decay and momentum; freeze always
            does. Momentum is collected meanwhile, and acts when the clamp ends.
        validation: Clamp validation too.
        donor_tokens: A function from tokens [n, pos] to those of each row's donor (in YAML its import path); null asks
            the datamodule's method donor_tokens.
        model_attr: Where the LightningModule keeps the hooked model; dots go deeper.

    Raises:
        ValueError: an option is wrong.
        ContractError: as a fit starts, before its first step: the model lacks a head, carries no hooks or is compiled,
            or nobody says who the donors are. In the first clamped step: ``training_step`` passes the hooks by.
    """

    @within_limits
    def __init__(
        self,
        heads: str | list[str | tuple[int, int]] = "none",
        mode: Literal["zero", "mean", "donor", "freeze"] = "zero",
        from_step: NonNegativeInt = 0,
        until_step: PositiveInt | None = None,
        strength: Share = 1.0,
        ramp_steps: NonNegativeInt = 0,
        hold: bool = False,
        validation: bool = False,
        donor_tokens: DonorTokens | None = None,
        model_attr: str = "model",
    ) -> None:
        if until_step is not None and until_step <= from_step:
            raise ValueError(f"HeadClamp.until_step: {until_step} is not after from_step, which is {from_step}")
        if mode == "freeze" and (strength, ramp_steps, validation) != (1, 0, False):
            raise ValueError("HeadClamp.mode: freeze replaces nothing; leave out strength, ramp_steps and validation")
        if mode != "donor" and donor_tokens is not None:
            raise ValueError(f"HeadClamp.donor_tokens: the mode {mode} has no donor; allowed: null")
        try:
            self.heads = head_set(heads)
        except ValueError as error:
            raise ValueError(f"HeadClamp.heads: {error}") from None
        if not self.heads:
            raise ValueError('HeadClamp.heads: none is given; name one or more, such as "L0H2"')
        self.mode = mode
        self.from_step, self.until_step = from_step, until_step
        self.strength, self.ramp_steps = strength, ramp_steps
        self.holds = hold or mode == "freeze"
        self.validation = validation
        self.model_attr = model_attr
        self._given_donor_tokens = self._donor_tokens = imported("HeadClamp.donor_tokens", donor_tokens)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._undo: list[Callable[[], None]] = []

    def acts(self, step: int) -> bool:
        """Whether the training pass after ``step`` optimizer steps is clamped."""
        return self.from_step <= step and (self.until_step is None or step < self.until_step)

    def share(self, step: int) -> float:
        """The share of the heads' output that is replaced in that pass, 0..1."""
        if not self.acts(step) or self.mode == "freeze":
            return 0.0
        return self.strength * (min((step - self.from_step) / self.ramp_steps, 1.0) if self.ramp_steps else 1.0)

    def labelled(self, rows: Sequence[Mapping[str, Value]], step: int) -> list[dict[str, Value]]:
        """Rows measured with the clamp, each with one column more, ``clamped``: the heads that it replaces, or none."""
        heads = head_set_name(self.heads if self.share(step) else ())
        return [{**row, "clamped": heads} for row in rows]

    @contextmanager
    def active(self, model: Any, step: int, mean_of: Tensor | None = None) -> Iterator[ActiveClamp | None]:
        """Clamp what passes through the model inside, as in the training pass after ``step`` steps; None if it is not.

        Args:
            mean_of: tokens over which a mean is taken; None: each pass over its own.
        """
        share = self.share(step)
        if self.mode == "freeze" or not share:
            yield None
            return
        with clamped(model, Clamp(self.heads, self.mode, share, self._donor_tokens), mean_of) as active:
            yield active

    def check(self, module: LightningModule, datamodule: Any, callbacks: Sequence[Any]) -> None:
        """Make sure that the clamp would do what it says.

        Raises:
            ContractError: naming what is missing, together with the fix.
        """
        model = find_model(module, self.model_attr, "HeadClamp")
        if self.mode != "freeze" and sum(isinstance(c, HeadClamp) and c.mode != "freeze" for c in callbacks) > 1:
            raise ContractError("HeadClamp: two of them replace heads; name all heads in one")
        if name := _compiled(module, model):
            raise ContractError(f"HeadClamp: {name} is compiled, and passes hooks by; train without torch.compile")
        if self.mode == "donor":
            self._donor_tokens = self._given_donor_tokens or getattr(datamodule, "donor_tokens", None)
            if self._donor_tokens is None:
                raise ContractError(
                    "HeadClamp.donor_tokens: nobody says who the donor of an example is; pass a function from tokens "
                    "to the donors' tokens, or give the datamodule a method donor_tokens(tokens)"
                )
        try:
            require_heads(model, self.heads)
        except ValueError as error:
            raise ContractError(f"HeadClamp.heads: {error}") from None
        try:
            if self.holds:
                head_parameters(model, self.heads)
            if self.mode != "freeze":
                Clamp(self.heads, self.mode, donor_tokens=self._donor_tokens).check(model)
            if self.mode == "donor":
                self._check_donor(model.cfg.n_ctx)
        except ValueError as error:
            raise ContractError(f"HeadClamp.mode: {self.mode} is not possible: {error}") from None

    def _check_donor(self, n_pos: int) -> None:
        assert self._donor_tokens is not None  # `check`
        tokens = torch.zeros(2, n_pos, dtype=torch.long)
        donor = self._donor_tokens(tokens)
        if not isinstance(donor, Tensor) or donor.shape != tokens.shape:
            raise ValueError("donor_tokens does not give one row of tokens for each that it gets")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check before training starts that the clamp would act.

        Raises:
            ContractError: see :meth:`check`.
        """
        if stage == "fit":
            self.check(pl_module, trainer.datamodule, trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take hold of the steps that are to be clamped, and of the optimizers that are to leave parameters alone."""
        model = find_model(pl_module, self.model_attr, "HeadClamp")
        if self.mode != "freeze":
            for name in ("training_step", *(["validation_step"] if self.validation else [])):
                self._wrap(trainer, pl_module, model, name)
        if self.holds:
            for optimizer in trainer.optimizers:
                before = optimizer.register_step_pre_hook(lambda *_: self._keep(trainer, model))
                after = optimizer.register_step_post_hook(lambda *_: self._restore())
                self._undo += [before.remove, after.remove]
        elif any(group.get("weight_decay") for optimizer in trainer.optimizers for group in optimizer.param_groups):
            rank_zero_info(
                f"HeadClamp: weight decay goes on to shrink the parameters of {head_set_name(self.heads)} while they "
                "are clamped; hold=True keeps them"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of everything."""
        while self._undo:
            self._undo.pop()()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of everything."""
        self.on_fit_end(trainer, pl_module)

    def _wrap(self, trainer: Trainer, module: LightningModule, model: Any, name: str) -> None:
        """Clamp a method of the module: in Lightning's own hooks other callbacks would be clamped too."""
        method = getattr(module, name)

        @wraps(method)
        def clamped_method(*args: Any, **kwargs: Any) -> Any:
            with self.active(model, trainer.global_step) as active:
                result = method(*args, **kwargs)
            if active is not None and not active.was_used:
                raise ContractError(
                    f"HeadClamp: {name} of {type(module).__name__} passes the hooks of {self.model_attr} by, so that "
                    "nothing is clamped; call that model itself in it"
                )
            return result

        setattr(module, name, clamped_method)
        self._undo.append(lambda: delattr(module, name))

    def _keep(self, trainer: Trainer, model: Any) -> None:
        if self.acts(trainer.global_step):
            self._kept = [(view, view.clone()) for view in head_parameters(model, self.heads)]

    def _restore(self) -> None:
        for view, before in self._kept:
            view.copy_(before)
        self._kept = []


def clamp_to_measure(callbacks: Sequence[Any], model: Any, asker: str) -> HeadClamp:
    """The clamp of a Trainer, for a monitor that measures the model with it.

    Raises:
        ContractError: there is none, or it can't be measured; the message names the ``asker``.
    """
    clamps = [callback for callback in callbacks if isinstance(callback, HeadClamp) and callback.mode != "freeze"]
    if not clamps:
        raise ContractError(f"{asker}.clamped: no HeadClamp in this Trainer replaces a head; add one")
    if clamps[0].mode == "donor" and model.cfg.n_layers > 1:
        raise ContractError(
            f"{asker}.clamped: in a model of more than one layer, a patch would change the donor of the clamp too; "
            "clamp to zero or mean, or measure without"
        )
    return clamps[0]


def _compiled(module: LightningModule, model: Any) -> str | None:
    """The name of a compiled module on whose way the model's hooks lie, if there is one."""
    if getattr(module, "_compiler_ctx", None) is not None:  # torch.compile(module), as Lightning unpacks it
        return type(module).__name__
    parts = set(model.modules()) if isinstance(model, torch.nn.Module) else set()
    for candidate in (*module.modules(), *parts):
        compiled = "_orig_mod" in candidate._modules or candidate.__dict__.get("_compiled_call_impl") is not None
        if compiled and (candidate in parts or model in set(candidate.modules())):
            return type(candidate).__name__
    return None
