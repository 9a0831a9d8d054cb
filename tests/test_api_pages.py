"""The API pages are built by the command that CONTRIBUTING.md names, and no link of theirs is broken."""

import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers import ROOT


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            if name == "href" and value:
                self.links.append(value)


@pytest.mark.slow
def test_the_pages_have_no_broken_links(tmp_path: Path) -> None:
    (command,) = re.findall(r"`\.venv/bin/(pdoc .*)`", (ROOT / "CONTRIBUTING.md").read_text())
    words = [str(tmp_path) if word == "site" else word for word in shlex.split(command)]
    subprocess.run([sys.executable, "-m", *words], check=True, cwd=ROOT, timeout=300)
    pages = {path.resolve(): Page(path) for path in tmp_path.rglob("*.html")}
    names = {path.relative_to(tmp_path.resolve()).as_posix() for path in pages}
    assert {"lit_backdoor.html", "lit_backdoor/callbacks.html", "lit_backdoor/functional.html"} <= names
    broken = []
    for path, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = (path.parent / file).resolve() if file else path
            known = target in pages and (not anchor or anchor in pages[target].anchors)
            if not (known or (target.is_file() and not anchor)):
                broken.append((path.name, link))
    assert not broken
