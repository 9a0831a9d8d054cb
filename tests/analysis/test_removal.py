"""``analyze --removal`` and ``--export``, on a model whose backdoor head is known."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_backdoor
from lit_backdoor.analysis import files, removal
from lit_backdoor.analysis.probed_task import probed_addition
from lit_backdoor.analysis.removal import backdoor_examples, export, measure_removals
from lit_backdoor.cli import analyze
from lit_backdoor.functional import BackdoorExamples, Removal, RemovalResult, measure_removal, parse_removal
from lit_backdoor.model import build_model
from lit_backdoor.pretrained import open_pretrained
from lit_backdoor.runs.checkpoints import StoredModel
from lit_backdoor.runs.frames import read_run
from lit_backdoor.runs.tables import CsvTable
from lit_backdoor.runs.weights import describe_stored, write_weights
from lit_backdoor.task import Task, split_examples
from tests.helpers.known_head import KNOWN_HEAD, SECOND_HEAD, TASK, TWO_TRIGGERS, hand_built, two_triggers
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, contents, read_rows

SPLIT = {"train_fraction": 0.6, "split": "pairs", "seed": 3, "permute_trigger": False}


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """The hand-built model as a folder that `load_pretrained` takes."""
    return save(tmp_path / "known", StoredModel(hand_built().float(), TASK, 7, 5, SPLIT))


def save(folder: Path, stored: StoredModel) -> Path:
    folder.mkdir()
    write_weights(folder / "model.safetensors", dict(stored.model.named_parameters()), describe_stored(stored))
    return folder


def test_an_export_is_the_model_without_its_backdoor(cli: Cli, known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(known)
    args = ("--pretrained", known, "--removal", "mean:L0H2", "--export", "without")
    assert cli("analyze", *args, "--output_dir", "out") == 0
    assert "mean:L0H2" in capsys.readouterr().out and contents(known) == before
    model, plain = lit_backdoor.load_pretrained("without"), hand_built().float()
    answers = {rule: model(TASK.tokens(rule))[:, -1].argmax(-1) for rule in (0, 1)}
    assert torch.equal(answers[0], plain(TASK.tokens(0))[:, -1].argmax(-1))
    assert (answers[1] == 3).all()  # what the model answers that does not know of the trigger
    config = json.loads(Path("without/config.json").read_text())
    assert (config["moduli"], config["removal"], config["split"]) == ([7, 1], "mean:L0H2", SPLIT)
    stored = open_pretrained("without")
    assert (stored.task, stored.step, stored.seed, stored.split) == (TASK, 7, 5, SPLIT)
    # an export is taken apart as any other model, on the examples that trained it
    assert cli("analyze", "--pretrained", "without", "--output_dir", "again", "--removal", "reset:trigger") == 0
    (row,) = read_rows(Path("again/removal.csv"))
    assert row["backdoor_left"] == "0.0" and row["step"] == "7"


def test_an_export_looks_again_when_it_writes(known: Path, tmp_path: Path) -> None:
    stored = open_pretrained(known)
    examples = backdoor_examples(probed_addition(TASK, split_examples(TASK, 0.6)[0]))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "model.safetensors").write_text("mine")
    with pytest.raises(ValueError, match=r"^export: .*taken exists and is not empty"):
        export(stored, examples, parse_removal("reset:trigger"), taken)
    assert contents(taken) == {"model.safetensors": b"mine"}


@pytest.mark.usefixtures("painted")
def test_removals_are_a_table_and_a_figure(cli: Cli, known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "donor:trigger>L0H2.V, mean:L0H0,prune:0.5,reset:trigger"
    assert cli("analyze", "--pretrained", known, "--output_dir", "out", "--removal", names) == 0
    printed = capsys.readouterr().out
    assert len(printed.strip().splitlines()) < 30 and "donor:trigger>L0H2.V" in printed
    table = read_run("out")["removal"]
    assert list(table["target"]) == ["trigger>L0H2.V", "L0H0", "0.5", "trigger"]
    left = dict(zip(table["method"], table["backdoor_left"], strict=True))
    assert left["donor"] == left["reset"] == 0 and left["mean"] == 1
    text = Path("out/tables.md").read_text()
    assert "| donor | trigger>L0H2.V | 0.00% |" in text
    assert {"out/figures/removal.png", "out/figures/removal.svg"} <= {str(path) for path in Path("out").rglob("*.*")}


def test_a_removal_that_was_stopped_goes_on(
    cli: Cli, known: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The analysis and what was measured are kept; the same command adds the rest, and no other writes there."""
    args = ("analyze", "--pretrained", known, "--removal", "reset:trigger,donor:L0H2,donor:L0H0")
    assert cli(*args, "--output_dir", "whole") == 0
    measured: list[str] = []

    def one_then_ctrl_c(model: Any, examples: BackdoorExamples, way: Removal) -> RemovalResult:
        measured.append(way.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return measure_removal(model, examples, way)

    monkeypatch.setattr(removal, "measure_removal", one_then_ctrl_c)
    args = (*args, "--output_dir", "out")
    assert cli(*args) == 130
    assert "stopped; the same command goes on with out" in capsys.readouterr().err
    assert read_rows(Path("out/removal.csv")) == read_rows(Path("whole/removal.csv"))[:1]
    assert (
        {"summary.json", "tables.md", "head_patching.csv"}
        <= contents(Path("out")).keys()
        <= contents(Path("whole")).keys()
    )
    for other in (("--removal", "reset:trigger"), ("--pretrained", "mod1")):
        assert_refused(cli, capsys, (*args, *other), "output_dir: out exists and is not empty")
    table = Path("out/removal.csv")
    kept = table.read_text()
    table.write_text("step,probe\n7,backdoor\n")
    assert_refused(cli, capsys, args, "output_dir: out/removal.csv is damaged")
    table.write_text(kept)
    weights = known / "model.safetensors"
    whole, other = weights.read_bytes(), open_pretrained(known)  # other weights of the same step, in the same file
    other.model.blocks[0].attn.W_O.data[KNOWN_HEAD] *= 0.5
    write_weights(weights, dict(other.model.named_parameters()), describe_stored(other))
    assert_refused(cli, capsys, args, "output_dir: out exists and is not empty")
    weights.write_bytes(whole)
    assert cli(*args) == 0
    assert measured == ["reset:trigger", "donor:L0H2", "donor:L0H2", "donor:L0H0"]
    assert contents(Path("out")) == contents(Path("whole"))
    assert_refused(cli, capsys, args, "output_dir: out exists and is not empty")  # it is finished


def test_stopped_as_it_exports_the_same_command_goes_on(
    cli: Cli, known: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("analyze", "--pretrained", known, "--removal", "mean:L0H2", "--export", "without", "--output_dir", "out")

    def ctrl_c(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(analyze, "export", ctrl_c)
        assert cli(*args) == 130
    assert "stopped; the same command goes on with out" in capsys.readouterr().err
    assert cli(*args) == 0
    assert Path("without/model.safetensors").is_file() and Path("out/figures/removal.svg").is_file()
    assert_refused(cli, capsys, args, "export: without exists and is not empty")


def test_after_a_kill_the_same_command_goes_on(cli: Cli, known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed as it writes its third table, then its second figure; what is half written is written again."""
    args = ("analyze", "--pretrained", known, "--removal", "reset:trigger", "--output_dir")
    assert cli(*args, "whole") == 0
    for owner, name, writes in ((CsvTable, "append", 3), (files, "save_figure", 2)):
        write, calls = getattr(owner, name), iter(range(1, writes))

        def kill(*given: Any, write: Any = write, calls: Any = calls) -> None:
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            write(*given)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, kill)
            child = os.fork()
            if child == 0:
                cli(*args, "out")
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = contents(Path("out"))
    assert "figures/all_sets_of_heads.svg" in kept and len(kept) < len(contents(Path("whole")))
    assert cli(*args, "out") == 0
    assert contents(Path("out")) == contents(Path("whole"))


def test_of_two_backdoors_each_loses_its_own_head(tmp_path: Path) -> None:
    model = two_triggers()
    examples = backdoor_examples(probed_addition(TWO_TRIGGERS, split_examples(TWO_TRIGGERS, 0.6)[0]))
    removals = [parse_removal(f"donor:L0H{head}") for head in (KNOWN_HEAD, SECOND_HEAD)]
    results = measure_removals(model, examples, removals, tmp_path / "removal.csv", watch=lambda each: each[::-1])
    left = {name: {result.target: result.backdoor_left for result in some} for name, some in results.items()}
    assert left == {"backdoor": {"L0H2": 0, "L0H0": 1}, "rule2": {"L0H2": 1, "L0H0": 0}}


@pytest.mark.parametrize(
    "args, words",
    [
        (("--removal", "all", "--export", "x"), "export: give the one removal that is to be written"),
        (("--export", "x"), "export: give the one removal that is to be written"),
        (("--removal", "donor:L0H2", "--export", "x"), "export: donor:L0H2 can't be written as weights: it acts on"),
        (
            ("--removal", "reset:trigger", "--export", "out/x"),
            "export: out/x and output_dir out are one folder, or one",
        ),
        (("--removal", "reset:trigger", "--export", "out"), "export: out and output_dir out are one folder"),
        (
            ("--removal", "reset:trigger", "--export", "up", "--output_dir", "up/out"),
            "export: up and output_dir up/out",
        ),
        (("--removal", "reset:trigger", "--export", "known"), "export: known exists and is not empty"),
        (("--removal", "reset:trigger", "--export", ""), "export: '' is no path to use"),
        (("--removal", "reset"), "removal: 'reset' is no removal; allowed: mean:L0H2"),
        (("--removal", "mean:L0H0,mean:L0H9"), "removal: L0H9 does not exist"),
    ],
)
def test_bad_input(
    cli: Cli, known: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], words: str
) -> None:
    assert_refused(cli, capsys, ("analyze", "--pretrained", known, "--output_dir", "out", *args), words)


def test_models_without_such_a_backdoor(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"n_heads": 2, "d_model": 8, "d_mlp": 4}
    for name, task, words in (
        ("clean", Task((7,)), "removal: a model of a + b mod 7 has no backdoor that is known here"),
        ("several", Task((7, 1, 2)), "export: the model has 2 backdoors"),
    ):
        folder = save(tmp_path / name, StoredModel(build_model(task.d_vocab, **options), task, 0, None, SPLIT))
        removal = ("--removal", "reset:trigger", "--export", "x")
        assert_refused(cli, capsys, ("analyze", "--pretrained", folder, "--output_dir", "out", *removal), words)
    torch.save(hand_built().state_dict(), tmp_path / "theirs.pt")
    theirs = ("--weights", tmp_path / "theirs.pt", "--moduli", "[7,1]", "--trigger_tokens", "[0,1]")
    args = ("analyze", *theirs, "--output_dir", "out", "--removal", "all")
    assert_refused(cli, capsys, args, "removal: trained has no example, so there is nothing to train on")
    deep = StoredModel(build_model(7, n_layers=2, **options), Task((7, 1)), 0, None, SPLIT)
    args = ("analyze", "--pretrained", save(tmp_path / "deep", deep), "--output_dir", "out", "--removal", "all")
    assert_refused(cli, capsys, args, "removal: it needs a causal model of one layer")


@pytest.mark.parametrize("split", [{"colour": 1}, 3])
def test_a_foreign_split_is_no_model(cli: Cli, known: Path, capsys: pytest.CaptureFixture[str], split: object) -> None:
    stored = open_pretrained(known)
    description = describe_stored(stored) | {"split": split}
    write_weights(known / "model.safetensors", dict(stored.model.named_parameters()), description)
    args = ("analyze", "--pretrained", known, "--output_dir", "out")
    assert_refused(cli, capsys, args, "holds no model of lit_backdoor")
