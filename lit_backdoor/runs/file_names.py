"""The name of every file in a run directory."""

METRICS = "metrics.csv"
HEAD_ATTRIBUTION = "head_attribution.csv"
HEAD_PATCHING = "head_patching.csv"
PATH_PATCHING = "path_patching.csv"
ATTENTION = "attention.csv"
HEAD_SPECIFICITY = "head_specificity.csv"
NEURONS = "neurons.csv"
PROGRESS_MEASURES = "progress_measures.csv"
REMOVAL = "removal.csv"
"""Only from ``analyze --removal``."""
SUMMARY = "summary.json"
"""Only from ``analyze``, which writes it first."""
LOSS_SPIKES = "loss_spikes.csv"
EMERGENCE = "emergence.json"

CONFIG = "config.yaml"
HPARAMS = "hparams.yaml"
ENVIRONMENT = "environment.json"
BRANCH = "branch.json"
"""Only in a branch: which run it leaves, and where; see :mod:`lit_backdoor.runs.branch`."""
EVENTS_PREFIX = "events.out.tfevents."
"""What the names of TensorBoard's files begin with; the second in which each was made follows."""

CHECKPOINT_DIR = "checkpoints"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
"""The last.ckpt before the present one, in case that is damaged."""
STEP_CHECKPOINTS = "step_*.ckpt"
WEIGHTS_DIR = f"{CHECKPOINT_DIR}/weights"
STEP_WEIGHTS = "step_*.safetensors"
"""Weights alone, small, from which monitors can be replayed."""
WEIGHTS = "weights.safetensors"
"""The weights of a run whose checkpoints are not kept, from ``docs/export_weights.py``."""
SHIPPED_WEIGHTS = "weights.yaml"
"""Instead of them, ``pretrained: NAME`` where the same weights ship with the package."""

EXPORTED_WEIGHTS = "model.safetensors"
"""What ``analyze --export`` writes, and ``load_pretrained`` reads from a folder."""
EXPORTED_CONFIG = "config.json"
"""The description in those weights, to be read by people."""

LOCK = ".lock"
REPLAY_DIR = "replay"
"""Where the replayed monitors of a run write."""
REPLAYED_MONITORS = "monitors.yaml"
"""Which monitors those are, and over the weights of which run."""
RECORDED = "recorded.pt"
"""How far a Recorder has come, and what its monitors have to remember."""
RECORDED_METRICS = "recorded_metrics.csv"
"""The metrics that a Recorder was given."""


def step_checkpoint(step: int) -> str:
    """Name the checkpoint that is kept of ``step`` optimizer steps.

    >>> step_checkpoint(5000)
    'step_005000.ckpt'
    """
    return STEP_CHECKPOINTS.replace("*", f"{step:06d}")


def step_weights(step: int) -> str:
    """Name the weights that are kept of ``step`` optimizer steps.

    >>> step_weights(400)
    'step_000400.safetensors'
    """
    return STEP_WEIGHTS.replace("*", f"{step:06d}")


def continued(file_name: str, step: int) -> str:
    """Name the file that a run writes beside its first one when it continues from ``step``.

    >>> continued("config.yaml", 250)
    'config_from_step_250.yaml'
    """
    stem, dot, ending = file_name.rpartition(".")
    return f"{stem}_from_step_{step}{dot}{ending}"


def branch_of(run: str, name: str) -> str:
    """Name the folder of a branch, beside the run that it leaves.

    >>> branch_of("version_0", "zero")
    'version_0_branch_zero'
    """
    return f"{run}_branch_{name}"


def of_monitor(file_name: str, monitor: str) -> str:
    """Name the file of a monitor that has a name.

    >>> of_monitor("emergence.json", "rule2")
    'emergence_rule2.json'
    >>> of_monitor("emergence.json", "")
    'emergence.json'
    """
    stem, dot, ending = file_name.rpartition(".")
    return f"{stem}_{monitor}{dot}{ending}" if monitor else file_name
