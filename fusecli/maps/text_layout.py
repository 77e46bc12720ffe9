"""Text in pictures: measured before it is drawn, so that it fits, and never a missing glyph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

_OWN = "DejaVu Sans"  # comes with matplotlib
# Asked, where they are installed, for what it lacks.
FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Arial Unicode MS",
)
_SLACK = 1.02  # between measured and drawn


class Lettering:
    """Measures text of one size, in inches.

    Args:
        points: the size.
        bold: its weight.
    """

    def __init__(self, points: float, bold: bool = False) -> None:
        from matplotlib.font_manager import FontProperties, fontManager

        there = {font.name for font in fontManager.ttflist}
        families = [_OWN, *(name for name in FALLBACKS if name in there)]
        weight = "bold" if bold else "normal"
        self.font = FontProperties(family=families, size=points, weight=weight)
        self._each = [FontProperties(family=[name], weight=weight) for name in families]
        self.height = points * 1.3 / 72  # of a line

    @cached_property
    def _known(self) -> set[int]:
        from matplotlib.font_manager import findfont, get_font

        return {code for font in self._each for code in get_font(findfont(font)).get_charmap()}

    def safe(self, text: str) -> str:
        """Text with every character that no font has as its code point; drawing one would warn."""
        return "".join(c if ord(c) in self._known else _escaped(c) for c in text)

    def width(self, text: str) -> float:
        """Of safe text on one line."""
        from matplotlib.textpath import text_to_path

        if not text:
            return 0.0
        points: float = text_to_path.get_text_width_height_descent(text, self.font, False)[0]
        return points / 72 * _SLACK

    def fitted(self, text: str, room: float) -> str:
        """Safe text, its end left out where it is wider than the room."""
        text = self.safe(text)
        if self.width(text) <= room:
            return text
        low, high = 0, len(text)  # so many characters fit, so many do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.width(text[:middle] + "…") <= room else (low, middle)
        return text[:low] + "…"

    def wrapped(self, text: str, room: float) -> list[str]:
        """Safe text in lines that fit the room; a word that does not is cut."""
        lines: list[str] = []
        for word in self._words(text, room):
            if lines and self.width(f"{lines[-1]} {word}") <= room:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
        return lines

    def _words(self, text: str, room: float) -> Iterator[str]:
        for word in self.safe(text).split():
            yield self.fitted(word, room)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
