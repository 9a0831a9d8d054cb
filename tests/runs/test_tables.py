"""Tables on disk: whole after kills, shortened on resume."""

from pathlib import Path

from lit_backdoor.runs.tables import CsvTable, copy_tables, read_table


def test_rows_come_back_and_new_columns_reach_old_rows(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv")
    table.append([{"step": 0, "a": 1.5}])
    table.append([{"step": 1, "a": 2.5, "b": "x"}, {"step": 2}])
    assert read_table(table.path) == [
        {"step": "0", "a": "1.5", "b": ""},
        {"step": "1", "a": "2.5", "b": "x"},
        {"step": "2", "a": "", "b": ""},
    ]
    assert table.path.read_text().splitlines()[0] == "step,a,b"
    assert list(tmp_path.iterdir()) == [table.path]


def test_a_line_cut_short_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("step,a\n0,1\n1,2\n2,")
    assert [row["step"] for row in read_table(path)] == ["0", "1"]
    CsvTable(path).append([{"step": 2, "a": 3}])
    assert path.read_text() == "step,a\n0,1\n1,2\n2,3\n"


def test_truncate_drops_the_step_and_what_follows(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv")
    table.truncate(3)
    assert not table.path.exists()
    table.append([{"step": step, "a": step * step} for step in range(5)])
    table.truncate(3)
    table.append([{"step": 3, "a": "again"}])
    assert table.path.read_text() == "step,a\n0,0\n1,1\n2,4\n3,again\n"


def test_truncating_everything_keeps_the_file_usable(tmp_path: Path) -> None:
    table = CsvTable(tmp_path / "t.csv")
    table.append([{"step": 5, "a": 1}])
    table.truncate(0)
    assert read_table(table.path) == []
    table.append([{"step": 0, "b": 1}])
    assert table.path.read_text() == "step,b\n0,1\n"


def test_copy_tables_leaves_the_source_alone(tmp_path: Path) -> None:
    source, destination = tmp_path / "old", tmp_path / "new"
    source.mkdir()
    destination.mkdir()
    CsvTable(source / "t.csv").append([{"step": step} for step in range(4)])
    (source / "notes.csv").write_text("day,remark\nMonday,mine\n")  # a table of the user's
    before = (source / "t.csv").read_text()
    copy_tables(source, destination, before_step=2)
    assert (destination / "t.csv").read_text() == "step\n0\n1\n"
    assert [path.name for path in destination.iterdir()] == ["t.csv"]
    assert (source / "t.csv").read_text() == before
