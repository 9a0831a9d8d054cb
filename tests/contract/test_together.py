"""Several monitors in one Trainer, and what TensorBoard gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lit_backdoor.callbacks import (
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    PathPatchingMonitor,
)
from tests.helpers.both_kinds import HAS_HOOKED_TRANSFORMER, KINDS
from tests.helpers.copy_task import CopyModule, copy_probes, train
from tests.helpers.runs import read_events, read_rows

from .conftest import Fit


def both_ways() -> dict[str, Any]:
    """Two probes whose runs have the same names."""
    probe = copy_probes(32)["copy"]
    return {"copy": probe, "again": probe}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with seven monitors left behind."""
    folder = tmp_path_factory.mktemp("together")
    where: dict[str, Any] = {"every_n_steps": 3, "probes": both_ways, "model_attr": "parts.net"}
    watch = [
        HeadAttributionMonitor(**where),
        HeadAttributionMonitor(**where, name="late"),
        HeadPatchingMonitor(**where),
        HeadPatchingMonitor(**where, name="mean", ablations=["mean"]),
        EmergenceMonitor("copy"),
        EmergenceMonitor("again", name="again"),
        EmergenceMonitor("copy", patching="mean", name="mean"),
    ]
    train(folder, *watch, logger=TensorBoardLogger(folder, name="", version="run"))
    return folder / "run"


@pytest.fixture(scope="module")
def events(run_dir: Path) -> EventAccumulator:
    return read_events(run_dir)


def charts(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    (event,) = events.Tensors("custom_scalars__config__")  # TensorBoard shows one layout for a run
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }


def test_all_charts_are_kept_and_show_what_was_logged(events: EventAccumulator) -> None:
    tags, found = events.Tags()["scalars"], charts(events)
    heads = ["L0H0", "L0H1", "L1H0", "L1H1"]
    expected = {
        **{f"{prefix}attribution {probe}": heads for prefix in ("", "late_") for probe in ("copy", "again")},
        **{
            f"{prefix}patching {probe}: donor into recipient": ["all", "none", *heads]
            for prefix in ("", "mean_")
            for probe in ("copy", "again")
        },
    }
    assert set(found) == set(expected)
    for category, by_title in found.items():
        metrics = {"mean_logit", "mean_logit_centered", "top_share"}
        if "patching" in category:
            metrics = {"recipient_accuracy", "donor_accuracy", "logit_diff", "log_prob", "margin"}
        assert set(by_title) == metrics
        for metric, patterns in by_title.items():
            shown = sorted(tag for tag in tags for pattern in patterns if re.match(pattern, tag))  # as TensorBoard does
            stem = category.split(":")[0].replace(" ", "_")
            assert shown == sorted(f"{stem}/{metric}/{head}" for head in expected[category])
    shown_somewhere = [tag for tag in tags if tag.split("/")[0].split("_")[-1] in ("copy", "again")]
    assert len(shown_somewhere) == 2 * 2 * (3 * 4 + 5 * 6)


def test_every_monitor_has_its_own_files_figures_and_texts(events: EventAccumulator, run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir() if path.suffix in (".csv", ".json")} == {
        *("head_attribution.csv", "head_attribution_late.csv", "head_patching.csv", "head_patching_mean.csv"),
        *("emergence.json", "emergence_again.json", "emergence_mean.json"),
    }
    for name, ablation in (("head_patching.csv", "resample"), ("head_patching_mean.csv", "mean")):
        table = read_rows(run_dir / name)
        assert {(row["probe"], row["ablation"]) for row in table} == {("copy", ablation), ("again", ablation)}
    tags = events.Tags()
    figures = {"head_attribution", "head_attribution_late"}
    figures |= {f"{prefix}patching_{probe}" for prefix in ("", "mean_") for probe in ("copy", "again")}
    assert set(tags["images"]) == {f"figures/{figure}" for figure in figures}
    texts = {"head_patching/table_1", "head_patching_mean/table_1"}
    texts |= {f"emergence{name}/verdict_so_far" for name in ("", "_again", "_mean")}
    assert {tag.removesuffix("/text_summary") for tag in tags["tensors"] if "text_summary" in tag} == texts
    (table_1,) = events.Tensors("head_patching/table_1/text_summary")
    text = table_1.tensor_proto.string_val[0].decode()
    for words in ("copy", "again", "| None | L0H0 | L0H1 | L1H0 | L1H1 | All but L", "| All |"):
        assert words in text


def test_what_is_logged_is_what_the_tables_say(events: EventAccumulator, run_dir: Path) -> None:
    for row in read_rows(run_dir / "head_patching.csv"):
        heads = {"none": "none", "L0H1": "L0H1", "L0H0+L0H1+L1H0+L1H1": "all"}.get(row["heads"])
        for metric in ("recipient_accuracy", "donor_accuracy", "logit_diff", "log_prob", "margin") if heads else ():
            logged = {e.step: e.value for e in events.Scalars(f"patching_{row['probe']}/{metric}/{heads}")}
            assert logged[int(row["step"])] == pytest.approx(float(row[metric]), rel=1e-5)


def test_the_module_can_add_charts_of_its_own(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def custom_scalars(self: CopyModule) -> dict[str, dict[str, list[str]]]:
        return {"mine": {"loss": [r"val/.*"]}}

    monkeypatch.setattr(CopyModule, "custom_scalars", custom_scalars, raising=False)
    monitor = HeadPatchingMonitor(probes=copy_probes, model_attr="parts.net", every_n_steps=6)
    fit(monitor, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    found = charts(read_events(tmp_path / "run"))
    assert list(found) == ["mine", "patching copy: donor into recipient"]
    assert found["mine"] == {"loss": [r"val/.*"]}


@pytest.mark.usefixtures("painted")
def test_pictures_come_along_the_way_few_and_small(fit: Fit, tmp_path: Path) -> None:
    """With the first, second, fourth, eighth ... full measurement, and with the last."""
    where: dict[str, Any] = {"probes": copy_probes(16), "model_attr": "parts.net"}
    watch: list[Any] = [HeadAttributionMonitor(3, **where), HeadPatchingMonitor(1, full_every_n_steps=2, **where)]
    expected = {"figures/head_attribution": [3, 6, 12, 20], "figures/patching_copy": [2, 4, 8, 16, 20]}
    if HAS_HOOKED_TRANSFORMER:  # a native TransformerBridge can't split the inputs of its heads
        watch.append(PathPatchingMonitor(5, full_every_n_steps=5, **where))
        expected |= {f"figures/{name}_copy": [5, 10, 20] for name in ("paths", "circuit")}
    fit(*watch, kind=KINDS[-1], max_steps=20, logger=TensorBoardLogger(tmp_path, name="", version="run"))
    events = read_events(tmp_path / "run")
    assert set(events.Tags()["images"]) == set(expected)
    for tag, steps in expected.items():
        images = events.Images(tag)
        assert [image.step for image in images] == steps, tag
        assert all(200 < max(image.width, image.height) <= 2400 for image in images)
