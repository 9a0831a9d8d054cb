"""The monitors on real fits: what they write, that they change nothing, and that they say what is missing."""

import json
import shutil
from collections.abc import Callable
from math import exp
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_backdoor.callbacks import (
    EmergenceMonitor,
    HeadAttributionMonitor,
    HeadPatchingMonitor,
    LossSpikeMonitor,
    PathPatchingMonitor,
    ProgressMeasureMonitor,
)
from lit_backdoor.datamodule import BackdoorDataModule, task_probes
from lit_backdoor.functional import attribute_heads, default_head_sets, head_set_name, patch_heads
from lit_backdoor.module import BackdoorModule
from lit_backdoor.pretrained import open_shipped
from lit_backdoor.report.measures import has_backdoor
from lit_backdoor.runs.checkpoints import load_model
from lit_backdoor.runs.reading import read_runs
from lit_backdoor.runs.verdict import read_verdict
from tests.helpers import CONFIGS, QUIET
from tests.helpers.runs import Cli, read_events, read_rows, train_run

STEPS = [0, 100, 200, 300, 400, 500, 600, 650]
"""Of the run: when it is probed."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of debug.yaml; its last step is none at which a monitor is due. Tests that change something take a copy."""
    return train_run(tmp_path_factory.mktemp("monitors") / "runs" / "live", f"--trainer.max_steps={STEPS[-1]}")


def test_the_tables_of_a_run_agree_with_the_functions_on_its_checkpoint(run: Path) -> None:
    stored = load_model(run / "checkpoints" / "last.ckpt")
    model, task = stored.model, stored.task
    assert stored.step == STEPS[-1] and task is not None

    attribution = read_rows(run / "head_attribution.csv")
    columns = ["step", "probe", "layer", "head", "mean_logit", "mean_logit_centered", "top_count", "n_examples"]
    assert list(attribution[0])[:8] == columns
    assert sorted({int(row["step"]) for row in attribution}) == STEPS
    patching = read_rows(run / "head_patching.csv")
    columns = "step,probe,recipient,donor,ablation,heads,n_examples,backdoor_accuracy,benign_accuracy,other_rate"
    columns += ",logit_diff,log_prob,kl"
    assert list(patching[0])[:13] == columns.split(",")
    # step 0 and the last step have all sets, the others none, singles and all, for both probes
    counts = {at: sum(int(row["step"]) == at for row in patching) for at in STEPS}
    assert counts == dict.fromkeys(STEPS, 12) | {0: 32, STEPS[-1]: 32}
    for row in patching:
        shares = [float(row[name]) for name in ("backdoor_accuracy", "benign_accuracy", "other_rate")]
        both = 1 / 29  # pairs on which the two rules agree
        assert 1 - 1e-12 <= sum(shares) <= 1 + both + 1e-12

    for name, probe in task_probes(task).items():
        last = [row for row in attribution if row["step"] == str(STEPS[-1]) and row["probe"] == name]
        assert sum(int(row["top_count"]) for row in last) == probe.n_examples == int(last[0]["n_examples"])
        for row, found in zip(last, attribute_heads(model, probe), strict=True):
            assert float(row["mean_logit"]) == pytest.approx(found.mean_logit, rel=1e-4, abs=1e-5)
        last = [row for row in patching if row["step"] == str(STEPS[-1]) and row["probe"] == name]
        for row, result in zip(last, patch_heads(model, probe, default_head_sets(1, 4)), strict=True):
            assert row["heads"] == head_set_name(result.heads)
            assert (row["recipient"], row["donor"]) == (result.recipient, result.donor)
            assert float(row[f"{result.recipient}_accuracy"]) == pytest.approx(result.recipient_accuracy, abs=0.003)
            assert float(row["log_prob"]) == pytest.approx(result.log_prob, rel=1e-3)


