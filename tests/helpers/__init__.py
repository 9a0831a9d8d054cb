"""What several tests share, other than fixtures: models with known answers, oracles, and readers of a run's files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
QUIET = ("--trainer.enable_progress_bar", "false")
"""Options of `fit` without its progress bar."""
