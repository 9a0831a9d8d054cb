"""Tables as data frames: the types of the schema, every number as it was written, growing tables, refusals."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lit_backdoor
from lit_backdoor.runs.frames import read_frame
from lit_backdoor.runs.tables import read_table
from tests.helpers import ROOT


def test_a_committed_run() -> None:
    run = ROOT / "results" / "runs" / "mod17_one_split" / "seed_0"
    tables = lit_backdoor.read_run(run)
    assert set(tables) == {path.stem for path in run.glob("*.csv")}
    for name, table in tables.items():
        text = read_table(run / f"{name}.csv")
        assert list(table) == list(text[0]) and len(table) == len(text)
        for column, cells in table.items():
            kinds = {"int64": int, "Int64": int, "float64": float}
            kind = kinds.get(str(cells.dtype), str)
            again = [row[str(column)] for row in text]
            assert [kind(cell) for cell in cells.dropna()] == [kind(cell) for cell in again if cell], column
    assert str(tables["head_patching"].dtypes["step"]) == "int64"
    assert str(tables["metrics"].dtypes["val/loss"]) == "float64"
    assert str(tables["loss_spikes"].dtypes["end_step"]) == "Int64" and tables["loss_spikes"]["end_step"].isna().any()
    assert set(tables["head_patching"]["heads"]) >= {"none", "L0H0+L0H2"}


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_comes_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("table") / "metrics.csv"
    path.write_text(f"step,train/loss,own\n1,{value!r},{value!r}\n2,,nan\n")
    frame = read_frame(path)
    assert frame["train/loss"].tolist()[0] == frame["own"].tolist()[0] == value and frame["own"].isna()[1]


def test_a_line_that_is_being_written_and_no_lines_yet(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n10,0.5\n20,0.")
    (tmp_path / "head_patching_rule2.csv").write_text("step,probe\n")
    tables = lit_backdoor.read_run(tmp_path)
    assert tables["metrics"]["step"].tolist() == [10]
    assert list(tables["head_patching_rule2"]) == ["step", "probe"] and tables["head_patching_rule2"].empty


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metrics.csv", "step,val/x_accuracy\n1,0.5\n2,1.5\n", "line 3, val/x_accuracy: '1.5' is not a share"),
        ("head_patching_own.csv", "step,heads\n1,L0H2+L0H0\n", "line 2, heads: 'L0H2.L0H0' is not heads"),
        ("anything.csv", "step\nsoon\n", "line 2, step: 'soon' is not a whole number"),
    ],
)
def test_a_cell_that_is_not_what_its_column_holds(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        lit_backdoor.read_run(tmp_path)


def test_a_folder_without_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no table of a run"):
        lit_backdoor.read_run(tmp_path)