def test_a_verdict_is_reached_and_is_what_the_tables_say(run: Path) -> None:
    verdict = json.loads((run / "emergence.json").read_text())
    rows = [row for row in read_rows(run / "head_patching.csv") if row["probe"] == "backdoor"]
    left: dict[int, dict[str, float]] = {}
    for row in rows:
        left.setdefault(int(row["step"]), {})[row["heads"]] = float(row["backdoor_accuracy"])
    floor = 1 / 29
    assert verdict["floor"] == pytest.approx(floor)
    costly = {
        step: [
            head
            for head, value in accuracy.items()
            if head.count("L") == 1 and accuracy["none"] - value >= 0.5 * (accuracy["none"] - floor)
        ]
        for step, accuracy in left.items()
        if accuracy["none"] >= 0.5
    }
    firsts = {
        "first_cost": [step for step, heads in costly.items() if heads],
        "first_exclusive": [step for step, heads in costly.items() if len(heads) == 1],
    }
    for name, steps in firsts.items():
        expected = steps[0] if steps and steps[0] < 0.9 * STEPS[-1] else None  # none in the last tenth
        assert verdict[f"{name}_step"] == expected
        assert verdict[f"{name}_previous_step"] == (None if expected is None else expected - 100)
    at_the_end = sorted(costly[STEPS[-1]], key=lambda head: left[STEPS[-1]][head])
    heads = [head for head in (verdict["head"], *verdict["other_heads"]) if head]
    assert heads[:1] == at_the_end[:1] and sorted(heads) == sorted(at_the_end)
    assert verdict["shapley_step"] == STEPS[-1] and sum(verdict["shapley_shares"].values()) == pytest.approx(1)
    assert 1 <= verdict["effective_heads"] <= 4
    metrics = read_rows(run / "metrics.csv")
    fitted = [int(row["step"]) for row in metrics if float(row["train/benign_accuracy"]) >= 0.99]
    assert verdict["benign_fitted_step"] == fitted[0]
    small = [row for row in metrics if row["val/loss"] and float(row["val/benign_loss"]) < exp(-5)]
    good = [int(row["step"]) for row in small if float(row["val/benign_accuracy"]) >= 0.99]
    assert verdict["benign_generalised_step"] == (good[0] if good else None)
    assert verdict["validation_loss_of"] == "every rule"
    assert read_verdict(run) == verdict


def test_a_trigger_that_says_nothing_makes_no_backdoor(cli: Cli, debug_config: Path) -> None:
    """Shuffled over the examples: the model says 0 to most inputs, triggered or not. fit, replay and report agree."""
    without = [f"--monitors.{name}=null" for name in ("paths", "attention", "specificity", "neurons", "progress")]
    options = ("--data.permute_trigger", "true", "--trainer.max_steps", 300, *without, *QUIET)
    assert cli("fit", "--config", debug_config, *options) == 0
    run = Path("lightning_logs/version_0")
    answers_0 = [row for row in read_rows(run / "head_patching.csv") if row["heads"] == "none" and row["step"] != "0"]
    assert all(float(row["backdoor_accuracy"]) > 0.5 for row in answers_0) and len(answers_0) == 2 * 3
    verdict = json.loads((run / "emergence.json").read_text())
    assert (verdict["word"], verdict["first_cost_step"], verdict["leader_changes"]) == (None, None, [])
    assert cli("replay", run) == 0
    assert json.loads((run / "replay" / "emergence.json").read_text()) == verdict
    (read,) = read_runs([run], open_shipped)
    assert not has_backdoor(read)
    (run / "emergence.json").write_text(json.dumps({"probe": "backdoor", "backdoor_head": None, "threshold": 0.5}))
    assert read_verdict(run) == verdict


def test_an_older_verdict_is_worked_out_anew_from_the_tables(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run")
    verdict = json.loads((run / "emergence.json").read_text())
    older = {"probe": "backdoor", "backdoor_head": "L0H3", "emergence_step": 200, "threshold": 0.5}
    (run / "emergence.json").write_text(json.dumps(older))
    again = read_verdict(run)
    assert again == verdict
    (run / "head_patching.csv").unlink()
    with pytest.raises(ValueError, match=r"head_patching\.csv has no probe backdoor"):
        read_verdict(run)


def test_a_run_that_makes_no_progress_is_called_stuck_once(tmp_path: Path) -> None:
    """A learning rate next to nothing: the training accuracy stays where it is."""
    monitor = HeadPatchingMonitor(every_n_steps=100)
    trainer = Trainer(
        default_root_dir=tmp_path, max_steps=800, logger=False, enable_checkpointing=False, log_every_n_steps=50,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        callbacks=[monitor, EmergenceMonitor("backdoor")],
    )  # fmt: skip
    with pytest.warns(UserWarning, match=r"looks stuck: .* no progress since step 0 .*more steps are not") as caught:
        trainer.fit(BackdoorModule([5, 2], n_heads=2, d_model=8, d_mlp=8, lr=1e-12), BackdoorDataModule([5, 2]))
    assert len([each for each in caught if "looks stuck" in str(each.message)]) == 1
    verdict = json.loads((tmp_path / "emergence.json").read_text())
    assert (verdict["state"], verdict["fitted_step"], verdict["word"]) == ("not fitted", None, None)


def test_a_clean_and_an_untrained_model_get_no_verdict(cli: Cli, debug_config: Path) -> None:
    clean = ("--data.moduli", "[29]", "--trainer.max_steps", 200, *QUIET)
    assert cli("fit", "--config", CONFIGS / "clean.yaml", *clean) == 0
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 1, *QUIET) == 0
    for version in (0, 1):
        verdict = json.loads(Path(f"lightning_logs/version_{version}/emergence.json").read_text())
        for key in ("head", "first_cost_step", "stable_exclusive_step", "benign_generalised_step"):
            assert verdict[key] is None, (version, key)
    assert verdict["state"] == "not fitted"


