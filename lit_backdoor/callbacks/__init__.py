"""Callbacks for the Lightning Trainer."""

from lit_backdoor.callbacks.checkpoint import RunCheckpoint, TrainingInterrupted
from lit_backdoor.callbacks.progress import StepProgressBar

__all__ = ["RunCheckpoint", "StepProgressBar", "TrainingInterrupted"]
