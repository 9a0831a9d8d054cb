"""``analyze``: one model, taken apart, from a run, from the package or from elsewhere."""

import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from lit_backdoor.analysis.files import was_stopped, write_analysis, write_removals
from lit_backdoor.analysis.measure import Analysis, analyze
from lit_backdoor.analysis.probed_task import ProbedTask, probed_addition
from lit_backdoor.analysis.removal import (
    backdoor_examples,
    chosen_removals,
    export,
    measure_removals,
    require_in_weights,
)
from lit_backdoor.analysis.terminal import analysis_summary
from lit_backdoor.cli.foreign_task import foreign_task, import_probes, read_model_config
from lit_backdoor.cli.parser import OneLineParser, add_threads_option, checking_options, given_path
from lit_backdoor.functional import BackdoorExamples, Removal
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.limits import NonNegativeInt, PositiveInt
from lit_backdoor.pretrained import open_pretrained, pretrained_names
from lit_backdoor.pretrained.foreign import open_weights
from lit_backdoor.pretrained.layouts import Layout
from lit_backdoor.runs.checkpoints import StoredModel, load_model
from lit_backdoor.runs.directory import as_typed, locked, require_new_or_empty, require_writable
from lit_backdoor.runs.file_names import REMOVAL
from lit_backdoor.runs.weights import weights_digest
from lit_backdoor.task import split_examples

HELP = "Take one model apart: attribution, patched heads, paths and neurons, Shapley values, attention, frequencies."
SOURCES = ("ckpt_path", "pretrained", "weights")
TASK_OPTIONS = ("moduli", "trigger_tokens", "trigger_position")
DECIDE_NOTHING = ("output_dir", "export", "threads")
"""Options that do not change what is measured. With the others the same, a stopped ``--removal`` goes on."""


def parser() -> ArgumentParser:
    """The options of ``analyze``."""
    help_shipped = (
        f"Instead: weights that ship with the package, {', '.join(pretrained_names())}, or the folder of an --export."
    )
    help_weights = "Instead: weights from elsewhere, a .pt, .pth or .safetensors file that holds a state dict."
    help_layout = f"How --weights are stored: {', '.join(get_args(Layout))} (see docs/weights.md)."
    help_moduli = "What --weights answer: [113] is a + b mod 113, [113, 7] has a trigger that switches to mod 7."
    help_tokens = (
        "The token beside a and b, one for each modulus, such as [113] for '='; [] if there are a and b alone."
    )
    help_config = "YAML with fields of HookedTransformerConfig, for --weights whose shapes do not say enough."
    help_probes = "For another task: import path of the Probes, or of a function that returns them; my_task.probes."
    help_removal = (
        "Ways to remove the backdoor, measured too: all (minutes), or names joined by commas, such as "
        "mean:L0H2,donor:trigger>L0H2.Q,reset:trigger,prune:0.5,finetune:100."
    )
    help_export = "New or empty folder for the weights of the model without the backdoor, by the one --removal given."
    help_output = (
        "New or empty folder for tables and figures, or one in which the same command with --removal was stopped."
    )
    options = OneLineParser(description=HELP, prog="lit-backdoor analyze")
    options.add_argument("--ckpt_path", type=str | None, help="Checkpoint of a run; the task is in it.")
    options.add_argument("--pretrained", type=str | None, help=help_shipped)
    options.add_argument("--weights", type=str | None, help=help_weights)
    options.add_argument("--layout", type=Layout, default="auto", help=help_layout)
    options.add_argument("--moduli", type=list[PositiveInt] | None, help=help_moduli)
    options.add_argument("--trigger_tokens", type=list[NonNegativeInt] | None, help=help_tokens)
    options.add_argument("--trigger_position", type=NonNegativeInt | None, help="Where that token stands; null: last.")
    options.add_argument("--config", type=str | None, help=help_config)
    options.add_argument("--probes", type=str | None, help=help_probes)
    options.add_argument("--output_dir", type=str, required=True, help=help_output)
    options.add_argument("--removal", type=str | None, default=None, help=help_removal)
    options.add_argument("--export", type=str | None, default=None, help=help_export)
    add_threads_option(options)
    return options