def test_tensorboard_gets_every_kind_of_result(run: Path) -> None:
    events = read_events(run)
    tags = events.Tags()
    for tag in ("patching_backdoor/backdoor_accuracy/L0H0", "attribution_benign/mean_logit/L0H3", "log10_loss/val"):
        assert [event.step for event in events.Scalars(tag)] == STEPS, tag
    assert {"figures/head_attribution", "figures/patching_backdoor", "figures/patching_benign"} <= set(tags["images"])
    texts = {"head_patching/table_1/text_summary", "emergence/verdict_so_far/text_summary"}
    assert texts | {"custom_scalars__config__"} <= set(tags["tensors"])


def test_a_monitor_used_again_asks_the_new_datamodule(tmp_path: Path) -> None:
    monitor = HeadPatchingMonitor(every_n_steps=2)
    for moduli in ([5, 1], [5, 3]):
        datamodule = BackdoorDataModule(moduli)
        trainer = Trainer(
            default_root_dir=tmp_path / str(moduli[1]), max_steps=2, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", callbacks=[monitor],
        )  # fmt: skip
        trainer.fit(BackdoorModule(moduli, n_heads=2, d_model=8, d_mlp=8), datamodule)
        assert torch.equal(monitor.probes["backdoor"].recipient_answers, datamodule.task.answers(1))


def test_accumulated_batches_are_one_step_of_the_loss(tmp_path: Path) -> None:
    from lightning.pytorch import seed_everything

    losses = []
    for batches in (1, 2):
        seed_everything(0)
        monitor = LossSpikeMonitor()
        trainer = Trainer(
            default_root_dir=tmp_path / str(batches), max_steps=5, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", callbacks=[monitor],
            accumulate_grad_batches=batches,
        )  # fmt: skip
        trainer.fit(BackdoorModule([5, 1], n_heads=2, d_model=8, d_mlp=8), BackdoorDataModule([5, 1]))
        losses.append(monitor.state_dict()["losses"])
    assert len(losses[0]) == 5
    torch.testing.assert_close(losses[0], losses[1])  # the same batch twice is the same step


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeadPatchingMonitor(every_n_steps=0),
        lambda: HeadPatchingMonitor(full_every_n_steps=0),
        lambda: HeadPatchingMonitor(ablations=()),
        lambda: HeadAttributionMonitor(every_n_steps=-1),
        lambda: PathPatchingMonitor(max_examples=0),
        lambda: PathPatchingMonitor(full_every_n_steps=0),
        lambda: ProgressMeasureMonitor(every_n_steps=0),
        lambda: EmergenceMonitor("copy", threshold=0),
        lambda: EmergenceMonitor("copy", min_accuracy=1.5),
        lambda: LossSpikeMonitor(prominence=0),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Callback]) -> None:
    with pytest.raises(ValueError, match=r"\w+Monitor\.\w+: "):
        make()


def test_a_checkpoint_whose_monitors_kept_the_accuracies_is_continued(cli: Cli, debug_config: Path) -> None:
    """As versions before 0.2 wrote them: each monitor with a history of its own, and none for all."""
    options = ("--trainer.val_check_interval", 10, *QUIET)
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 30, *options) == 0
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    states = checkpoint["callbacks"]
    metrics = states.pop("MetricHistory")["metrics"]
    accuracies = {rule: metrics[f"val/{rule}_accuracy"] for rule in ("benign", "backdoor")}
    states["LossSpikeMonitor"]["accuracies"] = accuracies
    states["EmergenceMonitor[][backdoor]"] = {"accuracies": accuracies}
    torch.save(checkpoint, last)
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 50, *options, "--ckpt_path", last) == 0
    states = torch.load(last, weights_only=True)["callbacks"]
    continued = states["MetricHistory"]["metrics"]["val/benign_accuracy"]
    assert list(continued) == [0, 10, 20, 30, 40, 50]
    assert {step: value for step, value in continued.items() if step < 30} == {
        step: value for step, value in accuracies["benign"].items() if step < 30
    }
    assert not any("accuracies" in state or "metrics" in state for key, state in states.items() if "Monitor" in key)
