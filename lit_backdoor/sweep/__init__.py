"""Many runs of ``fit``: planned, run side by side on this machine or a Slurm cluster, watched, and continued.

What is done and what is not is read from the run directories alone, so a sweep that was interrupted is started again
with the same command.
"""

from lit_backdoor.sweep.engines import Engine, LocalEngine, SlurmEngine
from lit_backdoor.sweep.plan import PlannedRun, parse_seeds, parse_settings, plan_runs
from lit_backdoor.sweep.scheduler import run_all

__all__ = [
    "Engine",
    "LocalEngine",
    "PlannedRun",
    "SlurmEngine",
    "parse_seeds",
    "parse_settings",
    "plan_runs",
    "run_all",
]
