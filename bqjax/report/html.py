"""One HTML page with everything in it: tables, pictures and the command; needs no network and no script."""

from __future__ import annotations

import html
from collections.abc import Sequence

from bqjax.report.tables import Table

__all__ = ["page", "sections_html"]

_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
.scroll { overflow-x: auto; }
th, td { padding: 0.3rem 0.7rem; text-align: right; border-bottom: 1px solid #e4e7eb; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #9aa5b1; }
p.caption { color: #52606d; font-size: 0.85rem; max-width: 75ch; }
code { background: #f0f2f5; padding: 0.15rem 0.35rem; border-radius: 3px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures svg { max-width: 100%; height: auto; }
"""


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    caption = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    return f'<div class="scroll"><table><thead>{line(table.columns, "th")}</thead><tbody>\n{body}\n</tbody></table></div>{caption}'


def sections_html(sections: Sequence[tuple[str, Sequence[str | Table]]]) -> str:
    """Headings with tables and pictures, as part of a page.

    Args:
      sections: ``(heading, parts)``; a part is a table or SVG text.
    """
    parts = []
    for heading, content in sections:
        parts.append(f"<h2>{html.escape(heading)}</h2>")
        pictures = [part for part in content if isinstance(part, str)]
        parts += [_table(part) for part in content if isinstance(part, Table)]
        if pictures:
            parts.append('<div class="pictures">' + "\n".join(pictures) + "</div>")
    return "\n".join(parts)


def page(title: str, command: str, *parts: str | Sequence[tuple[str, Sequence[str | Table]]]) -> str:
    """A self-contained page.

    Args:
      title: its heading.
      command: what made it.
      *parts: sections, or what :func:`sections_html` made of them before.
    """
    begin = f"<h1>{html.escape(title)}</h1>\n<p>Made by <code>{html.escape(command)}</code></p>\n"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_CSS}</style></head>\n<body>\n'
        + begin
        + "\n".join(part if isinstance(part, str) else sections_html(part) for part in parts)
        + "\n</body></html>\n"
    )
