"""The report as a page: sections of text, tables and figures, rendered as HTML and as Markdown."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from lit_backdoor.report.finding import Finding
from lit_backdoor.report.tables import Table
from lit_backdoor.report.wording import Highlighted

VERDICTS = {
    "agrees": "agrees with the paper",
    "differs": "differs from the paper",
    "open": "open",
    "new": "not in the paper",
}


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        name: of its files in ``figures/``.
        figure: what is drawn.
        caption: what it shows, and how to read it.
        size: ``wide`` pictures scroll sideways on a phone, ``half`` ones stand side by side on a laptop.
    """

    name: str
    figure: Figure
    caption: str
    size: str = "wide"


@dataclass(frozen=True)
class Section:
    """A chapter: paragraphs, then tables, then pictures."""

    anchor: str
    title: str
    paragraphs: Sequence[str]
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def html(
    title: str, lead: str, findings: Sequence[Finding], sections: Sequence[Section], svgs: Mapping[str, bytes]
) -> str:
    """One file that loads nothing; ``svgs`` are the pictures' files by name. Everything but the markup is escaped."""
    environment = Environment(
        loader=PackageLoader("lit_backdoor.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["highlighted"] = lambda cell: isinstance(cell, Highlighted)
    sources = {name: "data:image/svg+xml;base64," + base64.b64encode(svg).decode() for name, svg in svgs.items()}
    template = environment.get_template("page.html")
    return template.render(
        title=title, lead=lead, findings=findings, sections=sections, sources=sources, verdicts=VERDICTS
    )


def markdown(title: str, lead: str, findings: Sequence[Finding], sections: Sequence[Section]) -> str:
    """The same in Markdown, with the pictures in ``figures/``; text from files can't become markup or links."""
    lines = [f"# {_plain(title)}", "", _plain(lead), "", "## Verdicts", ""]
    for one in findings:
        lines += [_plain(f"- **{one.title}** ({VERDICTS[one.verdict]}). {one.headline} {one.text}")]
    for section in sections:
        lines += ["", f"## {section.title}", ""]
        for paragraph in section.paragraphs:
            lines += [_plain(paragraph), ""]
        for table in section.tables:
            lines += [_plain(table.caption), "", _harmless(table.markdown()), ""]
        for picture in section.pictures:
            lines += [f"![{picture.name}](figures/{picture.name}.png)", "", _plain(f"*{picture.caption}*"), ""]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    return " ".join(_harmless(text).split())


def _harmless(text: str) -> str:
    return text.replace("<", "&lt;").replace("](", "]\\(")
