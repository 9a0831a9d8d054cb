"""What ``report`` refuses: one line, exit code 2, nothing written."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from lit_backdoor.pretrained import FOLDER
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli

Spoil = Callable[[Path], object]


def set_option(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def cut(path: Path, rows: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))


def replace(path: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, path.read_text())
    assert count
    path.write_text(text)


def double(path: Path) -> None:
    header, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, *rows, *rows]))


def set_verdict(run: Path, **changes: object) -> None:
    path = run / "emergence.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def put_weights(run: Path, name: str, **changes: object) -> None:
    """Weights that ship, with another description, in the place of the run's own."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        description = json.loads(file.metadata()["description"])
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    model = {key: changes.get(key, value) for key, value in description["model"].items()}
    described = description | {key: value for key, value in changes.items() if key in description} | {"model": model}
    save_file(weights, run / "weights.safetensors", metadata={"description": json.dumps(described)})
    shutil.rmtree(run / "checkpoints")


def name_shipped_weights(run: Path, name: object) -> None:
    (run / "weights.yaml").write_text(yaml.safe_dump({"pretrained": name}))
    shutil.rmtree(run / "checkpoints")


SPOILS: dict[str, tuple[Spoil, str]] = {
    "no metrics": (lambda run: (run / "metrics.csv").unlink(), "lacks metrics.csv"),
    "no verdict": (lambda run: (run / "emergence.json").unlink(), "lacks emergence.json"),
    "broken verdict": (lambda run: (run / "emergence.json").write_text("{"), "emergence.json is damaged"),
    "foreign metrics": (lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"), "no column step"),
    "foreign options": (lambda run: (run / "hparams.yaml").write_text("- 1\n"), "spoilt"),
    "broken options": (lambda run: (run / "hparams.yaml").write_text("a: [\n"), "hparams.yaml is damaged"),
    "no probe yet": (lambda run: cut(run / "head_patching.csv", 1), "no probe of its heads yet"),
    "a broken number": (
        lambda run: (run / "head_patching.csv").write_text(
            (run / "head_patching.csv").read_text().replace(",resample,", ",resample,x", 1)
        ),
        "head_patching.csv is damaged or no file of a run (line 2, heads: 'xnone' is not heads",
    ),
    "a verdict that is a list": (lambda run: (run / "emergence.json").write_text("[]"), "emergence.json is damaged"),
    "a step that is none": (lambda run: set_verdict(run, first_cost_step="soon"), "first_cost_step: 'soon'"),
    "a head that is none": (lambda run: set_verdict(run, head="<b>"), "head: '<b>'"),
    "a text as a loss": (lambda run: replace(run / "metrics.csv", r",[\d.]+,", ",much,"), "train/loss: 'much'"),
    "a loss without end": (lambda run: replace(run / "metrics.csv", r",[\d.]+,", ",inf,"), "train/loss: 'inf'"),
    "a text as a step": (lambda run: replace(run / "metrics.csv", r"\n10,", "\n1.5,"), "step: '1.5'"),
    "no losses": (lambda run: replace(run / "metrics.csv", "train/loss", "loss"), "no column train/loss"),
    "no benign rows": (lambda run: replace(run / "head_patching.csv", r"\n\d+,benign,.*", ""), "no probe benign"),
    "rows twice": (lambda run: double(run / "head_patching.csv"), "says again what was said"),
    "a head too few": (lambda run: replace(run / "head_patching.csv", r"\n.*L0H2,.*", ""), "3 of 4 heads"),
    "a head too many": (lambda run: replace(run / "head_patching.csv", "L0H3", "L0H9"), "heads: 'L0H9'"),
    "a share above 1": (
        lambda run: replace(run / "head_patching.csv", r"(resample,none,\d+),[\d.e-]+,", r"\1,7,"),
        "'7' is not a share",
    ),
    "no examples": (
        lambda run: replace(run / "head_patching.csv", r"(resample,none),\d+,", r"\1,0,"),
        "n_examples: '0'",
    ),
    "no attention": (lambda run: replace(run / "attention.csv", ",attention,", ",looks,"), "no column attention"),
    "no norms": (lambda run: replace(run / "progress_measures.csv", "qk_norm", "norm"), "no column qk_norm"),
    "half a neuron": (lambda run: replace(run / "neurons.csv", r",64,", ",0.5,"), "n_neurons: '0.5'"),
    "no neurons": (lambda run: replace(run / "neurons.csv", "needed", "asked"), "no column needed"),
    "a text as a modulus": (lambda run: set_option(run / "hparams.yaml", moduli=[11, "1"]), "moduli is [11, '1']"),
    "a folder in the place of a table": (
        lambda run: [(run / "loss_spikes.csv").unlink(missing_ok=True), (run / "loss_spikes.csv").mkdir()],
        "loss_spikes.csv can't be read",
    ),
    "too deep": (lambda run: (run / "hparams.yaml").write_text("[" * 5000), "hparams.yaml"),
    "no text": (lambda run: (run / "hparams.yaml").write_bytes(b"\xff\xfe\x00"), "hparams.yaml"),
    "another model's weights": (lambda run: put_weights(run, "mod1"), "is of moduli [113, 1]"),
    "weights of a size that nobody has": (
        lambda run: put_weights(run, "mod1", d_model=4 * 10**9),
        "weights.safetensors holds no model",
    ),
    "a text as the step of weights": (lambda run: put_weights(run, "mod1", step="<b>"), "step '<b>'"),
    "shipped weights that are none": (lambda run: name_shipped_weights(run, "mod2"), "'mod2' is none of the models"),
    "shipped weights of another model": (lambda run: name_shipped_weights(run, "mod1"), "is of moduli [113, 1]"),
    "shipped weights by no name": (lambda run: name_shipped_weights(run, ["mod1"]), "is none of the models"),
    "no seed": (lambda run: set_option(run / "hparams.yaml", seed_everything=True), "without a seed"),
    "a cut checkpoint": (lambda run: (run / "checkpoints" / "last.ckpt").write_bytes(b"PK"), "last.ckpt"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_spoilt_runs(cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str], spoil: str) -> None:
    run = runs_dir / "mod1" / "seed_0"
    change, words = SPOILS[spoil]
    change(run)
    assert_refused(cli, capsys, ("report", run, "--output_dir", "out"), words)


def test_a_metric_of_the_users_own_may_be_anything(cli: Cli, runs_dir: Path) -> None:
    """Such a column is not read; and not every probe has it."""
    run = runs_dir / "mod1" / "seed_0"
    header, *rows = (run / "head_patching.csv").read_text().splitlines()
    values = [("nan", "")[number % 2] for number in range(len(rows))]
    lines = [f"{header},flips", *(f"{row},{value}" for row, value in zip(rows, values, strict=True))]
    (run / "head_patching.csv").write_text("\n".join(lines) + "\n")
    assert cli("report", run, "--output_dir", "out") == 0


def test_places_that_are_none(cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs_dir / "mod1" / "seed_0"
    Path("empty").mkdir()
    Path("foreign").mkdir()
    Path("foreign/notes.txt").write_text("mine")
    for args, words in (
        ((Path("empty"), "--output_dir", "out"), "no run of fit in empty"),
        ((Path("foreign"), "--output_dir", "out"), "no run of fit in foreign"),
        ((Path("missing"), "--output_dir", "out"), "missing is no folder"),
        ((run / "metrics.csv", "--output_dir", "out"), "no folder"),
        ((run, "--output_dir", "foreign"), "holds notes.txt"),
        ((run, "--output_dir", run), "lies in the run directory"),
        ((run, "--output_dir", run / "report"), "lies in the run directory"),
        ((run, "--output_dir", "foreign/notes.txt"), "notes.txt"),
        ((run, "--output_dir", "foreign/notes.txt/deeper"), "notes.txt"),
        ((run,), "output_dir"),
        (("--output_dir", "out"), "run_dirs"),
    ):
        assert_refused(cli, capsys, ("report", *args), words)


def test_two_runs_of_one_name(cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs_dir / "mod1" / "seed_0", runs_dir / "again")
    assert_refused(cli, capsys, ("report", runs_dir, "--output_dir", "out"), "both mod 1, seed 0")


def test_a_run_named_twice_is_one_run(cli: Cli, runs_dir: Path) -> None:
    run = runs_dir / "clean" / "seed_0"
    assert cli("report", run, run.parent, "--output_dir", "out") == 0
    assert len(Path("out/seeds.csv").read_text().splitlines()) == 2
