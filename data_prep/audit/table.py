"""An audit as a table of plain text, for the terminal."""

from data_prep.audit.types import Audit, Defect

_MAX_EXAMPLE = 70


def as_text(audit: Audit) -> str:
    """One line a check with its first offender, then what the rows are like."""
    lines = [f"{name}: {number} rows" for name, number in zip(audit.sources, audit.num_rows, strict=True)]
    lines += [f"note: {note}" for note in audit.unchecked]
    width = max(len(_printable(defect.title)) for defect in audit.defects)
    lines += ["", f"{'':8}{'rows':>7} {'of':>7}  check"]
    for defect in audit.defects:
        state = defect.severity if defect.num_rows else "ok"
        title = _printable(defect.title).ljust(width)
        lines.append(f"{state:8}{defect.num_rows:7} {defect.num_checked:7}  {title}  {_example(defect)}".rstrip())
    lines.append("")
    for name, counts in audit.tallies.items():
        shown = ", ".join(f"{_printable(value) or 'none'} {number}" for value, number in list(counts.items())[:12])
        lines.append(f"{name}: {shown}{', ...' if len(counts) > 12 else ''}")
    for spread in audit.histograms:
        lines.append(
            f"{spread.name}: {spread.lowest:.0f} to {spread.highest:.0f}, median {spread.median:.0f}, "
            f"95 % up to {spread.p95:.0f}"
        )
    return "\n".join(lines)


def _example(defect: Defect) -> str:
    if not defect.offences:
        return ""
    first = defect.offences[0]
    other = f" and {first.other.id}" if first.other else ""
    text = _printable(f"{first.row.id}{other}{': ' if first.note else ''}{first.note}")
    return text if len(text) <= _MAX_EXAMPLE else text[: _MAX_EXAMPLE - 1] + "…"


def _printable(text: str) -> str:
    """On one line and without control characters: a row's text must not steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
