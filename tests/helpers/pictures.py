"""Whether figures are painted: that takes more than half of the time of a short run, an analysis or a report."""

from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLANK = {
    "png": b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
    ),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
}


@contextmanager
def blank_pictures() -> Iterator[None]:
    """Show a blank picture for each figure inside. Figures are still made, logged at their steps and written."""
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import writer

    @wraps(Figure.savefig)
    def blank_file(figure: "Figure", file: IO[bytes], format: str, **options: Any) -> None:
        file.write(BLANK[format])

    @wraps(writer.figure_to_image)
    def blank_image(figures: "Figure", close: bool = True) -> np.ndarray:
        return np.zeros((3, 1, 1), dtype=np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", blank_file)
        patch.setattr(writer, "figure_to_image", blank_image)
        yield


@contextmanager
def painted_pictures() -> Iterator[None]:
    """Show figures as they are, within :func:`blank_pictures`."""
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import writer

    painters: tuple[Any, Any] = (Figure.savefig, writer.figure_to_image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", painters[0].__wrapped__)
        patch.setattr(writer, "figure_to_image", painters[1].__wrapped__)
        yield