def run(options: Namespace) -> int:
    """Analyze one model, write the tables and figures, print what matters."""
    set_row_threads(options.threads)
    with checking_options():
        output_dir = given_path("output_dir", options.output_dir)
        sources = [name for name in SOURCES if options[name] is not None]
        if len(sources) != 1:
            raise ValueError(f"{', '.join(SOURCES)}: give one of the three")
        require_writable(output_dir)
        stored = _open(sources[0], options)
        task = _task(f"{sources[0]} {options[sources[0]]}", stored, options)
        removals, examples = _removals(options, stored, task)
        export_dir = _export_dir(options, stored, removals, examples)
        deciding = {name: value for name, value in options.as_dict().items() if name not in DECIDE_NOTHING}
        sha256 = weights_digest(stored.model)
        goes_on = bool(removals) and was_stopped(output_dir, sha256, deciding)
        if not goes_on:
            require_new_or_empty(output_dir)
    analysis = analyze(stored.model, task, stored.step)
    with checking_options():  # the folders are looked at again
        if not goes_on:
            require_new_or_empty(output_dir)
        origin = {"source": sources[0], "name": options[sources[0]], "seed": stored.seed, "sha256": sha256}
        write_analysis(analysis, output_dir, origin | dict(stored.reading), deciding)
        if removals:
            try:
                with locked(output_dir):
                    analysis = _with_removals(analysis, stored, examples, removals, output_dir)
                    if export_dir is not None:
                        export(stored, examples, removals[0], export_dir)
                    write_removals(analysis, output_dir)  # last: with its figure the command is done
            except KeyboardInterrupt:
                print(f"\nstopped; the same command goes on with {as_typed(output_dir)}", file=sys.stderr)
                return 128 + signal.SIGINT
    print("\n".join([*_read_how(stored.reading), analysis_summary(analysis, output_dir)]))
    return 0


def _with_removals(
    analysis: Analysis,
    stored: StoredModel,
    examples: Mapping[str, BackdoorExamples],
    removals: Sequence[Removal],
    output_dir: Path,
) -> Analysis:
    """Measure what has not been measured before, and keep it in its table.

    Raises:
        ValueError: the table in the folder is damaged.
    """
    watch = partial(tqdm, desc="removal", file=sys.stderr, disable=not sys.stderr.isatty())
    results = measure_removals(stored.model, examples, removals, output_dir / REMOVAL, stored.step, watch)
    return replace(analysis, removal=results)


def _removals(
    options: Namespace, stored: StoredModel, task: ProbedTask
) -> tuple[list[Removal], dict[str, BackdoorExamples]]:
    """What is to be measured, and on which examples; nothing unless asked for.

    Raises:
        ValueError: a name is none, or the model has no such backdoor.
    """
    if options.removal is None:
        return [], {}
    try:
        examples = backdoor_examples(task)
        return chosen_removals(options.removal, stored.model, examples), examples
    except ValueError as error:
        raise ValueError(f"removal: {error}") from None


def _export_dir(
    options: Namespace, stored: StoredModel, removals: Sequence[Removal], examples: Mapping[str, BackdoorExamples]
) -> Path | None:
    """Where to write the model without its backdoor; None unless asked for.

    Raises:
        ValueError: it can't be written, there or at all.
    """
    if options.export is None:
        return None
    folder = given_path("export", options.export)
    try:
        require_in_weights(stored.model, examples, removals)
    except ValueError as error:
        raise ValueError(f"export: {error}") from None
    require_new_or_empty(folder, "export")
    own, other = folder.resolve(), Path(options.output_dir).resolve()
    if own == other or other in own.parents or own in other.parents:
        raise ValueError(
            f"export: {folder} and output_dir {options.output_dir} are one folder, or one lies in the other"
        )
    return folder


def _read_how(reading: Mapping[str, Any]) -> Iterator[str]:
    """What to know of a file from elsewhere: what was left out of it, and what was assumed."""
    if left_out := reading.get("left_out"):
        yield f"left out of the file: {', '.join(left_out)}"
    for name, value in reading.get("assumed", {}).items():
        yield f"the file does not say {name}: taken as {value}; --config can say another"


def _open(source: str, options: Namespace) -> StoredModel:
    """The model, wherever it is.

    Raises:
        ValueError: it can't be read.
    """
    if source == "pretrained":
        stored = open_pretrained(options.pretrained)
    elif source == "ckpt_path" and options.probes is None:
        stored = load_model(given_path(source, options.ckpt_path))
    else:
        config = {} if options.config is None else read_model_config(given_path("config", options.config))
        path = given_path(source, options[source])
        stored = open_weights(path, source, options.layout, config, of_pairs=options.probes is None)
    given = [name for name, default in {"config": None, "layout": "auto"}.items() if options[name] != default]
    if given and not stored.reading:
        raise ValueError(f"{given[0]}: {options[source]} says itself how its model is built; leave it out")
    return stored


def _task(source: str, stored: StoredModel, options: Namespace) -> ProbedTask:
    """What to ask the model: the given probes, else the task that it was trained on.

    Raises:
        ValueError: nobody has said what that is, or it does not fit the model.
    """
    given = [name for name in TASK_OPTIONS if options[name] is not None]
    if given and (stored.task is not None or options.probes is not None):
        says = f"{source} says itself" if options.probes is None else "the probes say"
        raise ValueError(f"{given[0]}: {says} what to ask; leave it out")
    if options.probes is not None:
        return import_probes(options.probes, stored.model)
    if stored.task is not None:
        train = None if stored.split is None else split_examples(stored.task, **stored.split)[0]
        return probed_addition(stored.task, train)
    task = foreign_task(source, stored.model, options.moduli, options.trigger_tokens, options.trigger_position)
    return probed_addition(task, None)
