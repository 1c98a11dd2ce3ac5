"""Sheets as Markdown, and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from cmi_fast.experiments.sheets import Cell, Sheet

STYLE = """body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; } .scroll { overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; }
thead tr:last-child { border-bottom: 1px solid; } thead tr:first-child { border-top: 2px solid; }
tbody { border-bottom: 2px solid; } .group { text-align: center; } .second { text-decoration: underline; }"""


def markdown(title: str, sheets: Sequence[Sheet], plots: Sequence[Path]) -> str:
    """A document with every sheet, and the plots, which lie beside it."""
    parts = [f"# {title}"]
    for sheet in sheets:
        headings = _named_columns(sheet)
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
        lines += [[_markdown_cell(cell) for cell in row] for row in sheet.rows]
        parts.append(f"## {sheet.title}")
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        parts += sheet.notes
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def html(title: str, sheets: Sequence[Sheet], plots: Sequence[Path]) -> str:
    """The same as a page; the plots are in it."""
    body = [f"<h1>{escape(title)}</h1>"]
    for sheet in sheets:
        groups = "".join(f'<th class="group" colspan="{span}">{escape(name)}</th>' for name, span in sheet.groups)
        columns = "".join(f"<th>{escape(name)}</th>" for name in sheet.columns)
        head = f"<tr>{groups}</tr><tr>{columns}</tr>" if sheet.groups else f"<tr>{columns}</tr>"
        rows = "\n".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in sheet.rows)
        body.append(f"<h2>{escape(sheet.title)}</h2>")
        body.append(f'<div class="scroll"><table><thead>{head}</thead>\n<tbody>{rows}</tbody></table></div>')
        body += [f"<p>{escape(note)}</p>" for note in sheet.notes]
    for plot in plots:
        data = base64.b64encode(plot.read_bytes()).decode()
        body.append(f'<p><img alt="{escape(plot.stem)}" src="data:image/png;base64,{data}"></p>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _named_columns(sheet: Sheet) -> list[str]:
    """Column names with the first word of their group, as Markdown has one row of headings."""
    groups = [name.partition(":")[0] for name, span in sheet.groups for _ in range(span)] or [""] * len(sheet.columns)
    paper = [f"{group} {name}" if group == "paper" else name for group, name in zip(groups, sheet.columns, strict=True)]
    return [_plain(name) for name in paper]


def _markdown_cell(cell: Cell) -> str:
    text = _plain(cell.text)
    return {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(cell.mark, text)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _html_cell(cell: Cell) -> str:
    text = escape(cell.text)
    return {"best": f"<td><b>{text}</b></td>", "second": f'<td class="second">{text}</td>'}.get(
        cell.mark, f"<td>{text}</td>"
    )
