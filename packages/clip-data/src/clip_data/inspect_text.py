"""A report on shards, for the terminal."""

from __future__ import annotations

from collections import Counter

from clip_data.faults import SKIPPED
from clip_data.inspect_report import Report, ShardReport, Spread

__all__ = ["caption_rows", "headline", "image_rows", "in_bytes", "render_text", "state"]

_MAX_SHARDS = 40
_MAX_FAULTS = 40


def render_text(report: Report) -> str:
    """Returns a report as lines of text, each as wide as its longest path needs."""
    lines = [headline(report), "", *_shards(report.shards)]
    read = f"of {report.num_read} records read" if report.num_read < report.num_records else "of all records"
    if report.num_read:
        lines += ["", f"Images {read}"]
        lines += [f"  {name:<14}{value}" for name, value in image_rows(report)]
        lines += ["", f"Captions {read}"]
        lines += [f"  {name:<14}{value}" for name, value in caption_rows(report)]
    if report.fields:
        lines += ["", f"Fields {read}"]
        width = max(map(len, report.fields))
        for name, about in report.fields.items():
            types = "/".join(about.types)
            lines.append(f"  {name:<{width}}  {about.num_filled:>8}  {types:<8}  {about.example}".rstrip())
    lines += ["", "Wrong" if report.faults else "Nothing is wrong."]
    lines += [f"  {fault}" for fault in report.faults[:_MAX_FAULTS]]
    if len(report.faults) > _MAX_FAULTS:
        lines.append(f"  … {len(report.faults) - _MAX_FAULTS} more")
    return "\n".join(lines)


def headline(report: Report) -> str:
    """Returns format, number of shards and records and, where known, bytes."""
    sizes = [shard.num_bytes for shard in report.shards if shard.num_bytes is not None]
    size = f", {in_bytes(sum(sizes))}" if sizes else ""
    num = len(report.shards)
    return f"{report.format}: {num} shard{'s' * (num > 1)}, {report.num_records} records{size}"


def image_rows(report: Report) -> list[tuple[str, str]]:
    """Returns what there is to say of the images, as names and values."""
    rows = [("types", _in_counts(report.image_types))]
    rows += [("width", _in_spread(report.widths)), ("height", _in_spread(report.heights))]
    rows += [("aspect ratio", _in_spread(report.aspect_ratios, ".2f")), ("bytes", _in_spread(report.image_bytes))]
    return [*rows, ("seen before", str(report.num_same_images))]


def caption_rows(report: Report) -> list[tuple[str, str]]:
    """Returns what there is to say of captions, keys and labels, as names and values."""
    rows = [("characters", _in_spread(report.caption_lengths)), ("blank", str(report.num_blank_captions))]
    rows += [("seen before", str(report.num_same_captions)), ("keys again", str(report.num_same_keys))]
    if report.labels:
        labels = f"{len(report.labels)} different, {min(report.labels)} to {max(report.labels)}"
        rows.append(("labels", f"{labels}, on {report.labels.total()} records"))
    return rows


def in_bytes(size: int | None) -> str:
    """Returns a number of bytes for people.

    >>> in_bytes(5_785_600)
    '5.8 MB'
    """
    if size is None:
        return "-"
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _in_counts(counts: Counter[str]) -> str:
    """Returns counts for people, the largest first."""
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "-"


def _in_spread(spread: Spread | None, form: str = ".0f") -> str:
    """Returns least and largest value and the median for people."""
    if spread is None:
        return "-"
    return f"{spread.least:{form}} to {spread.largest:{form}}, median {spread.median:{form}}"


def state(shard: ShardReport) -> tuple[str, str]:
    """Returns what is wrong with a shard, and what was skipped in it without being wrong."""
    wrong = Counter({reason: count for reason, count in shard.counts.items() if reason not in SKIPPED})
    return _in_counts(wrong), _in_counts(Counter({r: n for r, n in shard.counts.items() if r in SKIPPED}))


def _shards(shards: list[ShardReport]) -> list[str]:
    listed = shards
    if len(shards) > _MAX_SHARDS:
        listed = [shard for shard in shards if shard.counts][:_MAX_SHARDS]
    width = max([len(shard.path) for shard in listed], default=5)
    lines = [f"{'shard':<{width}}  {'records':>8}  {'size':>9}  wrong"]
    for shard in listed:
        wrong, skipped = state(shard)
        skipped = "" if skipped == "-" else f"  (skipped: {skipped})"
        lines.append(f"{shard.path:<{width}}  {shard.num_records:>8}  {in_bytes(shard.num_bytes):>9}  {wrong}{skipped}")
    if len(listed) < len(shards):
        lines.append(f"… {len(shards) - len(listed)} more shards, listed by --json")
    return lines
