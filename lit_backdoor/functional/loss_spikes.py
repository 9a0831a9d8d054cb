"""The spikes of a loss curve, as in the paper's Figure 3: peaks of its logarithm, each with a prominence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import find_peaks

from lit_backdoor.functional.moments import check_steps

PROMINENCES = (0.5, 1.0, 2.0)
"""The prominences that spikes are counted at, in powers of ten."""


@dataclass(frozen=True)
class LossSpike:
    """One peak of the loss.

    Args:
        start_step: the first measurement from which on, until the peak, the loss is more than half-way up, in
            logarithms, from `base_loss` to `peak_loss`.
        peak_step: where it is highest.
        end_step: the first measurement after the peak at which it has come at least half-way back; None if the run
            ends before (censored).
        prominence: height of the peak above its base, in powers of ten.
        base_loss: of the lowest losses on either side of the peak, up to the next higher one, the higher. A peak
            that nothing came back from has only the lowest before it.
        peak_loss: the highest loss.
    """

    start_step: int
    peak_step: int
    end_step: int | None
    prominence: float
    base_loss: float
    peak_loss: float


def find_loss_spikes(steps: Sequence[int], losses: Sequence[float], prominence: float = 0.5) -> list[LossSpike]:
    """The peaks of log10(loss) with at least `prominence`, in ascending steps.

    The prominence is the topographer's: how far the loss must fall before it can rise above the peak. So a restless
    stretch is as many spikes as have peaks of their own, and a loss that falls throughout has none. Beyond the last
    measurement the loss counts as having come back: what is up at the end is a spike without an end. The first
    measurement is never a peak. Measurements that are not positive numbers are passed over; infinity is a peak.

    Args:
        steps: ascending.
        losses: natural units, not logarithms.
        prominence: in powers of ten, above 0.

    Raises:
        ValueError: the steps do not ascend, the lengths differ, or the prominence is not above 0.
    """
    check_steps(steps, losses)
    if not prominence > 0:
        raise ValueError(f"prominence is {prominence}: give powers of ten, above 0.")
    positive = np.asarray(losses, dtype=np.float64) > 0
    at = np.asarray(steps, dtype=np.int64)[positive]
    loss = np.asarray(losses, dtype=np.float64)[positive]
    logs = np.log10(loss)
    peaks, found = find_peaks(np.append(logs, -np.inf), prominence=prominence)
    spikes = []
    for peak, left, right in zip(peaks, found["left_bases"], found["right_bases"], strict=True):
        base = logs[left] if right == len(logs) else max(logs[left], logs[right])
        down = (logs <= (logs[peak] + base) / 2) & (logs < logs[peak])  # the second for an infinite peak
        before, after = np.flatnonzero(down[:peak]), np.flatnonzero(down[peak:])
        spikes.append(
            LossSpike(
                start_step=int(at[before[-1] + 1]),
                peak_step=int(at[peak]),
                end_step=int(at[peak + after[0]]) if len(after) else None,
                prominence=float(logs[peak] - base),
                base_loss=float(10.0**base),
                peak_loss=float(loss[peak]),
            )
        )
    return spikes
