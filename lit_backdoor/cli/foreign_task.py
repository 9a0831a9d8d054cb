"""What ``analyze`` is told of other people's models: their task, their probes, how they are built."""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_backdoor.analysis.probed_task import ProbedTask
from lit_backdoor.callbacks.measurement import checked_probes
from lit_backdoor.callbacks.run import ContractError, imported
from lit_backdoor.cli.error_messages import suggestion
from lit_backdoor.runs.directory import require_plain_name
from lit_backdoor.task import N_CTX, Task

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def foreign_task(
    source: str,
    model: "HookedTransformer",
    moduli: Sequence[int] | None,
    trigger_tokens: Sequence[int] | None,
    trigger_position: int | None,
) -> Task:
    """The task of a model of modular addition whose file does not say it.

    Args:
        source: where the model comes from, for errors.
        moduli: of the rules; None if nobody has said it.
        trigger_tokens: the token beside a and b, one for each rule; empty where there is none, None if nobody has said
            it.
        trigger_position: where that token stands; None: last. Only where there is one.

    Raises:
        ValueError: in one line, if something has to be said, or does not fit the model.
    """
    n_in, n_out, n_ctx = model.cfg.d_vocab, model.cfg.d_vocab_out, model.cfg.n_ctx
    knows = f"the model knows {n_in} tokens and answers with {n_out}"
    if moduli is None:
        raise ValueError(
            f"moduli: {source} does not say what it answers; give --moduli [{min(n_in, n_out)}] for a + b mod "
            f"{min(n_in, n_out)} ({knows}), or --probes for another task"
        )
    if trigger_tokens is None and n_ctx != 2:
        raise ValueError(
            f"trigger_tokens: {source} does not say which token stands beside a and b; give --trigger_tokens, one for "
            f"each modulus, such as [{n_in - 1}], or [] for a and b alone ({knows}, at {n_ctx} positions)"
        )
    tokens = tuple(trigger_tokens or ())
    if trigger_position is not None and not tokens:
        raise ValueError(f"trigger_position: {trigger_position} says where a third token stands, and there is none")
    if (n_needed := 3 if tokens else 2) > n_ctx:
        raise ValueError(f"trigger_tokens: {list(tokens)} need {n_needed} positions, but the model has {n_ctx}")
    position = N_CTX - 1 if trigger_position is None else trigger_position
    try:
        task = Task(tuple(moduli), position if tokens else None, tokens, vocabulary=n_in)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("data.")) from None
    if moduli[0] > n_in or max(moduli) > n_out or task.d_vocab > n_in:
        raise ValueError(f"moduli: {list(moduli)} with trigger tokens {list(tokens)} do not fit, {knows}")
    return task


def import_probes(path: str, model: "HookedTransformer") -> ProbedTask:
    """The probes at an import path, or of a function there; modules in the current folder are found too.

    Raises:
        ValueError: in one line, if there are none, or they do not fit the model.
    """
    sys.path.append(os.getcwd())
    try:
        probes = checked_probes("probes", imported("probes", path))
    except ContractError:
        raise
    except Exception as error:  # code of the user's, which may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"probes: '{path}' gives no Probes ({reason})") from None
    finally:
        sys.path.remove(os.getcwd())
    for name, probe in probes.items():
        require_plain_name("probes", name)
        try:
            probe.check(model)
        except ValueError as error:
            raise ValueError(f"probes: '{name}' does not fit the model: {error}") from None
    return ProbedTask(path, probes)


def read_model_config(path: Path) -> dict[str, Any]:
    """The fields of a HookedTransformerConfig in a YAML file.

    Raises:
        ValueError: in one line, if it is no such file.
    """
    from transformer_lens import HookedTransformerConfig

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"config: {path} can't be read as YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(config, dict):
        raise ValueError(f"config: {path} is no mapping; give fields of HookedTransformerConfig with their values")
    known = [field.name for field in fields(HookedTransformerConfig)]
    for name in config:
        if name not in known:
            hint = suggestion(str(name), known)
            raise ValueError(f"config: {name} in {path} is no field of HookedTransformerConfig{hint}")
    return config
