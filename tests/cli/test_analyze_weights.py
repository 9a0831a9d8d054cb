"""``analyze --weights``: other people's models through the command line, of addition and of any other task."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lit_backdoor.callbacks import HeadPatchingMonitor, RunCheckpoint, WeightCheckpoint
from lit_backdoor.functional import Probe
from lit_backdoor.pretrained import FOLDER
from lit_backdoor.runs.weights import read_safetensors
from tests.helpers import by_hand
from tests.helpers.adding import adding_weights, as_nanda
from tests.helpers.copy_task import CopyDataWithProbes, CopyModule, train
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, contents, read_rows, train_run
from tests.helpers.tiny_models import make_model

PROBES = "tests.helpers.copy_task.copy_probes"


def summary() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path("out/summary.json").read_text())
    return read


def test_an_old_file_with_an_equals_sign(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """The older layout under a key, losses beside it, a mask; the vocabulary is larger than the answers."""
    weights = as_nanda(adding_weights(5, n_pos=3, vocabulary=6))
    weights["blocks.0.attn.mask"] = torch.ones(3, 3).tril()
    torch.save({"model": weights, "train_losses": [1.0, 0.5]}, "old.pth")
    args = ("--weights", "old.pth", "--moduli", "[5]", "--trigger_tokens", "[5]", "--output_dir", "out")
    assert cli("analyze", *args) == 0
    printed = capsys.readouterr().out
    assert "left out of the file: train_losses" in printed and "act_fn: taken as relu" in printed
    assert "model of a + b mod 5, step unknown" in printed
    found = summary()
    assert (found["accuracy"], found["n_examples"], found["step"]) == ({"benign": 1.0}, 25, None)
    shape = {name: found["model"][name] for name in ("n_layers", "n_heads", "n_ctx", "d_vocab", "d_vocab_out")}
    assert shape == {"n_layers": 1, "n_heads": 2, "n_ctx": 3, "d_vocab": 6, "d_vocab_out": 5}
    assert re.fullmatch(r"[0-9a-f]{64}", found["weights"]["sha256"])
    assert found["weights"] == {
        "source": "weights", "name": "old.pth", "seed": None, "sha256": found["weights"]["sha256"],
        "layout": "nanda", "left_out": ["train_losses"], "assumed": {"act_fn": "relu"},
    }  # fmt: skip
    # there is no backdoor: nothing is said of one, of a trigger, or of what sets two rules apart
    text = Path("out/tables.md").read_text()
    files = set(contents(Path("out")))
    assert "ackdoor" not in text + printed and "trigger" not in text and "# Specificity" not in text
    assert not files & {"head_specificity.csv", "figures/specificity.png", "figures/attention_shift.png"}
    assert {"figures/figure_4_attribution_benign.png", "figures/circuit_benign.png", "figures/neurons.png"} <= files
    # which examples trained, nobody knows
    rows = read_rows(Path("out/progress_measures.csv"))
    assert {row["train_loss"] for row in rows} == {row["gradient_norm"] for row in rows} == {"nan"}


def test_two_tokens_and_no_mask(cli: Cli) -> None:
    config = Path("model.yaml")
    config.write_text("attention_dir: bidirectional\n")
    save_file(adding_weights(4, n_pos=2, vocabulary=4), "pairs.safetensors")
    args = ("--weights", "pairs.safetensors", "--moduli", "[4]", "--config", config, "--output_dir", "out")
    assert cli("analyze", *args, "--layout", "transformer_lens") == 0
    found = summary()
    assert (found["accuracy"], found["n_examples"]) == ({"benign": 1.0}, 16)
    assert found["model"]["attention_dir"] == "bidirectional"


def test_two_rules_and_triggers_outside_the_numbers(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """The model does not know the trigger: of mod 2 it gives what a + b mod 5 happens to have right."""
    torch.save({"state_dict": adding_weights(5, n_pos=3, vocabulary=9)}, "two.pt")
    args = ("--weights", "two.pt", "--moduli", "[5, 2]", "--trigger_tokens", "[6, 8]", "--output_dir", "out")
    assert cli("analyze", *args) == 0
    right = sum((a + b) % 5 == (a + b) % 2 for a in range(5) for b in range(5))
    assert summary()["accuracy"] == {"benign": 1.0, "backdoor": right / 25}
    assert "figures/figure_2_attribution_backdoor.png" in contents(Path("out"))
    said = "the model does not show backdoor, or shows it in the benign run too: nothing is said to carry it"
    printed = capsys.readouterr().out
    assert said in printed and "costs backdoor most" not in printed and "halve backdoor" not in printed
    assert f"backdoor: {said}." in Path("out/tables.md").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ("moduli: weights w.pt does not say", "--moduli [5]", "knows 6 tokens", "answers with 5", "--probes")),
        (("--moduli", "[5]"), ("trigger_tokens: weights w.pt does not say", "--trigger_tokens", "[5]", "or []")),
        (("--moduli", "[6]", "--trigger_tokens", "[5]"), ("moduli: [6] with trigger tokens [5] do not fit",)),
        (("--moduli", "[5]", "--trigger_tokens", "[6]"), ("trigger_tokens: [6]", "from 0 to 5")),
        (("--moduli", "[5,2]", "--trigger_tokens", "[]"), ("trigger_position", "there is one rule")),
        (
            ("--moduli", "[5]", "--trigger_tokens", "[]", "--trigger_position", "0"),
            ("trigger_position: 0 says where a third token stands, and there is none",),
        ),
        (("--moduli", "[5]", "--trigger_tokens", "[5,4]"), ("trigger_tokens: [5, 4]",)),
        (("--moduli", "[5]", "--trigger_tokens", "[5]", "--trigger_position", "3"), ("trigger_position: 3",)),
        (("--layout", "nanda"), ("layout: nanda is not how it is stored",)),
        (("--layout", "gpt"), ("layout: 'gpt'", "auto, transformer_lens, nanda")),
        (("--moduli", "five"), ("moduli: 'five'",)),
        (("--pretrained", "mod1"), ("ckpt_path, pretrained, weights: give one of the three",)),
        (("--config", "missing.yaml"), ("config: missing.yaml can't be read",)),
        (("--config", "list.yaml"), ("config: list.yaml is no mapping",)),
        (("--config", "typo.yaml"), ("config: n_head in typo.yaml is no field", "did you mean n_heads?")),
        (("--probes", PROBES), ("config: w.pt does not say attention_dir and act_fn",)),
        (("--config", "all.yaml", "--probes", PROBES), ("probes: 'copy' does not fit the model", "contains 6")),
        (("--config", "all.yaml", "--probes", "no.such"), ("probes: 'no.such' can't be imported: No module",)),
        (("--config", "all.yaml", "--probes", "own.broken"), ("'own.broken' gives no Probes (ZeroDivisionError",)),
        (("--config", "all.yaml", "--probes", "own.three"), ("probes: 3 is no mapping of names to Probes",)),
        (("--config", "all.yaml", "--probes", "own.path"), ("probes: '../up' is no plain name",)),
        (("--config", "all.yaml", "--probes", "own.number"), ("probes: 1 is no name; give each Probe a text",)),
        (("--probes", PROBES, "--moduli", "[5]", "--config", "all.yaml"), ("moduli: the probes say what to ask",)),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(
    cli: Cli,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    torch.save(adding_weights(5, n_pos=3, vocabulary=6), "w.pt")
    Path("list.yaml").write_text("- n_heads\n")
    Path("typo.yaml").write_text("n_head: 2\n")
    Path("all.yaml").write_text("attention_dir: causal\nact_fn: relu\n")
    Path("own.py").write_text(
        "from tests.helpers.tiny_models import make_probe\nthree = 3\npath = {'../up': make_probe(vocab=5)}\n"
        "number = {1: make_probe(vocab=5)}\n"
        "def broken():\n    return 1 / 0\n"
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert_refused(cli, capsys, ("analyze", "--weights", "w.pt", "--output_dir", "out", *args), *words)


def test_files_that_say_themselves_what_they_are(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.yaml").write_text("act_fn: relu\n")
    for source in (("--weights", FOLDER / "mod1.safetensors"), ("--pretrained", "mod1")):
        for option, value in (
            ("moduli", "[113]"),
            ("trigger_position", 0),
            ("config", "model.yaml"),
            ("layout", "nanda"),
        ):
            args = ("analyze", *source, f"--{option}", value, "--output_dir", "out")
            assert_refused(cli, capsys, args, f"{option}: ", "says itself")


def test_kept_weights_say_which_examples_trained(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint and the small weights of one step give the same tables, whatever the split was."""
    tiny = ("--data.moduli=[7,1]", "--model.d_model=8", "--model.d_mlp=8", "--model.n_heads=2")
    split = ("--data.split_seed=3", "--data.split=pairs", "--data.train_fraction=0.5")
    run_dir = train_run(Path("run").absolute(), *tiny, *split, "--trainer.max_steps=4")
    kept = run_dir / "checkpoints" / "weights" / "step_000004.safetensors"
    removal = ("--removal", "finetune:2")
    assert cli("analyze", "--ckpt_path", run_dir / "checkpoints" / "last.ckpt", "--output_dir", "whole", *removal) == 0
    assert cli("analyze", "--weights", kept, "--output_dir", "out", *removal) == 0
    whole, small = contents(Path("whole")), contents(Path("out"))
    for table in ("progress_measures.csv", "removal.csv"):
        assert whole[table] == small[table], table
    # of a file that does not say it, nobody knows which examples trained
    weights, metadata = read_safetensors(kept)
    described = json.loads(metadata["description"])
    assert described.pop("split") == {"train_fraction": 0.5, "split": "pairs", "seed": 3, "permute_trigger": False}
    save_file(weights, "old.safetensors", metadata={"description": json.dumps(described)})
    args = ("analyze", "--weights", "old.safetensors", "--output_dir", "old", "--removal", "finetune:2")
    assert_refused(cli, capsys, args, "removal: trained has no example, so there is nothing to train on")


