"""What loggers show beside numbers: one function for each kind, and the only place that knows loggers by name.

A logger that can't show something (CSVLogger, MLFlowLogger) is passed over; the files of the run have it all.
"""

from typing import TYPE_CHECKING

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lit_backdoor.callbacks.charts import Charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def show_figure(logger: Logger, tag: str, figure: "Figure", step: int) -> None:
    """A figure, as it is at ``step``."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(tag, figure, step, close=False)
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [figure], step=step)


def show_text(logger: Logger, tag: str, markdown: str, step: int) -> None:
    """A text in Markdown, as it is at ``step``."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(tag, markdown, step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(tag, columns=["step", "text"], data=[[str(step), markdown]], step=step)


def show_charts(logger: Logger, charts: Charts) -> None:
    """Which curves share a chart. Only TensorBoard is told: elsewhere, charts are put together by hand."""
    if isinstance(logger, TensorBoardLogger) and charts:
        logger.experiment.add_custom_scalars(
            {
                category: {title: ["Multiline", patterns] for title, patterns in by_title.items()}
                for category, by_title in charts.items()
            }
        )
