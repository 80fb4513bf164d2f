"""Commands that make and examine rows: prepare, audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlm_mhpo.cli.arguments import load, names

Source = Annotated[
    str, typer.Argument(help="File, folder, path@split, org/name@split, or synthetic:FAMILY?seed=0&num_rows=100.")
]
ImageRoot = Annotated[
    Path | None, typer.Option(help="Folder that image paths are relative to; default: the table's own.")
]
AnswerLists = Annotated[
    str | None,
    typer.Option(help="What a list of answers means: any is right, or all must be given; default: told by the list."),
]
Columns = Annotated[
    str | None,
    typer.Option(help="The table's columns that stand for ours, as problem=query,images=pics (data.columns)."),
]
IgnoredColumns = Annotated[
    str | None, typer.Option(help="The table's columns that are left out, as figure,scan (data.ignore_columns).")
]
Processor = Annotated[str | None, typer.Option(help="Model whose processor counts the tokens of prompts.")]


def prepare(
    source: Source,
    out: Annotated[Path, typer.Option(help="New folder for parquet and manifest.")],
    format: Annotated[str, typer.Option(help="Reader; auto = recognise.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Only this split.")] = None,
    image_root: ImageRoot = None,
    answer_lists: AnswerLists = None,
    columns: Columns = None,
    ignore_columns: IgnoredColumns = None,
    min_side: Annotated[int | None, typer.Option(min=1, help="Least shorter side of an image, pixels.")] = None,
    max_side: Annotated[int | None, typer.Option(min=1, help="Largest longer side of an image, pixels.")] = None,
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Least width x height of an image.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest width x height of an image.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Longest prompt; needs --model.")] = None,
    model: Processor = None,
    kinds: Annotated[str | None, typer.Option(help="Keep these kinds of rows, for example number,math.")] = None,
    answer_forms: Annotated[
        str | None, typer.Option(help="Keep golds that look so, for example integer,decimal,fraction.")
    ] = None,
    heldout: Annotated[
        float | None,
        typer.Option(help="Split into train and heldout, about this share, with no image in both."),
    ] = None,
    pass_rate: Annotated[
        str | None, typer.Option(help="Model that is sampled on every row; needs --config. Keeps what it half knows.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration whose prompts and sampling --pass-rate uses.", exists=True)
    ] = None,
    pass_samples: Annotated[int, typer.Option(min=1, help="Completions a row for --pass-rate.")] = 8,
    pass_bounds: Annotated[tuple[float, float], typer.Option(help="Least and largest rate that is kept.")] = (0.1, 0.9),
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of refused rows above which nothing is written.")
    ] = 0.01,
) -> None:
    """Check every row (image opens, gold verifies against itself), filter, write parquet with a manifest.

    Run the same command again to continue after an interruption.
    """
    if max_prompt_tokens is not None and model is None:
        raise typer.BadParameter("--max-prompt-tokens needs --model, whose processor counts them")
    if pass_rate is not None and config is None:
        raise typer.BadParameter("--pass-rate needs --config, whose prompts and sampling it uses")
    from data_prep.loading import scan_rows
    from data_prep.prepare.filters import image_filters
    from vlm_mhpo.commands.prepare import Rating, prepare_rows, row_filters

    filters = image_filters(min_side=min_side, max_side=max_side, min_pixels=min_pixels, max_pixels=max_pixels)
    filters += row_filters(names(kinds or ""), names(answer_forms or ""), max_prompt_tokens, model)
    rating = (
        Rating(load(config, None), pass_rate, pass_samples, pass_bounds) if None not in (pass_rate, config) else None
    )
    reading = {"format": format, "split": split, "image_root": image_root, "answer_lists": answer_lists}
    reading |= _named(columns, ignore_columns)
    seen: set[str] = set()
    rows = scan_rows(source, **reading, seen=seen)
    typer.echo(prepare_rows(rows, out, filters, rating, heldout=heldout, max_bad_share=max_bad_share, seen=seen))


def audit(
    source: Source,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Benchmark that the rows must not hold: NAME, NAME=PLACE or a source."),
    ] = None,
    format: Annotated[str, typer.Option(help="Reader of SOURCE; auto = recognise.")] = "auto",
    split: Annotated[str | None, typer.Option(help="Only this split of SOURCE.")] = None,
    image_root: ImageRoot = None,
    answer_lists: AnswerLists = None,
    columns: Columns = None,
    ignore_columns: IgnoredColumns = None,
    model: Processor = None,
    near_limit: Annotated[
        int | None, typer.Option(min=0, max=255, help="Bits, of 256, up to which images are nearly the same.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.html and audit.json.")] = Path("runs/audit"),
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is a defect.")] = False,
) -> None:
    """Look for bad golds, images and placeholders, duplicates, and overlap with benchmarks and between splits."""
    from data_prep.audit import as_text
    from data_prep.audit import audit as examine_rows
    from data_prep.images.hashes import NEAR_LIMIT
    from vlm_mhpo.commands.audit_page import open_rows, write_audit

    count_tokens = None
    if model:
        from vlm_mhpo.prompts.token_counts import token_counter

        count_tokens = token_counter(model)
    reading = {"format": format, "split": split, "image_root": image_root, "answer_lists": answer_lists}
    reading |= _named(columns, ignore_columns)
    found = examine_rows(
        source,
        against=against or [],
        open_benchmark=open_rows,
        **reading,
        count_tokens=count_tokens,
        near_limit=NEAR_LIMIT if near_limit is None else near_limit,
    )
    page = write_audit(found, out, **reading, open_benchmark=open_rows)
    typer.echo(as_text(found))
    typer.echo(f"\n{page}")
    if strict and found.num_defects:
        raise typer.Exit(1)


def _named(columns: str | None, ignore_columns: str | None) -> dict[str, Any]:
    """The options about columns, as `scan_rows` takes them."""
    pairs = [part.partition("=") for part in names(columns or "")]
    if wrong := [name for name, equals, column in pairs if not (name and equals and column)]:
        raise typer.BadParameter(f"--columns: {wrong[0]!r} is no NAME=COLUMN")
    return {"columns": {name: column for name, _, column in pairs}, "ignore_columns": names(ignore_columns or "")}
