"""What an HTML report shows, read without a browser."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """The elements of a page with their texts."""

    VOID = frozenset({"meta", "br", "img", "input", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict, list[str]]] = []
        self._open: list[tuple[str, dict, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.found.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs), []))

    def handle_data(self, data):
        for _, _, text in self._open:
            text.append(data)

    def select(self, tag: str, name: str = "") -> list[str]:
        """The texts of all elements of a kind, of a class if one is given."""
        return [
            " ".join("".join(text).split())
            for found, attributes, text in self.found
            if found == tag and (not name or name in (attributes.get("class") or "").split())
        ]

    def checks(self) -> list[tuple[str, str]]:
        """Verdict and test of every check."""
        verdicts = [
            attributes["class"].split()[1]
            for tag, attributes, _ in self.found
            if tag == "details" and "check" in (attributes.get("class") or "").split()
        ]
        return list(zip(verdicts, self.select("h2"), strict=True))
