"""Where the runs of a sweep are computed: processes of this machine, or jobs of a Slurm cluster; both by submitit."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit

from lit_backdoor.sweep.plan import PlannedRun

FOREVER_MINUTES = 60 * 24 * 365
NEVER_GIVE_UP = 1000


Command = Callable[[Sequence[str]], int]
"""The command line: arguments in, exit code out. It travels to the job by its import path."""


class FitJob:
    """What a job does: start a run, or continue it from where its checkpoint stands when the job starts."""

    def __init__(self, run: PlannedRun, command: Command, own_signals: bool) -> None:
        self.run = run
        self.command = command
        self.own_signals = own_signals

    def __call__(self) -> None:
        """Raises ``RuntimeError`` unless ``fit`` ends well."""
        if self.own_signals:  # SIGTERM is fit's: it saves; submitit would pass over it
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if code := self.command(self.run.arguments()):
            raise RuntimeError(f"fit ended with exit code {code}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called by submitit when a cluster takes the machine away: the same job, to be put in the queue again."""
        return submitit.helpers.DelayedSubmission(self)


class Engine:
    """Starts runs as jobs, and tells which are alive.

    Args:
        folder: for submitit's files and the jobs' output.
        command: the command line that a job calls.
    """

    name: str
    own_signals: bool

    def __init__(self, folder: Path, command: Command) -> None:
        self.folder = folder
        self.command = command
        self._own: dict[str, submitit.Job[None]] = {}  # submitted by this process

    def executor(self) -> submitit.Executor:
        """A submitit executor with all parameters set."""
        raise NotImplementedError

    def submit(self, run: PlannedRun) -> str:
        """Start a job; its id."""
        with _sigint_ignored():
            job = self.executor().submit(FitJob(run, self.command, self.own_signals))
        self._own[job.job_id] = job
        return job.job_id

    def alive(self, job_ids: Collection[str]) -> set[str]:
        """Those of the jobs that wait or run."""
        raise NotImplementedError

    def stop(self, job_ids: Collection[str]) -> None:
        """Ask jobs to save and end."""
        raise NotImplementedError

    def last_words(self, job_id: str) -> str:
        """What a job said last: one line, for the user."""
        for kind in ("err", "out"):
            path = self.folder / f"{job_id}_0_log.{kind}"
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            errors = [line for line in lines if line.startswith("error:")]
            spoken = errors or [line for line in lines if line.strip() and not line.startswith("submitit")]
            if spoken:
                return f"{spoken[-1].strip()} (all of it: {path})"
        return "it left no word; it was killed"


class LocalEngine(Engine):
    """Processes of this machine.

    Args:
        folder: for submitit's files and the jobs' output.
        command: the command line that a job calls.
        threads: CPU threads per job.
        gpus: how many GPUs the jobs see; they share them.
    """

    name = "local"
    own_signals = True

    def __init__(self, folder: Path, command: Command, threads: int, gpus: int = 0) -> None:
        super().__init__(folder, command)
        self.threads = threads
        self.gpus = gpus

    def executor(self) -> submitit.Executor:
        executor = submitit.LocalExecutor(self.folder)
        executor.update_parameters(timeout_min=FOREVER_MINUTES, gpus_per_node=self.gpus)
        return executor

    def submit(self, run: PlannedRun) -> str:
        with _environment(OMP_NUM_THREADS=str(self.threads), MKL_NUM_THREADS=str(self.threads)):
            return super().submit(run)

    def alive(self, job_ids: Collection[str]) -> set[str]:
        own = {job_id for job_id in job_ids if job_id in self._own and not self._own[job_id].done()}
        others = [job_id for job_id in job_ids if job_id not in self._own]
        return own | (self._found(others) if others else set())

    def _found(self, job_ids: Collection[str]) -> set[str]:
        """Those that an earlier sweep left behind and that still run; a process number may be somebody else's now."""
        command = ["ps", "-ww", "-o", "pid=,args=", "-p", ",".join(job_ids)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        return {line.split()[0] for line in listed if "submitit.local" in line and str(self.folder) in line}

    def stop(self, job_ids: Collection[str]) -> None:
        for job_id in self.alive(job_ids):
            os.kill(int(job_id), signal.SIGTERM)  # submitit's controller passes it on to fit


class SlurmEngine(Engine):
    """Jobs of a Slurm cluster. A job that is preempted or runs out of time is queued again, and continues.

    Args:
        folder: for submitit's files and the jobs' output; the nodes must see it.
        command: the command line that a job calls.
        minutes: time limit of a job.
        partition: where to run; the cluster's default if not given.
        cpus: CPUs per job.
        gpus: GPUs per job.
    """

    name = "slurm"
    own_signals = False

    def __init__(
        self,
        folder: Path,
        command: Command,
        minutes: int,
        partition: str | None = None,
        cpus: int = 2,
        gpus: int = 0,
    ) -> None:
        super().__init__(folder, command)
        for program in ("sbatch", "srun", "squeue"):
            if shutil.which(program) is None:
                raise ValueError(f"engine: slurm needs {program}, which is not on this machine; use local")
        self.parameters: dict[str, Any] = {"time": minutes, "cpus_per_task": cpus}
        if partition is not None:
            self.parameters["partition"] = partition
        if gpus:
            self.parameters["gpus_per_node"] = gpus

    def executor(self) -> submitit.Executor:
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=NEVER_GIVE_UP, python=sys.executable)
        executor.update_parameters(
            job_name="lit_backdoor",
            setup=["export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK MKL_NUM_THREADS=$SLURM_CPUS_PER_TASK"],
            **self.parameters,
        )
        return executor

    def alive(self, job_ids: Collection[str]) -> set[str]:
        if not job_ids:
            return set()
        listed = subprocess.run(["squeue", "-h", "-o", "%i", "--me"], capture_output=True, text=True, check=False)
        if listed.returncode:  # the controller can't be reached for a moment: no verdict on anybody
            return set(job_ids)
        return set(job_ids) & set(listed.stdout.split())

    def stop(self, job_ids: Collection[str]) -> None:
        """Nothing: jobs of a cluster go on without the sweep, which finds them again."""


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Children started inside inherit these variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Children started inside pass over a Ctrl-C in the terminal: the sweep tells them itself to stop."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
