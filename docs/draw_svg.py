"""What the pictures are made of: a card, texts, boxes and lines, in colors for light pages and for dark ones."""

LIGHT = {
    "card": "fill:#ffffff;stroke:#d0d7de", "box": "fill:#f6f8fa;stroke:#afb8c1", "ink": "fill:#1f2328",
    "dim": "fill:#59636e", "grid": "fill:none;stroke:#d8dee4", "edge": "fill:none;stroke:#6e7781",
    "hollow": "fill:#ffffff;stroke:#59636e", "event": "fill:#1f2328",
}  # fmt: skip
DARK = {
    "card": "fill:#0d1117;stroke:#30363d", "box": "fill:#161b22;stroke:#484f58", "ink": "fill:#e6edf3",
    "dim": "fill:#9198a1", "grid": "fill:none;stroke:#262c36", "edge": "fill:none;stroke:#8b949e",
    "hollow": "fill:#0d1117;stroke:#9198a1", "event": "fill:#e6edf3",
}  # fmt: skip
HUES = {"party": "#1f6feb", "relation": "#1a7f37", "change": "#8250df", "device": "#bc4c00", "event": "#57606a"}
"""Dark enough for white letters, light enough for a dark card."""
FONT = "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}"


def svg(width: float, height: float, title: str, parts: list[str], *, dark_only: bool = False) -> str:
    """Return a picture on a card of its own, so that it is legible on any page; dark where the reader prefers that."""

    def rules(colors: dict[str, str]) -> str:
        return "".join(f".{name}{{{style}}}" for name, style in colors.items())

    size = f"{width:g} {height:g}"
    hues = "".join(f".{name}-hue{{fill:{hue}}}" for name, hue in HUES.items())
    schemes = rules(DARK) if dark_only else f"{rules(LIGHT)}@media (prefers-color-scheme:dark){{{rules(DARK)}}}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{width:g}" role="img">',
            f"<title>{_escaped(title)}</title>",
            f"<style>{FONT}.small{{font-size:11px}}.key{{font-weight:600}}.on{{fill:#ffffff}}{hues}{schemes}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def text(x: float, y: float, text: str, style: str = "ink", anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{_escaped(text)}</text>'


def rect(x: float, y: float, width: float, height: float, style: str, rx: float = 3) -> str:
    return f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rx:g}"/>'


def path(style: str, points: list[tuple[float, float]], *, dashed: bool = False) -> str:
    way = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<path class="{style}" d="{way}"{dashes}/>'
