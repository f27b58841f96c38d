"""`brats-ldm report`: its options. Standard library until it runs."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="write one HTML page on a folder of slices",
        description="Write one HTML page on a folder of slices: contact sheet, a viewer with window and level, "
        "histogram, seeds and parameters, and the nearest pairs of an evaluation. The page needs no other file and no "
        "network; this command needs no server. It reads PNG, NIfTI, DICOM and npz files, and folders of "
        "`brats-ldm bulk`.",
    )
    parser.add_argument("folder", metavar="DIR", help="the folder")
    parser.add_argument("--out", metavar="FILE", help="the page (DIR/report.html)")
    parser.add_argument(
        "--evaluation",
        metavar="PATH",
        help="evaluation.json of `python -m training.evaluation`, or its folder; the page has the slices that it names "
        "(DIR/evaluation.json, if there is one, without them)",
    )
    parser.add_argument("--title", help="the heading of the page (what the folder holds)")
    parser.add_argument("--open", action="store_true", help="show the page in a browser")
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .report import write_report

    problems: list[str] = []
    with tqdm(desc="reading", unit="image", file=sys.stderr, disable=None, leave=False) as bar:
        path = write_report(
            args.folder,
            args.out,
            args.evaluation,
            title=args.title,
            on_image=bar.update,
            on_problem=problems.append,
        )
    if problems:
        more = f" (and {len(problems) - 1} more: the page lists them)" if len(problems) > 1 else ""
        print(f"brats-ldm: {problems[0]}{more}", file=sys.stderr)
    print(path)
    if args.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0
