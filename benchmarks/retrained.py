"""One cell of a published study, trained again: is its accuracy within the spread of the seeds?

The cell is taken from the committed grid and trained on this machine, with as many threads as asked
for. Its accuracy is compared with the interval in which one further seed of its variant falls: the
mean of the variant's seeds, plus or minus t * sd * sqrt(1 + 1/n). The standard deviation is pooled
over all variants of the study of which two or more seeds ended with the cell's verdict, since two
seeds alone say little; only such seeds are counted.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import pandas as pd
import torch
from scipy import stats

from gradscope.ablation.grid import Cell, Grid
from gradscope.ablation.training import train_cell

ROOT = Path(__file__).parents[1]


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n", maxsplit=1)[0],
        epilog="example: python benchmarks/retrained.py hw5-coco coco5/ "
        "skip-batch_norm-xavier-depth32-lr0.001-s0 --threads 1",
    )
    parser.add_argument("study", help="name of a grid in ablations/ and of its published tables")
    parser.add_argument("data", help="COCO folder that it was trained on")
    parser.add_argument("cell", help="id of the cell, or its beginning")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    parser.add_argument("--table", type=Path, help="CSV that a line with the result is added to")
    return parser.parse_args()


def published(study: str, cell: str) -> tuple[pd.Series, pd.DataFrame]:
    """The published row of a cell, and of all cells of the study that ended as it did."""
    rows = pd.read_csv(ROOT / "reports" / f"{study}.tables" / "cells.csv")
    found = rows[rows["cell"].str.startswith(f"{cell}-")]
    if len(found) != 1:
        known = ", ".join(rows["cell"].str.rpartition("-")[0])
        sys.exit(f"{study}: no cell '{cell}'; valid: {known}")
    return found.iloc[0], rows[rows.verdict == found.iloc[0].verdict]


def further_seed(variant: str, alike: pd.DataFrame) -> tuple[float, float]:
    """The 95 % prediction interval for the accuracy of one more seed of a variant.

    Args:
        variant: whose seed it would be.
        alike: published rows of cells with one verdict; `val_accuracy` per `variant` and seed.
    """
    groups = alike.groupby("variant").val_accuracy
    freedom = int((groups.count() - 1).sum())
    sd = math.sqrt(((alike.val_accuracy - groups.transform("mean")) ** 2).sum() / freedom)
    own = groups.get_group(variant)
    half = stats.t.ppf(0.975, freedom) * sd * math.sqrt(1 + 1 / len(own))
    return own.mean() - half, own.mean() + half


def of_grid(study: str, data: str, cell: str) -> Cell:
    """The cell, from the committed grid."""
    overrides = ["data.source=coco", f"data.root={data}"]
    cells = Grid.load(ROOT / "ablations" / f"{study}.yaml", overrides).cells()
    return next(found for found in cells if found.id.startswith(f"{cell}-"))


def main() -> None:
    """Train the cell and print both accuracies."""
    asked = arguments()
    before, alike = published(asked.study, asked.cell)
    low, high = further_seed(before.variant, alike)
    print(f"published          {before.val_accuracy:.1%}")
    print(f"one more seed      {low:.1%} to {high:.1%}, 95 % prediction interval")
    torch.set_num_threads(asked.threads)
    result, _ = train_cell(of_grid(asked.study, asked.data, asked.cell))
    again = result.history.epochs[-1].val_accuracy
    where = "inside" if low <= again <= high else "OUTSIDE"
    print(f"trained again      {again:.1%}, {where} ({asked.threads} threads)")
    if asked.table is not None:
        row = {
            "study": asked.study, "cell": asked.cell, "published": before.val_accuracy,
            "low": low, "high": high, "again": again, "threads": asked.threads,
        }  # fmt: skip
        first = not asked.table.exists()
        lines = pd.DataFrame([row]).to_csv(index=False, header=first, float_format="%.9g")
        with asked.table.open("a", encoding="utf-8") as table:
            table.write(lines)


if __name__ == "__main__":
    main()
