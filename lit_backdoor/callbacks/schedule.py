"""When to measure and when to keep weights: one schedule for all."""

from lit_backdoor.limits import NonNegativeInt, PositiveInt, within_limits


class Schedule:
    """Steps at a fixed distance, and denser ones at the beginning.

    Due are 0, every multiple of ``every_n_steps``, and of the steps up to ``dense_until`` those that are equally spaced
    on a logarithmic scale, four to a doubling: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64,
    80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512 and so on. What follows a schedule is always due at the
    last step of training too, whatever its number. Where steps are passed over (several optimizers make several with
    one batch), the next one is due in their place.

    Args:
        every_n_steps: Optimizer steps between two that are due.
        dense_until: Optimizer step up to which the denser ones are due too; 0 for none.

    >>> [step for step in range(401) if Schedule(200, dense_until=20).is_due(step)]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 200, 400]
    """

    @within_limits
    def __init__(self, every_n_steps: PositiveInt = 100, dense_until: NonNegativeInt = 0) -> None:
        self.every_n_steps = every_n_steps
        self.dense_until = dense_until

    def is_due(self, step: int) -> bool:
        """Whether ``step`` is due."""
        return step % self.every_n_steps == 0 or (step <= self.dense_until and _is_dense(step))

    def has_come(self, seen_step: int, step: int) -> bool:
        """Whether a step that is due has come after ``seen_step``, up to ``step``."""
        return any(map(self.is_due, range(seen_step + 1, step + 1)))


def _is_dense(step: int) -> bool:
    """Whether ``step`` is 4, 5, 6 or 7 times a power of two, or smaller."""
    return step % (1 << max(step.bit_length() - 3, 0)) == 0
