"""Many runs of ``fit``: planned, run side by side on this machine or a Slurm cluster, watched, and continued.

What is done and what is not is read from the run directories alone, so a sweep that was interrupted is started again
with the same command.
"""

from lit_backdoor.sweep.branches import plan_branches
from lit_backdoor.sweep.engines import Command, Engine, LocalEngine, SlurmEngine
from lit_backdoor.sweep.plan import (
    JOBS_DIR,
    PlannedRun,
    parse_seeds,
    parse_settings,
    plan_runs,
)
from lit_backdoor.sweep.reproduction import SPLIT, Part, declared_parts, until
from lit_backdoor.sweep.same_options import require_same_options, watched_otherwise
from lit_backdoor.sweep.scheduler import known_jobs, run_all

__all__ = [
    "JOBS_DIR",
    "SPLIT",
    "Command",
    "Engine",
    "LocalEngine",
    "Part",
    "PlannedRun",
    "SlurmEngine",
    "declared_parts",
    "known_jobs",
    "parse_seeds",
    "parse_settings",
    "plan_branches",
    "plan_runs",
    "require_same_options",
    "run_all",
    "until",
    "watched_otherwise",
]
