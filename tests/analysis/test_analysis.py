"""``analyze``: on a model whose backdoor head is known, and through the command line."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformer_lens import HookedTransformer

from lit_backdoor.analysis.document import analysis_markdown
from lit_backdoor.analysis.files import analysis_figures
from lit_backdoor.analysis.measure import Analysis, rule_heads
from lit_backdoor.analysis.measure import analyze as analyze_with
from lit_backdoor.analysis.probed_task import ProbedTask, probed_addition
from lit_backdoor.analysis.terminal import analysis_summary
from lit_backdoor.functional import Head, edge_set_name
from lit_backdoor.task import Task, split_examples
from tests.helpers import QUIET
from tests.helpers.known_head import KNOWN_HEAD, SECOND_HEAD, TASK, TWO_TRIGGERS, hand_built, two_triggers
from tests.helpers.runs import Cli, contents, read_rows, train_run
from tests.helpers.tiny_models import make_model, make_probe


def analyze(model: HookedTransformer, task: Task, step: int) -> Analysis:
    return analyze_with(model, probed_addition(task, split_examples(task)[0]), step)


def test_every_method_finds_the_known_head() -> None:
    analysis = analyze(hand_built(), TASK, step=0)
    backdoor = analysis.probes["backdoor"]
    found = {each.heads: each for each in backdoor.patching["resample"]}
    known = Head(0, KNOWN_HEAD)
    # the trigger is told apart by the known head alone: with it patched, the answer is 3 everywhere
    for heads, result in found.items():
        assert result.recipient_accuracy == (0.0 if known in heads else 1.0), heads
    assert backdoor.smallest == (known,)
    shapley = backdoor.shapley["backdoor_accuracy"]
    assert {head for head, value in shapley.values.items() if abs(value) > 1e-12} == {known}
    attribution = max(backdoor.attribution, key=lambda each: each.mean_logit)
    assert attribution.head == known and attribution.top_count == attribution.n_examples
    parts = dict(backdoor.parts)
    assert parts.pop("sum = mean logit") == pytest.approx(math.fsum(parts.values()))
    assert backdoor.chance == pytest.approx(1 / 7)
    (own,) = [each for each in backdoor.attention if each.head == known and each.position == 2]
    assert own.attention == pytest.approx(1.0, abs=1e-6)
    # the trigger is a value of the known head alone, and the logits read what it writes
    costly = {each.group or edge_set_name(each.edges) for each in backdoor.paths if each.recipient_accuracy < 1}
    assert costly == {"V", "QKV", "A_logits", "trigger>L0H2.V", "L0H2>logits"}
    costs = {each.head: each.cost for each in backdoor.specificity}
    assert costs == pytest.approx(
        {head: 7 / 6 * (head == known) for head in costs}
    )  # even what both runs share is lost
    # what suffices: the known head alone brings the trigger's answer into the benign run
    (moved,) = [each for each in analysis.probes["benign"].patching["resample"] if each.heads == (known,)]
    assert moved.donor_accuracy == 1.0
    assert "L0H2" in analysis_summary(analysis, None)
    assert "| Head 3 |" in analysis_markdown(analysis)


def test_two_triggers_are_told_apart() -> None:
    analysis = analyze(two_triggers(), TWO_TRIGGERS, step=0)
    assert list(analysis.of_rules) == ["benign", "backdoor", "rule2"]
    rules = rule_heads(analysis)
    for rule, head in (("backdoor", KNOWN_HEAD), ("rule2", SECOND_HEAD)):
        assert rules[rule].smallest == (Head(0, head),)
        for result in (rules[rule].needs, rules[rule].suffices):
            assert {each for each, value in result.values.items() if abs(value) > 1e-9} == {Head(0, head)}, rule
        assert rules[rule].needs.values[Head(0, head)] == -1.0  # all answers become 3, in every order of patching
        assert rules[rule].suffices.values[Head(0, head)] == 1.0
    text = analysis_markdown(analysis)
    assert "| backdoor, rule2 | 0.00 | 0.00 | L0H2 | L0H0 | none |" in text
    assert "| backdoor, rule2 |" in analysis_summary(analysis, None)
    assert "serves which rule" not in analysis_markdown(analyze(hand_built(), TASK, step=0))


@pytest.mark.usefixtures("painted")
def test_the_command_writes_everything_and_overwrites_nothing(
    cli: Cli, debug_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("fit", "--config", debug_config, "--trainer.max_steps", 120, *QUIET) == 0
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    capsys.readouterr()
    assert cli("analyze", "--ckpt_path", last, "--output_dir", "out") == 0
    printed = capsys.readouterr().out
    assert len(printed.strip().splitlines()) < 30 and "smallest set" in printed
    out = Path("out")
    files = set(contents(out))
    figures = ("figure_2_attribution_backdoor", "figure_4_attribution_benign", "all_sets_of_heads")
    figures += ("attention_from_last_position", "attention_shift", "circuit_backdoor", "neurons", "specificity")
    tables = {"head_attribution.csv", "head_patching.csv", "head_shapley.csv", "tables.md", "summary.json"}
    tables |= {"path_patching.csv", "attention.csv", "head_specificity.csv", "neurons.csv", "progress_measures.csv"}
    assert files == tables | {f"figures/{name}.{kind}" for name in figures for kind in ("png", "svg")}
    rows = read_rows(out / "head_patching.csv")
    assert len(rows) == 2 * 3 * 16 and {row["step"] for row in rows} == {"120"}
    rows = read_rows(out / "head_shapley.csv")
    assert len(rows) == 2 * 3 * (4 + 6)

    before = contents(out)
    assert cli("analyze", "--ckpt_path", last, "--output_dir", "out") == 2
    assert contents(out) == before
    for args in (
        ("--ckpt_path", "missing.ckpt", "--output_dir", "new"),
        ("--output_dir", "new"),
        ("--ckpt_path", last),
        ("--ckpt_path", last, "--output_dir", "new", "--colour", "red"),
        ("--ckpt_path", last, "--output_dir", last / "new"),
    ):
        capsys.readouterr()
        assert cli("analyze", *args) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
        assert not Path("new").exists()
    assert cli("test", "--config", debug_config, "--ckpt_path", last, *QUIET) == 0
    printed = capsys.readouterr().out
    assert "smallest set" in printed and "step 120" in printed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run of one step."""
    run = train_run(tmp_path_factory.mktemp("spoilt") / "runs" / "one_step", "--trainer.max_steps=1")
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda weights: weights.pop("model.embed.W_E"), "lacks the weight embed.W_E"),
        (lambda weights: weights["model.embed.W_E"].fill_(float("nan")), "not finite"),
        (lambda weights: weights.update({"model.embed.W_E": torch.zeros(3, 3)}), "[3, 3] instead of"),
    ],
)
def test_spoilt_weights_are_refused_by_name(
    cli: Cli, checkpoint: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[dict], object], words: str
) -> None:
    spoilt = torch.load(checkpoint, weights_only=True)
    spoil(spoilt["state_dict"])
    torch.save(spoilt, "spoilt.ckpt")
    capsys.readouterr()
    assert cli("analyze", "--ckpt_path", "spoilt.ckpt", "--output_dir", "out") == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


def test_probes_with_the_same_roles_are_told_apart_by_their_names() -> None:
    """Of a task without rules; the roles here are those of a Probe to which nobody gave others."""
    probes = {"first": make_probe(0), "second": make_probe(1)}
    analysis = analyze_with(make_model(), ProbedTask("two things", probes), step=0)
    headings = re.findall(r"^## .*", analysis_markdown(analysis), re.MULTILINE)
    assert len(headings) == len(set(headings)) == 2 * 5  # patching, paths, attention, specificity, attribution
    for name in probes:
        assert sum(name in heading.lower() for heading in headings) == 5
    printed = analysis_summary(analysis, None).splitlines()
    for name in probes:
        patched, mechanism = (index for index, line in enumerate(printed) if line == f"{name}:")
        assert printed[patched + 1].startswith("donor heads patched into the recipient run")
        assert printed[mechanism + 1].startswith(f"smallest set that takes {name} down")
    figures = analysis_figures(analysis)
    for figure in ("all_sets_of_heads", "attention_from_last_position", "attention_shift"):
        titles = [axis.get_title() for axis in figures[figure].axes if axis.get_title()]
        assert [title.partition(":")[0] for title in titles] == list(probes), figure
