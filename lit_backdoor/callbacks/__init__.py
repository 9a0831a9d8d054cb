"""Callbacks for the Lightning Trainer. The monitors know only the contract of ``lit_backdoor.functional``."""

from lit_backdoor.callbacks.attribution import HeadAttributionMonitor
from lit_backdoor.callbacks.checkpoint import RunCheckpoint, TrainingInterrupted
from lit_backdoor.callbacks.clamp import HeadClamp
from lit_backdoor.callbacks.emergence import EmergenceMonitor
from lit_backdoor.callbacks.patching import HeadPatchingMonitor
from lit_backdoor.callbacks.probing import ProbeCallback
from lit_backdoor.callbacks.progress import StepProgressBar
from lit_backdoor.callbacks.recorder import Recorder
from lit_backdoor.callbacks.run import ContractError
from lit_backdoor.callbacks.schedule import Schedule
from lit_backdoor.callbacks.spikes import LossSpikeMonitor
from lit_backdoor.callbacks.weights import WeightCheckpoint

__all__ = [
    "ContractError",
    "EmergenceMonitor",
    "HeadAttributionMonitor",
    "HeadClamp",
    "HeadPatchingMonitor",
    "LossSpikeMonitor",
    "ProbeCallback",
    "Recorder",
    "RunCheckpoint",
    "Schedule",
    "StepProgressBar",
    "TrainingInterrupted",
    "WeightCheckpoint",
]
