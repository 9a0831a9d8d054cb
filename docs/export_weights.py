"""Keep the weights of a run's last checkpoint alone: python docs/export_weights.py RUN_DIR FILE.safetensors

The weights that ship are lit_backdoor/pretrained/*.safetensors. A weights.safetensors in a run directory stands in for
its checkpoints in a report; so does a weights.yaml with `pretrained: mod1`, where the weights are those that ship.
"""

import argparse
from pathlib import Path

import yaml

from lit_backdoor.pretrained import save_pretrained
from lit_backdoor.runs.checkpoints import read_checkpoint


def main() -> None:
    """Read one run and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.run_dir / "checkpoints" / "last.ckpt")
    seed = yaml.safe_load((args.run_dir / "hparams.yaml").read_text())["seed_everything"]
    save_pretrained(checkpoint, seed, args.file)


if __name__ == "__main__":
    main()
