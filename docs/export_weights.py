"""Make the weights that ship from a run: python docs/export_weights.py RUN_DIR NAME

Writes lit_backdoor/pretrained/NAME.safetensors from the run's last checkpoint.
"""

import argparse
from pathlib import Path

import yaml

from lit_backdoor.checkpoints import read_checkpoint
from lit_backdoor.pretrained import FOLDER, save_pretrained


def main() -> None:
    """Read one run and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("name")
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.run_dir / "checkpoints" / "last.ckpt")
    seed = yaml.safe_load((args.run_dir / "hparams.yaml").read_text())["seed_everything"]
    save_pretrained(checkpoint, seed, FOLDER / f"{args.name}.safetensors")


if __name__ == "__main__":
    main()
