"""The options that say where the runs of ``sweep`` and ``reproduce`` are computed."""

from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from lit_backdoor.functional.row_threads import at_most_omp, usable_cores
from lit_backdoor.sweep import JOBS_DIR, Command, Engine, LocalEngine, PlannedRun, SlurmEngine


def add_engine_options(options: ArgumentParser) -> None:
    """Where, how many at a time, and what each gets."""
    help_jobs = "Runs at a time; null: as many as there are CPU cores to use, on Slurm all."
    help_cpus = "CPUs per run; null: shared out, on Slurm 2, and no more than OMP_NUM_THREADS."
    options.add_argument(
        "--engine", type=Literal["local", "slurm"], default="local", help="This machine, or a cluster."
    )
    options.add_argument("--jobs", type=PositiveInt | None, default=None, help=help_jobs)
    options.add_argument("--partition", type=str | None, default=None, help="Slurm partition; null: the default one.")
    options.add_argument("--time", type=PositiveInt, default=240, help="Minutes until a Slurm job is queued again.")
    options.add_argument("--cpus", type=PositiveInt | None, default=None, help=help_cpus)
    options.add_argument(
        "--gpus", type=NonNegativeInt | None, default=None, help="GPUs per run; null: all, Slurm none."
    )


def make_engine(options: Namespace, output_dir: Path, runs: list[PlannedRun], command: Command) -> tuple[Engine, int]:
    """The engine, and how many runs it takes at a time.

    Args:
        command: the command line that its jobs call.

    Raises:
        ValueError: if it is not there, or can't work in that folder.
    """
    folder = output_dir / JOBS_DIR
    if "%" in str(folder.absolute()):
        raise ValueError(f"output_dir: {output_dir} has a % in its path, which Slurm would replace; choose another")
    if options.engine == "slurm":
        cpus = options.cpus or at_most_omp(2)
        slurm = SlurmEngine(folder, command, options.time, options.partition, cpus, options.gpus or 0)
        return slurm, options.jobs or len(runs)
    if options.partition is not None:
        raise ValueError(f"partition: {options.partition} is for --engine slurm")
    cores = usable_cores()
    jobs = options.jobs or cores
    threads = options.cpus or at_most_omp(max(cores // min(jobs, len(runs)), 1))
    gpus = torch.cuda.device_count() if options.gpus is None else options.gpus
    return LocalEngine(folder, command, threads, gpus), jobs
