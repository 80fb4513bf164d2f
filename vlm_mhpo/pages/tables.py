"""Tables of text: Markdown to read, LaTeX (booktabs) to print, CSV to compute with; no cell can break any of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no second line."""
    return " ".join(text.split()).replace("<", "&lt;")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table without a last line end; in a cell | opens no column and < no tag."""

    def line(cells: Sequence[str]) -> str:
        # Before a space < is no tag.
        texts = (plain(cell).replace("|", r"\|").replace("&lt; ", "< ") for cell in cells)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(head), "| --- " * len(head) + "|", *map(line, rows)])


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> str:
    """A booktabs table, its first column left and the others right aligned, with a note below it if there is one."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_latex_text, cells)) + r" \\"

    below = [r"\midrule", rf"\multicolumn{{{len(head)}}}{{l}}{{\footnotesize {_latex_text(note)}}} \\"] if note else []
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *map(line, rows),
            *below,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return " ".join(text.split()).translate(_LATEX)


def csv_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV, one line per row; numbers keep all their digits, and no spreadsheet takes a text for a formula."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(map(_spreadsheet_safe, row) for row in rows)
    return stream.getvalue()


def _spreadsheet_safe(cell: object) -> object:
    """A text that no spreadsheet takes for a formula; numbers as they are."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
