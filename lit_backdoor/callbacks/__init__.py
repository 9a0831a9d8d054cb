"""Callbacks for the Lightning Trainer. The monitors know only the contract of ``lit_backdoor.functional``."""

from lit_backdoor.callbacks.attention import AttentionMonitor
from lit_backdoor.callbacks.attribution import HeadAttributionMonitor
from lit_backdoor.callbacks.checkpoint import RunCheckpoint, TrainingInterrupted
from lit_backdoor.callbacks.clamp import HeadClamp
from lit_backdoor.callbacks.emergence import EmergenceMonitor
from lit_backdoor.callbacks.neurons import NeuronMonitor
from lit_backdoor.callbacks.patching import HeadPatchingMonitor
from lit_backdoor.callbacks.paths import PathPatchingMonitor
from lit_backdoor.callbacks.probing import ProbeCallback
from lit_backdoor.callbacks.progress import StepProgressBar
from lit_backdoor.callbacks.progress_measures import ProgressMeasureMonitor
from lit_backdoor.callbacks.recorder import Recorder
from lit_backdoor.callbacks.run import ContractError
from lit_backdoor.callbacks.schedule import Schedule
from lit_backdoor.callbacks.specificity import SpecificityMonitor
from lit_backdoor.callbacks.spikes import LossSpikeMonitor
from lit_backdoor.callbacks.weights import WeightCheckpoint

__all__ = [
    "AttentionMonitor",
    "ContractError",
    "EmergenceMonitor",
    "HeadAttributionMonitor",
    "HeadClamp",
    "HeadPatchingMonitor",
    "LossSpikeMonitor",
    "NeuronMonitor",
    "PathPatchingMonitor",
    "ProbeCallback",
    "ProgressMeasureMonitor",
    "Recorder",
    "RunCheckpoint",
    "Schedule",
    "SpecificityMonitor",
    "StepProgressBar",
    "TrainingInterrupted",
    "WeightCheckpoint",
]
