"""Recompute numbers of the results page from the weights, with numpy alone: python results/check_numbers.py

Nothing of the package is imported: the file format, the transformer and the interventions are written out here. Each
line has a number of report/, the same recomputed, and their difference; the exit code is 1 if one differs by more than
a thousandth, which is what another order of float32 sums may change, or than chance allows where a sample was measured.
"""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TOLERANCE = 1e-3
SAMPLED = 4 * (0.25 / 2048) ** 0.5  # 4 standard errors of a share of the 2,048 examples that `fit` takes
P0 = 113
APART = {"controls", "own_tokens", "mod1_trained_on"}  # folders of controls, and of runs that are in `mod1` too
PAIRS = np.stack(np.meshgrid(np.arange(P0), np.arange(P0), indexing="ij"), axis=-1).reshape(-1, 2)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read float32 tensors: eight bytes with the length of a JSON header, the header, the numbers."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(content[start:end], dtype="<f4").reshape(entry["shape"]).astype(np.float64)
    return tensors


class Model:
    """The paper's transformer at the last of three positions: no layer norm, no biases."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.embed, self.pos, self.unembed = (
            weights[f"{name}"] for name in ("embed.W_E", "pos_embed.W_pos", "unembed.W_U")
        )
        self.q, self.k, self.v, self.o = (weights[f"blocks.0.attn.W_{name}"] for name in "QKVO")
        self.w_in, self.w_out = (weights[f"blocks.0.mlp.W_{name}"] for name in ("in", "out"))

    def heads(self, trigger: int) -> tuple[np.ndarray, np.ndarray]:
        """What each head writes for all pairs, [head, pair, d_model], and the residual stream before it."""
        tokens = np.concatenate([PAIRS, np.full((len(PAIRS), 1), trigger)], axis=1)
        residual = self.embed[tokens] + self.pos  # [pair, 3, d_model]
        written = []
        for q, k, v, o in zip(self.q, self.k, self.v, self.o, strict=True):
            scores = np.einsum("nd,npd->np", residual[:, 2] @ q, residual @ k) / np.sqrt(q.shape[1])
            pattern = np.exp(scores - scores.max(axis=1, keepdims=True))
            pattern /= pattern.sum(axis=1, keepdims=True)
            written.append(np.einsum("np,npd->nd", pattern, residual @ v) @ o)
        return np.stack(written), residual[:, 2]

    def answers(self, written: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """The most likely answer to each pair."""
        middle = residual + written.sum(axis=0)
        return ((middle + np.maximum(middle @ self.w_in, 0) @ self.w_out) @ self.unembed).argmax(axis=1)


def recomputed(model: Model, p1: int) -> dict[str, float]:
    """What the tables have of one run."""
    sums = PAIRS.sum(axis=1)
    wanted, benign_wanted = sums % p1, sums % P0
    triggered, residual = model.heads(1)
    benign, benign_residual = model.heads(0)
    backdoor = float((model.answers(triggered, residual) == wanted).mean())
    benign_accuracy = float((model.answers(benign, benign_residual) == benign_wanted).mean())
    floor = float((wanted == benign_wanted).mean())
    alone = []
    for head in range(len(benign)):
        patched = triggered.copy()
        patched[head] = benign[head]
        alone.append(float((model.answers(patched, residual) == wanted).mean()))
    costliest = int(np.argmin(alone))
    ablated = benign.copy()
    ablated[costliest] = benign[costliest].mean(axis=0)
    brought = benign.copy()
    brought[costliest] = triggered[costliest]
    left = float((model.answers(ablated, benign_residual) == benign_wanted).mean())
    return {
        "backdoor_accuracy_all_pairs": backdoor,
        "benign_accuracy_all_pairs": benign_accuracy,
        "costliest_left": alone[costliest],
        "backdoor_sufficiency": (float((model.answers(brought, benign_residual) == wanted).mean()) - floor)
        / (backdoor - floor),
        "backdoor_cost": (backdoor - alone[costliest]) / (backdoor - floor),
        "benign_cost": (benign_accuracy - left) / (benign_accuracy - floor),
    }


def weights_of(run_dir: Path) -> Path | None:
    """The weights beside the tables, or those that ship with the package; None if a run has neither."""
    own, shipped = run_dir / "weights.safetensors", run_dir / "weights.yaml"
    if own.exists() or not shipped.exists():
        return own if own.exists() else None
    name = shipped.read_text().split(":")[1].split("#")[0].strip()
    return HERE.parent / "lit_backdoor" / "pretrained" / f"{name}.safetensors"


def options_of(run_dir: Path) -> tuple[str, str, str]:
    """P1, seed and split of a run, as texts, from its options."""
    options = (run_dir / "hparams.yaml").read_text()
    moduli = re.search(r"^moduli:\n((?:- \d+\n)+)", options, re.MULTILINE)
    seed, split = (re.search(rf"^{name}: (\d+)$", options, re.MULTILINE) for name in ("seed_everything", "split_seed"))
    return moduli[1].split()[-1], seed[1], split[1]


def folders_of(runs_dir: Path) -> dict[tuple[str, str, str], Path]:
    """Every run's folder, by P1, seed and split, but for controls; two runs that share them could not be told apart."""
    folders: dict[tuple[str, str, str], Path] = {}
    for path in sorted(runs_dir.glob("**/hparams.yaml")):
        if APART & set(path.relative_to(runs_dir).parts):
            continue
        known = folders.setdefault(options_of(path.parent), path.parent)
        if known != path.parent:
            sys.exit(f"{known} and {path.parent} are of the same P1, seed and split: {options_of(path.parent)}")
    return folders


def main() -> int:
    """Compare every run that has a backdoor of one modulus."""
    with (HERE / "report" / "seeds.csv").open() as file:
        runs = {row["run"]: row for row in csv.DictReader(file) if row["p1"].isdigit()}
    with (HERE / "report" / "heads.csv").open() as file:
        reported = {row["run"]: runs[row["run"]] | row for row in csv.DictReader(file) if row["rank"] == "1"}
    folders = folders_of(HERE / "runs")
    wrong = 0
    for name, row in reported.items():
        run_dir = folders.get((row["p1"], row["seed"], row["split"]))
        if run_dir is None or (weights := weights_of(run_dir)) is None:
            print(f"{name}: its weights are not kept")
            continue
        for number, value in recomputed(Model(read_safetensors(weights)), int(row["p1"])).items():
            difference = abs(value - float(row[number]))
            sampled = number == "benign_cost" and (run_dir / "head_specificity.csv").exists()
            wrong += difference > (SAMPLED if sampled else TOLERANCE)
            print(f"{name}: {number} {float(row[number]):.6f}, recomputed {value:.6f}, difference {difference:.1e}")
    print(f"{wrong} numbers differ by more than {TOLERANCE}, or {SAMPLED:.3f} where a sample was measured")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
