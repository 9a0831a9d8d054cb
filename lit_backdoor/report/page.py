"""One page, written once: report.md.j2 gives the Markdown, and that the HTML."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from lit_backdoor.show.markdown import markdown_table

VERDICTS = ("agrees", "differs", "inconclusive", "no verdict")


class Markdown(str):
    """Text that is Markdown already. Everything else is escaped."""


def escaped(text: object) -> Markdown:
    """Text from files on one line, so that it can't become markup, a link or another paragraph."""
    if isinstance(text, Markdown):
        return text
    plain = " ".join(str(text).split()).replace("\\", "\\\\").replace("<", "&lt;").replace("](", "]\\(")
    return Markdown(re.sub(r"([`*])", r"\\\1", plain))


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> Markdown:
    """A Markdown table, its cells escaped."""
    return Markdown(
        markdown_table([escaped(cell) for cell in header], [[escaped(cell) for cell in row] for row in rows])
    )


def bold(text: object) -> Markdown:
    """A cell that stands out."""
    return Markdown(f"**{escaped(text)}**")


def pictures(names: Sequence[str]) -> Markdown:
    """Figures in one paragraph; on the page several of them stand side by side."""
    return Markdown("\n".join(f"![{name}](figures/{name}.svg)" for name in names))


def markdown(values: Mapping[str, Any]) -> str:
    """The page as Markdown, with the pictures in `figures/`."""
    environment = Environment(
        loader=PackageLoader("lit_backdoor.report", ""), finalize=escaped, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.md.j2").render(values)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def html(text: str, svgs: Mapping[str, bytes]) -> str:
    """The same as one HTML file that loads nothing: `svgs`, by their names, are in it."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    for rule, render in (("image", _image), ("table_open", _table), ("table_close", _table), ("strong_open", _strong)):
        parser.add_render_rule(rule, render)
    headings: dict[str, str] = {}

    def heading(renderer: RendererHTML, tokens: Sequence[Token], index: int, *_: object) -> str:
        title = tokens[index + 1].content
        anchor = re.sub(r"\W+", "-", title.lower()).strip("-")
        if tokens[index].tag == "h2":
            headings[anchor] = title
        return f'<{tokens[index].tag} id="{anchor}">'

    parser.add_render_rule("heading_open", heading)
    sources = {f"figures/{name}.svg": base64.b64encode(svg).decode() for name, svg in svgs.items()}
    body = parser.render(text, {"sources": sources})
    page = Environment(loader=PackageLoader("lit_backdoor.report", ""), autoescape=True, undefined=StrictUndefined)
    title = text.partition("\n")[0].removeprefix("# ")
    head, rest = body.split("</h1>", 1)
    return page.get_template("page.html.j2").render(title=title, heading=head + "</h1>", body=rest, headings=headings)


def _image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: object, env: Mapping[str, Any]) -> str:
    source, name = str(tokens[index].attrs["src"]), tokens[index].content
    return f'<img src="data:image/svg+xml;base64,{env["sources"][source]}" alt="{name}">'


def _table(renderer: RendererHTML, tokens: Sequence[Token], index: int, *_: object) -> str:
    return '<div class="scroll"><table>' if tokens[index].nesting == 1 else "</table></div>\n"


def _strong(renderer: RendererHTML, tokens: Sequence[Token], index: int, *_: object) -> str:
    word = tokens[index + 1].content
    return f'<strong class="{word.replace(" ", "-")}">' if word in VERDICTS else "<strong>"
