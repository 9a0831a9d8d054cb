"""Whether training can continue from a checkpoint with what has been configured."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule

SCHEDULED = {"lr", "momentum", "betas"}
"""Options of an optimizer that a schedule changes while it trains."""


def check_training_state(
    path: Path, checkpoint: Mapping[str, Any], module: LightningModule, callbacks: Sequence[Callback]
) -> None:
    """Make sure, before anything is written, that training can continue from a checkpoint with sound weights.

    Raises:
        ValueError: naming what is missing or foreign: the optimizer's state, the loops' progress, a callback's state.
    """
    try:
        (state,) = checkpoint["optimizer_states"]
        _check_optimizer(state, len(checkpoint["lr_schedulers"]), module, checkpoint["global_step"])
        loop = checkpoint["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
        done = loop["optimizer"]["step"]["total"]["completed"]
        if done != checkpoint["global_step"]:
            raise ValueError(f"{done} optimizer steps in its loops, {checkpoint['global_step']} as global_step")
        for callback in callbacks:
            if (own := checkpoint["callbacks"].get(callback.state_key)) is not None:
                copy.deepcopy(callback).load_state_dict(own)
        checkpoint["epoch"]
    except Exception as error:  # a stranger's file may hold anything in any place
        told = f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(f"ckpt_path: {path} can't be continued from; its training state is broken ({told})") from None


def _check_optimizer(state: Mapping[str, Any], n_schedules: int, module: LightningModule, step: int) -> None:
    """Compare the stored state of an optimizer with the optimizer that the module has.

    Args:
        n_schedules: How many schedules of the learning rate are stored.
        step: Optimizer steps that the state has behind it.

    Raises:
        ValueError: naming what differs, or is not finite.
    """
    configured: Any = module.configure_optimizers()
    optimizer, scheduled = (configured["optimizer"], 1) if isinstance(configured, dict) else (configured, 0)
    if n_schedules != scheduled:
        raise ValueError(f"it has {n_schedules} schedules of the learning rate instead of {scheduled}")
    (expected,), (group,) = optimizer.state_dict()["param_groups"], state["param_groups"]
    if foreign := sorted(group.keys() - expected.keys()):
        raise ValueError(f"{foreign[0]} is no option of {type(optimizer).__name__}")
    for key in sorted(group.keys() - {"params"} - (SCHEDULED if scheduled else set())):
        if _plain(group[key]) != _plain(expected[key]):
            raise ValueError(f"{key} of the optimizer is {group[key]} instead of {expected[key]}")
    parameters = optimizer.param_groups[0]["params"]
    if list(group["params"]) != list(range(len(parameters))):
        raise ValueError("the optimizer is for other parameters")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    averages = ("exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.Adam) else ()  # AdamW is an Adam
    for index, parameter in enumerate(parameters if step else ()):
        if not parameter.requires_grad:
            continue
        stored = state["state"][index] if averages else state["state"].get(index, {})
        tensors = {key: value for key, value in stored.items() if isinstance(value, torch.Tensor)}
        for key, value in (tensors | {average: stored[average] for average in averages}).items():
            if not value.isfinite().all() or (key in averages and value.shape != parameter.shape):
                raise ValueError(f"{key} of {names[id(parameter)]} has another shape or values that are not finite")


def require_same(stored: dict[str, Any], configured: dict[str, Any], group: str, ignore: frozenset[str]) -> None:
    """Compare the hyperparameters of a checkpoint with those asked for.

    Raises:
        ValueError: naming the first option of ``group`` ("model" or "data") that differs.
    """
    for name, value in configured.items():
        if name in ignore or name not in stored:
            continue
        if _plain(stored[name]) != _plain(value):
            raise ValueError(
                f"{group}.{name}: {_plain(value)} does not fit the checkpoint, which has {_plain(stored[name])}; "
                f"use the checkpoint's value, or start without --ckpt_path"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
