"""``analyze``: one checkpoint, taken apart."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from lit_backdoor.analysis.files import write_analysis
from lit_backdoor.analysis.measure import analyze
from lit_backdoor.analysis.removal import (
    backdoor_examples,
    chosen_removals,
    export,
    measure_removals,
    require_in_weights,
)
from lit_backdoor.analysis.terminal import analysis_summary
from lit_backdoor.cli.parser import OneLineParser, add_threads_option, checking_options, given_path
from lit_backdoor.functional import BackdoorExamples, Removal
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.pretrained import open_pretrained, pretrained_names
from lit_backdoor.runs.checkpoints import StoredModel, load_model
from lit_backdoor.runs.directory import require_new_or_empty
from lit_backdoor.task import Examples, split_examples

HELP = "Take one model apart: attribution, patching of heads, paths and neurons, Shapley values, attention, waves."


def parser() -> ArgumentParser:
    """The options of ``analyze``."""
    help_shipped = (
        f"Instead: weights that ship with the package; {', '.join(pretrained_names())}; or an export's folder."
    )
    help_removal = (
        "Ways to remove the backdoor, measured too: all (minutes), or names joined by commas, such as "
        "mean:L0H2,donor:trigger>L0H2.Q,reset:trigger,prune:0.5,finetune:100."
    )
    help_export = "New or empty folder for the weights of the model without the backdoor, by the one --removal given."
    options = OneLineParser(description=HELP, prog="lit-backdoor analyze")
    options.add_argument("--ckpt_path", type=str | None, help="Checkpoint of a run; the task is in it.")
    options.add_argument("--pretrained", type=str | None, help=help_shipped)
    options.add_argument("--output_dir", type=str, required=True, help="New or empty folder for tables and figures.")
    options.add_argument("--removal", type=str | None, default=None, help=help_removal)
    options.add_argument("--export", type=str | None, default=None, help=help_export)
    add_threads_option(options)
    return options


def run(options: Namespace) -> int:
    """Analyze one model, write the tables and figures, print what matters."""
    set_row_threads(options.threads)
    with checking_options():
        output_dir = given_path("output_dir", options.output_dir)
        if (options.ckpt_path is None) == (options.pretrained is None):
            raise ValueError("ckpt_path, pretrained: give one of the two")
        require_new_or_empty(output_dir)
        if options.pretrained is not None:
            stored = open_pretrained(options.pretrained)
        else:
            stored = load_model(given_path("ckpt_path", options.ckpt_path))
        assert stored.task is not None  # every model that ships has one of our tasks, and so has a checkpoint
        train, _ = split_examples(stored.task, **stored.split)
        removals, examples = _removals(options, stored, train)
        export_dir = _export_dir(options, stored, removals, examples)
    analysis = analyze(stored.model, stored.task, stored.step, train)
    if removals:
        watch = partial(tqdm, desc="removal", file=sys.stderr, disable=not sys.stderr.isatty())
        analysis = replace(analysis, removal=measure_removals(stored.model, examples, removals, watch))
    write_analysis(analysis, output_dir)
    if export_dir is not None:
        export(stored, examples, removals[0], export_dir)
    print(analysis_summary(analysis, output_dir))
    return 0


def _removals(
    options: Namespace, stored: StoredModel, train: Examples
) -> tuple[list[Removal], dict[str, BackdoorExamples]]:
    """What is to be measured, and on which examples; nothing unless asked for."""
    if options.removal is None:
        return [], {}
    assert stored.task is not None
    try:
        examples = backdoor_examples(stored.task, train)
        return chosen_removals(options.removal, stored.model, examples), examples
    except ValueError as error:
        raise ValueError(f"removal: {error}") from None


def _export_dir(
    options: Namespace, stored: StoredModel, removals: Sequence[Removal], examples: Mapping[str, BackdoorExamples]
) -> Path | None:
    if options.export is None:
        return None
    folder = given_path("export", options.export)
    try:
        require_in_weights(stored.model, examples, removals)
        require_new_or_empty(folder)
        output_dir = Path(options.output_dir).resolve()
        if folder.resolve() == output_dir or output_dir in folder.resolve().parents:
            raise ValueError("it lies in output_dir; choose another")
    except ValueError as error:
        raise ValueError(f"export: {str(error).removeprefix('output_dir: ')}") from None
    return folder