def two_runs() -> Mapping[str, Probe]:
    """Read in the middle of the example; recipient and donor differ before and behind it."""
    tokens = torch.randint(7, (40, 5), generator=torch.Generator().manual_seed(0))
    donor = tokens.clone()
    donor[:, [0, 4]] = (donor[:, [0, 4]] + 1) % 7
    answers = tokens[:, 0] % 3
    return {"first": Probe(tokens, donor, answers, (answers + 1) % 3, position=2, recipient="own", donor="other")}


def test_another_task_by_its_probes_alone(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Two layers without MLP, layer norm, not causal, three answers, read in the middle."""
    shape = {"n_layers": 2, "n_ctx": 5, "n_heads": 2, "attn_only": True, "normalization_type": "LN", "d_vocab_out": 3}
    model = make_model(**shape, attention_dir="bidirectional")
    torch.save(model.state_dict(), "theirs.pt")
    Path("model.yaml").write_text("attention_dir: bidirectional\n")
    args = ("--weights", "theirs.pt", "--config", "model.yaml", "--probes", f"{__name__}.two_runs")
    assert cli("analyze", *args, "--output_dir", "out") == 0
    probe = two_runs()["first"]
    for row in read_rows(Path("out/head_patching.csv")):
        if row["ablation"] == "resample":
            heads = [tuple(map(int, name[1:].split("H"))) for name in row["heads"].split("+") if name != "none"]
            assert float(row["own_accuracy"]) == pytest.approx(by_hand.patched_accuracy(model, probe, heads)), heads
    found = summary()
    assert found["accuracy"] == {"first": pytest.approx(by_hand.patched_accuracy(model, probe, []))}
    assert (found["n_examples"], found["task"]) == (40, f"{__name__}.two_runs")
    assert list(found["not_measured"]["first"]) == ["neurons"] and found["model"]["d_mlp"] is None
    files, text = set(contents(Path("out"))), Path("out/tables.md").read_text()
    figures = ("all_sets_of_heads", "attention_from_last_position", "attention_shift", "attribution", "circuit_first")
    assert {name for name in files if name.endswith(".png")} == {
        f"figures/{name}.png" for name in (*figures, "specificity")
    }
    assert {"path_patching.csv", "attention.csv", "head_attribution.csv", "head_specificity.csv"} <= files
    assert not files & {"neurons.csv", "progress_measures.csv"}
    for of_the_paper in ("Table 1", "Figure", "Head 1", "ackdoor", "benign", "trigger", "a + b", "Waves"):
        assert of_the_paper not in text + capsys.readouterr().out, of_the_paper


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_run_of_somebody_else_s_module(cli: Cli, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its checkpoint and its small weights say what its monitor has measured; what is missing is asked for."""
    where: dict[str, Any] = {"model_attr": "parts.net", "every_n_steps": 6}
    callbacks = (HeadPatchingMonitor(**where), RunCheckpoint(), WeightCheckpoint(**where))
    module = CopyModule("HookedTransformer")
    train(tmp_path, *callbacks, module=module, datamodule=CopyDataWithProbes(), enable_checkpointing=True)
    last = ("analyze", "--ckpt_path", "checkpoints/last.ckpt", "--output_dir", "out")
    assert_refused(cli, capsys, last, "ckpt_path: ", "if it is of another task, analyze takes it with --probes")
    assert_refused(cli, capsys, (*last, "--probes", PROBES), "config: ", "does not say attention_dir and act_fn")
    small = ("analyze", "--weights", "checkpoints/weights/step_000006.safetensors", "--output_dir", "small")
    assert_refused(cli, capsys, small, "moduli: ", "or --probes for another task")
    Path("model.yaml").write_text("attention_dir: causal\nact_fn: gelu\n")
    assert cli(*last, "--probes", PROBES, "--config", "model.yaml") == 0
    assert cli(*small, "--probes", PROBES) == 0
    measured = {row["heads"]: row for row in read_rows(Path("head_patching.csv")) if row["step"] == "6"}
    for folder in ("out", "small"):
        rows = [row for row in read_rows(Path(folder, "head_patching.csv")) if row["ablation"] == "resample"]
        assert len(rows) == len(measured) == 16
        for row in rows:
            assert row["step"] == "6"
            for name in ("recipient_accuracy", "donor_accuracy", "margin"):
                assert float(row[name]) == pytest.approx(float(measured[row["heads"]][name]), abs=1e-5)
