"""Parse pages for tests: elements with attributes, and links."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

ADDRESSES = {"href", "src"}


class Page(HTMLParser):
    """The elements of a page in order, and its text without scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._within: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._within):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def addresses(self) -> list[str]:
        return [
            value
            for _, attributes in self.elements
            for name, value in attributes.items()
            if name in ADDRESSES and value
        ]

    @property
    def ids(self) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get("id"))]


def read_pages(folder: Path) -> dict[str, Page]:
    """Path below `folder` to page."""
    return {path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html")}


def local_target(page: Page, address: str) -> tuple[Path, str] | None:
    """Return the local file and fragment of a link; None for other sites."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    file = (page.path.parent / parts.path).resolve() if parts.path else page.path
    return file, parts.fragment
