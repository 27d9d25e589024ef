"""One page that needs nothing else: pictures as inline SVG, values to point at, no network.

What comes from an adapter's file is escaped wherever it goes: as text in HTML and SVG, and in the
data of the script, which puts it on the page as text only.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Panel:
    """A figure of the page.

    Attributes:
        name: of `FIGURES`.
        title, caption: in words.
        svg: the picture, a whole SVG document.
        hovers: what `hover.as_json` made.
        wide: over the page's whole width.
    """

    name: str
    title: str
    caption: str
    svg: str
    hovers: Sequence[dict[str, Any]]
    wide: bool


def page(title: str, heading: str, panels: Sequence[Panel]) -> str:
    """The page as text."""
    data = {panel.name: panel.hovers for panel in panels}
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_asset("page.css")}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1><p>{html.escape(heading)}</p></header>
<main>
{"".join(_figure(panel) for panel in panels)}</main>
<footer>Point at a picture for its values. Drawn by vbfmt.</footer>
<div id="value" role="status" hidden></div>
<script type="application/json" id="data">{_script_safe(data)}</script>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _figure(panel: Panel) -> str:
    label = html.escape(f"{panel.title}: {panel.caption}")
    return (
        f'<figure id="{panel.name}"{" class=wide" if panel.wide else ""}>\n'
        f'<div class="picture" role="img" aria-label="{label}">\n{_inline(panel)}</div>\n'
        "</figure>\n"
    )


def _inline(panel: Panel) -> str:
    """The SVG as a part of a page: without its prologue, as large as there is room, and with ids
    that no other picture has."""
    svg = panel.svg[panel.svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{panel.name}-', svg)
    svg = re.sub(r'(xlink:href|href)="#', rf'\1="#{panel.name}-', svg)
    return re.sub(r"url\(#", f"url(#{panel.name}-", svg)


def _script_safe(data: object) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("vbfmt.plot").joinpath(name).read_text("utf-8")
