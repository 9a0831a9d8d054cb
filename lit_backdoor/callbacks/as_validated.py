"""What monitors measure in a Trainer: the weights, and the precision, that it validates."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging


def averaging_callbacks(trainer: Trainer) -> list[WeightAveraging]:
    """The callbacks that validate averages of the weights; there is one at most, in sensible use."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


def let_averages_come_first(trainer: Trainer) -> None:
    """Have averages brought up to date before anybody measures them: the callbacks that do come first."""
    averaging = averaging_callbacks(trainer)
    if averaging:  # a new list: Lightning may be walking through the present one, in `setup`
        others = [callback for callback in trainer.callbacks if callback not in averaging]  # type: ignore[attr-defined]
        trainer.callbacks = [*averaging, *others]  # type: ignore[attr-defined]


@contextmanager
def as_validated(trainer: Trainer) -> Iterator[None]:
    """Inside, the module has the weights that are validated: averages, where a WeightAveraging callback makes some.

    Passes run in the precision of a validation step, under autocast for instance.
    """
    module = trainer.lightning_module
    with ExitStack() as stack:
        for callback in averaging_callbacks(trainer):
            callback.on_validation_epoch_start(trainer, module)
            stack.callback(callback.on_validation_epoch_end, trainer, module)
        stack.enter_context(trainer.precision_plugin.val_step_context())
        yield
