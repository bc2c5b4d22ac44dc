"""A report on shards as one HTML file, with everything in it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from clip_data.faults import Fault
from clip_data.inspect_report import Report, Thumbnail
from clip_data.inspect_text import caption_rows, headline, image_rows, in_bytes, state

__all__ = ["render_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .wrong { color: #b00020; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; border-radius: 4px; display: block; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } figcaption small { color: #666; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } th, td { border-color: #444; }
  .wrong { color: #ff8a80; } figcaption small { color: #aaa; }
}
"""


def render_page(report: Report) -> str:
    """Returns a report as an HTML page that loads nothing."""
    read = "" if report.num_read == report.num_records else f" Contents are of {report.num_read} records read."
    parts = [
        f"<h1>{escape(headline(report))}</h1>",
        f"<p>{'Something is wrong, see below.' if report.faults else 'Nothing is wrong.'}{read}</p>",
        "<h2>Shards</h2>",
        _table(("shard", "records", "size", "wrong", "skipped"), _shard_rows(report), numbers=(1, 2), wrong=3),
    ]
    if report.faults:
        rows = [(fault.shard, _place(fault), fault.key, fault.reason, fault.detail) for fault in report.faults]
        parts += ["<h2>Wrong</h2>", _table(("shard", "place", "key", "reason", "what was seen"), rows, wrong=3)]
    if report.num_read:
        parts += ["<h2>Images</h2>", _table((), image_rows(report))]
        parts += ["<h2>Captions</h2>", _table((), caption_rows(report))]
    if report.fields:
        rows = [(n, str(f.num_filled), "/".join(f.types), f.example) for n, f in report.fields.items()]
        parts += ["<h2>Fields</h2>", _table(("field", "filled", "type", "example"), rows, numbers=(1,))]
    if report.thumbnails:
        figures = "".join(map(_figure, report.thumbnails))
        parts += ["<h2>Some records</h2>", f'<div class="pictures">{figures}</div>']
    title = f"<title>{escape(headline(report))}</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _shard_rows(report: Report) -> list[tuple[str, ...]]:
    return [(shard.path, str(shard.num_records), in_bytes(shard.num_bytes), *state(shard)) for shard in report.shards]


def _place(fault: Fault) -> str:
    if fault.offset is not None:
        return f"byte {fault.offset}"
    return "" if fault.row is None else f"row {fault.row}"


def _table(
    head: Iterable[str], rows: Iterable[Iterable[str]], *, numbers: tuple[int, ...] = (), wrong: int | None = None
) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    lines = [f"<tr>{titles}</tr>"] if titles else []
    for row in rows:
        cells = []
        for column, value in enumerate(row):
            kind = "number" if column in numbers else "wrong" if column == wrong and value != "-" else ""
            cells.append(f'<td class="{kind}">{escape(value)}</td>' if kind else f"<td>{escape(value)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _figure(thumbnail: Thumbnail) -> str:
    record = thumbnail.record
    data = base64.b64encode(thumbnail.jpeg).decode()
    label = "" if record.label is None else f" · label {record.label}"
    place = f"{record.key or f'row {record.row}'}{label}"
    text = f"{escape(record.caption[:300]) or '<i>no caption</i>'}<br><small>{escape(place)}</small>"
    return f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>'
