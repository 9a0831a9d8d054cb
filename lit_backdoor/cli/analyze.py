"""``analyze``: one checkpoint, taken apart."""

from jsonargparse import ArgumentParser, Namespace

from lit_backdoor.analysis.files import write_analysis
from lit_backdoor.analysis.measure import analyze
from lit_backdoor.analysis.terminal import analysis_summary
from lit_backdoor.cli.parser import OneLineParser, add_threads_option, checking_options, given_path
from lit_backdoor.functional.row_threads import set_row_threads
from lit_backdoor.pretrained import open_pretrained, pretrained_names
from lit_backdoor.runs.checkpoints import load_model
from lit_backdoor.runs.directory import require_new_or_empty
from lit_backdoor.task import split_examples

HELP = "Take one model apart: attribution, patching of heads, paths and neurons, Shapley values, attention, waves."


def parser() -> ArgumentParser:
    """The options of ``analyze``."""
    help_shipped = f"Instead: weights that ship with the package; {', '.join(pretrained_names())}."
    options = OneLineParser(description=HELP, prog="lit-backdoor analyze")
    options.add_argument("--ckpt_path", type=str | None, help="Checkpoint of a run; the task is in it.")
    options.add_argument("--pretrained", type=str | None, help=help_shipped)
    options.add_argument("--output_dir", type=str, required=True, help="New or empty folder for tables and figures.")
    add_threads_option(options)
    return options


def run(options: Namespace) -> int:
    """Analyze one model, write_analysis the tables and figures, print what matters."""
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
    analysis = analyze(stored.model, stored.task, stored.step, train)
    write_analysis(analysis, output_dir)
    print(analysis_summary(analysis, output_dir))
    return 0
