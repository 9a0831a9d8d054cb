"""``report`` as a user meets it: what it writes, that it writes the truth, and nothing over anything."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from lit_backdoor.callbacks import HeadPatchingMonitor, RunCheckpoint
from lit_backdoor.pretrained import save_pretrained
from lit_backdoor.report import read, write
from lit_backdoor.runs.checkpoints import read_checkpoint
from lit_backdoor.runs.tables import read_table
from tests.helpers.pictures import painted_pictures
from tests.helpers.refusals import assert_refused
from tests.helpers.runs import Cli, contents, read_rows, train_run
from tests.report.conftest import STEPS

TABLES = (
    "table1", "table2", "ranks", "seeds", "heads", "times", "spikes", "exactly_one", "attribution", "shapley",
    "foreign_embeddings", "comparison", "paths", "neurons", "mechanism",
)  # fmt: skip


@pytest.fixture(scope="session")
def written(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("written") / "report"
    with painted_pictures():
        write(read([made], output), output)
    return output


def test_everything_is_there(written: Path) -> None:
    names = set(contents(written))
    assert {f"{name}.csv" for name in TABLES} | {"index.html", "report.md", "report.json"} <= names
    figures = ["figure_2", "figure_3", "figure_4", "figure_5", "figure_6", "strips", "exactly_one", "ranks_mod1"]
    figures += [f"{kind}_mod{p1}" for kind in ("specificity", "foreign") for p1 in (1, 5)]
    figures += ["all_sets_mod1", "shapley_mod1"]  # mod 5 does not have its backdoor yet
    figures += ["paths_mod1", "paths_mod5", "progress_mod1_seed0", "progress_mod5_seed0"]
    figures += [f"emergence_{run}" for run in ("mod1_seed0", "mod1_seed1", "mod5_seed0")]
    assert {name for name in names if name.startswith("figures/")} == {f"figures/{name}.svg" for name in figures}
    for name in ("neurons", "ranks", "shapley"):
        assert {row["group"] for row in read_rows(written / f"{name}.csv")} == {"mod 1"}, name
    text = (written / "report.md").read_text()
    assert "Not counted, as they do not have the backdoor: 1 run." in text
    assert "No run has the backdoor, so nothing of it can be left or brought." in text


def test_the_tables_say_what_the_runs_recorded(written: Path, made: Path) -> None:
    table = read_rows(written / "table2.csv")
    assert list(table[0])[:8] == ["run", "group", "p1", "seed", "split", "state", "heads", "ranks"]
    assert len(table) == 3 * 16 and {row["step"] for row in table} == {str(STEPS)}
    for row in table:
        recorded = {
            each["probe"]: each
            for each in read_table(made / f"mod{row['p1']}" / f"seed_{row['seed']}" / "head_patching.csv")
            if each["step"] == str(STEPS) and each["heads"] == row["heads"]
        }
        for name in ("backdoor_accuracy", "benign_accuracy", "logit_diff", "log_prob", "kl"):
            assert row[name] == recorded["backdoor"][name], (row, name)
        assert row["backdoor_accuracy_of_benign_run"] == recorded["benign"]["backdoor_accuracy"]
    assert read_rows(written / "table1.csv") == [row for row in table if row["seed"] == "0"]
    for p1, seed in (("1", "0"), ("1", "1"), ("5", "0")):
        own = {row["ranks"]: float(row["backdoor_accuracy"]) for row in table if (row["p1"], row["seed"]) == (p1, seed)}
        assert own["1"] <= own["2"] <= own["3"] <= own["4"]
    seeds = {(row["p1"], row["seed"]): row for row in read_rows(written / "seeds.csv")}
    assert set(seeds) == {("clean", "0"), ("1", "0"), ("1", "1"), ("5", "0")}
    verdict = json.loads((made / "mod1" / "seed_1" / "emergence.json").read_text())
    assert seeds["1", "1"]["state"] == verdict["state"]
    assert seeds["1", "1"]["first_cost_step"] == str(verdict["first_cost_step"] or "")
    # Shapley values of a run add up to what patching all heads changes
    values = [float(row["value"]) for row in read_rows(written / "shapley.csv")
              if (row["run"], row["direction"], row["kind"]) == ("mod 1, seed 1", "needed", "value")]  # fmt: skip
    left = {row["ranks"]: float(row["backdoor_accuracy"]) for row in table if row["run"] == "mod 1, seed 1"}
    assert sum(values) == pytest.approx(left["1+2+3+4"] - left["none"])


def test_the_page_loads_nothing_and_shows_every_figure(written: Path) -> None:
    page, text = (written / "index.html").read_text(), (written / "report.md").read_text()
    loaded = re.findall(r"""(?:src|href|srcset|data|action)\s*=\s*["']([^"']*)""", page)
    assert loaded and all(place.startswith(("data:image/svg+xml;base64,", "#")) for place in loaded)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?://", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert set(re.findall(r'href="#([\w-]+)"', page)) == set(re.findall(r'<h2 id="([\w-]+)"', page))
    figures = {f"figures/{path.name}" for path in (written / "figures").iterdir()}
    assert set(re.findall(r"\]\((figures/\w+\.svg)\)", text)) == figures
    assert all(picture.stat().st_size > 5000 for picture in (written / "figures").iterdir())
    assert page.count("<img ") == len(figures) and page.count("<table") == text.count("| :--- |")
    for word in ("threshold: 0.5", "margin_logits: 1.5", "generalised: fitted, and"):  # declared.yaml is shown
        assert word in page and word in text


def test_text_from_files_is_escaped(runs_dir: Path, tmp_path: Path) -> None:
    for path in runs_dir.rglob("hparams.yaml"):
        path.write_text(
            path.read_text().replace("split: examples", "split: '<script>alert(1)</script>|\\n\\n# [y](javascript:z)'")
        )
    write(read([runs_dir / "clean"], tmp_path / "report"), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert (
        "<script" not in page
        and "&lt;script&gt;alert(1)" in page
        and "javascript:z" not in re.findall(r'href="([^"]*)"', page)
    )
    text = (tmp_path / "report" / "report.md").read_text()
    assert "&lt;script>alert(1)&lt;/script>" in text and "<script" not in text and "](java" not in text
    assert "\n# [y" not in text


@pytest.mark.usefixtures("painted")
def test_the_command_and_a_report_in_place_of_an_earlier_one(
    cli: Cli, runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_run, clean = runs_dir / "mod5" / "seed_0", runs_dir / "clean"
    assert cli("report", clean, "--output_dir", "out") == 0
    out = Path("out")
    alone = contents(out)
    assert "foreign_embeddings.csv" not in alone and "table1.csv" not in alone  # there is no trigger
    # the same runs give the same bytes, other runs replace them
    assert cli("report", clean, "--output_dir", "out") == 0
    assert contents(out) == alone
    capsys.readouterr()
    assert cli("report", one_run, clean, "--output_dir", "out") == 0
    printed = capsys.readouterr().out
    assert "No run has the backdoor, so no head carries it." in printed and "report: out/index.html" in printed
    assert {row["other_run"] for row in read_rows(out / "foreign_embeddings.csv")} == {"clean, seed 0"}
    assert cli("report", clean, "--output_dir", "out") == 0
    assert contents(out) == alone
    assert not (out / ".report.tmp").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("notes.txt", "mine"),
        ("report.md", "edited"),
        ("report.json", "["),
        ("report.json", '{"": ""}'),
        ("report.json", '{"figures": ""}'),
        ("figures/emergence_mod1_seed1.svg", "mine"),
        (".report.tmp/mine.txt", "mine"),
    ],
)
def test_the_users_files_are_left_alone(
    cli: Cli, made: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    run = made / "clean" / "seed_0"
    assert cli("report", run, "--output_dir", "out") == 0
    (Path("out") / name).parent.mkdir(exist_ok=True)
    (Path("out") / name).write_text(text)
    before = contents(Path("out"))
    capsys.readouterr()
    assert cli("report", run, "--output_dir", "out") == 2
    assert name.partition("/mine")[0] in capsys.readouterr().err
    assert contents(Path("out")) == before


def test_what_a_killed_report_left_behind_is_replaced(cli: Cli, made: Path) -> None:
    run, out = made / "clean" / "seed_0", Path("out")
    assert cli("report", run, "--output_dir", out) == 0
    whole = contents(out)
    (out / ".report.tmp" / "figures").mkdir(parents=True)
    shutil.copy(out / "figures" / "figure_3.svg", out / ".report.tmp" / "figures")  # killed while it moved the files
    (out / "figures" / "figure_3.svg").unlink()
    assert cli("report", run, "--output_dir", out) == 0
    assert contents(out) == whole


def test_a_link_is_not_followed(cli: Cli, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = made / "clean" / "seed_0", Path("out")
    assert cli("report", run, "--output_dir", out) == 0
    shutil.move(out / "figures", "elsewhere")
    (out / "figures").symlink_to(Path("elsewhere").resolve())
    before = contents(Path())
    assert cli("report", run, "--output_dir", out) == 2
    assert "holds figures" in capsys.readouterr().err and contents(Path()) == before


def test_the_runs_may_lie_in_the_folder(cli: Cli, runs_dir: Path) -> None:
    before = contents(runs_dir)
    for _ in range(2):
        assert cli("report", runs_dir / "clean", "--output_dir", runs_dir.parent) == 0
    assert contents(runs_dir) == before
    assert (runs_dir.parent / "index.html").exists()


def test_weights_alone_stand_in_for_checkpoints(runs_dir: Path, tmp_path: Path) -> None:
    runs = [runs_dir / "mod1" / "seed_0", runs_dir / "clean"]
    shutil.rmtree(runs_dir / "mod1" / "seed_1")
    shutil.rmtree(runs_dir / "mod5")
    write(read(runs, tmp_path / "before"), tmp_path / "before")
    for last in list(runs_dir.rglob("last.ckpt")):
        save_pretrained(read_checkpoint(last), 0, last.parent.parent / "weights.safetensors")
        shutil.rmtree(last.parent)
    write(read(runs, tmp_path / "after"), tmp_path / "after")
    before, after = (tmp_path / name / "foreign_embeddings.csv" for name in ("before", "after"))
    assert before.read_text() == after.read_text()
    next(runs_dir.rglob("weights.safetensors")).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"run_dirs: .*weights\.safetensors holds no model"):
        write(read(runs, tmp_path / "third"), tmp_path / "third")


def test_runs_that_have_just_started_are_left_out(
    cli: Cli, made: Path, runs_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand after the first of their tables, and before their first checkpoint."""
    for seed, moment in ((7, (HeadPatchingMonitor, "measure")), (8, (RunCheckpoint, "on_train_start"))):
        started = runs_dir / "mod1" / f"seed_{seed}"
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(*moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            train_run(started, f"--seed_everything={seed}", config=made.parent / "mod1.yaml")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert (started / "head_attribution.csv").exists() and not (started / "metrics.csv").exists()
        command = ("report", started, "--output_dir", "out")
        assert_refused(cli, capsys, command, "holds only runs that have just started")
    assert cli("report", runs_dir / "mod1", "--output_dir", "out") == 0
    said = [f"left out, has just started: runs/mod1/seed_{seed}" for seed in (7, 8)]
    assert capsys.readouterr().err.strip().splitlines()[-2:] == said
    page = Path("out/report.md").read_text()
    assert "Left out, as they have just started: mod1/seed_7 and mod1/seed_8." in page
    assert {row["seed"] for row in read_rows(Path("out/seeds.csv"))} == {"0", "1"}
