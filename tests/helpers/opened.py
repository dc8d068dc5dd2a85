"""What an HTML report shows, read without a browser, and how it looks in one."""

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


def flaws(page) -> list:
    """What does not fit, touches something else, or is too pale to be read, in a browser."""
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return ["wider than the window"] * wide + page.evaluate(CONTRAST) + page.evaluate(OVERLAPS)


# Texts whose contrast to the page is below the 4.5 that WCAG asks for.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d");
  const rgb = (colour) => {
    canvas.fillStyle = colour;
    return [1, 3, 5].map((k) => parseInt(canvas.fillStyle.slice(k, k + 2), 16) / 255);
  };
  const light = (colour) => rgb(colour)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const paper = (e) => {
    const own = getComputedStyle(e).backgroundColor;
    return own === "rgba(0, 0, 0, 0)" && e.parentElement ? paper(e.parentElement) : own;
  };
  const found = [];
  for (const e of document.querySelectorAll("body *:not(script)")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const pair = [light(e.matches("text") ? style.fill : style.color), light(paper(e))].sort();
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (!(ratio >= 4.5)) found.push([e.textContent.slice(0, 40), ratio]);
  }
  return found;
}"""

# Pairs of texts in a plot that touch, and texts that leave it.
OVERLAPS = """() => {
  const found = [];
  for (const plot of document.querySelectorAll("details[open] svg")) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]);
    texts.forEach(([a, box], k) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.bottom > frame.bottom + 1)
        found.push([a.textContent, "leaves the plot"]);
      for (const [b, other] of texts.slice(k + 1)) {
        const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
        if (across > 0 && down > 3) found.push([a.textContent, b.textContent]);
      }
    });
  }
  return found;
}"""
