"""The figures of docs/study.md and README.md, from the tables beside the published pages.

python examples/study_figures.py            # prints them, by name
python examples/study_figures.py --write    # writes them into both texts
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "docs" / "study.md", ROOT / "README.md")
FIGURE = re.compile(r"<!--(?P<name>[\w.]+)-->(?P<text>[^<]*)<!---->")
"""A figure in the page: its name, its text, and its end; a reader sees the text alone."""
MODELS = {
    "hw5_fast": ("HW5Net", "0.001"), "hw5_slow": ("HW5Net", "2e-5"),
    "net3_xavier": ("Net3 Xavier", "0.001"), "net3_default": ("Net3 default", "0.001"),
}  # fmt: skip


def table(study: str, name: str) -> pd.DataFrame:
    """One of the tables beside a published page; every factor is text."""
    path = ROOT / "reports" / f"{study}.tables" / f"{name}.csv"
    return pd.read_csv(path, dtype={"factor.lr": str})


def percent(share: float) -> str:
    """A share as `57.0 %`."""
    return f"{100 * share:.1f} %"


def interval(row: pd.Series, scale: float = 1.0, digits: int = 2) -> str:
    """An effect with its 95 % interval."""
    low, middle, high = (scale * row[key] for key in ("low", "estimate", "high"))
    return f"{middle:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def of_study() -> dict[str, str]:
    """HW5Net at two learning rates, and Net3."""
    cells, found = table("hw5-study", "cells"), {}
    confusion = table("hw5-study", "confusion").merge(cells[["cell", "factor.model", "factor.lr"]])
    for name, (model, lr) in MODELS.items():
        own = cells[(cells["factor.model"] == model) & (cells["factor.lr"] == lr)]
        found[f"{name}.accuracy"] = percent(own.val_accuracy.mean())
        found[f"{name}.sd"] = f"{100 * own.val_accuracy.std():.1f}"
        found[f"{name}.fit"] = percent(own.fit_accuracy.mean())
        found[f"{name}.gap"] = f"{100 * own.gap.mean():.1f}"
        found[f"{name}.loss"] = f"{own.final_loss.mean():.3f}"
        found[f"{name}.dead"] = str((own.verdict == "dead").sum())
        found[f"{name}.best"] = percent(own.val_accuracy.max())
        pooled = confusion[confusion["cell"].isin(own["cell"])]
        pooled = pooled.groupby(["true", "predicted"])["count"].sum().reset_index()
        pooled = pooled.pivot_table("count", "true", "predicted")
        shares = pooled.div(pooled.sum(axis=1), axis=0)
        for label in shares.index:
            found[f"{name}.{label}"] = percent(shares.loc[label, label])
        found[f"{name}.dog_as_cat"] = percent(shares.loc["dog", "cat"])
    net3 = cells[cells["factor.model"].str.startswith("Net3")]
    learnt = net3[net3.verdict != "dead"]
    found["net3.cells"], found["net3.dead"] = str(len(net3)), str((net3.verdict == "dead").sum())
    found["net3.lowest"] = percent(learnt.val_accuracy.min())
    found["net3.highest"] = percent(learnt.val_accuracy.max())
    effects = table("hw5-study", "effects")
    main = effects[effects.by.isna()].set_index(["metric", "level"])
    for metric, scale, digits in (("loss", 1.0, 2), ("accuracy", 1.0, 1)):
        for level, name in (
            ("2e-5", "lr"), ("Net3 Xavier", "net3_xavier"), ("Net3 default", "net3_default")
        ):  # fmt: skip
            row = main.loc[metric, level]
            found[f"effect.{metric}.{name}"] = interval(row, scale, digits)
            found[f"p.{metric}.{name}"] = f"{row.p_holm:.3f}"
    return found


def of_matrix() -> dict[str, str]:
    """The whole matrix."""
    cells, found = table("hw5-coco", "cells"), {}
    found["matrix.cells"] = str(len(cells))
    found["matrix.learning"] = str((cells.status == "done").sum())
    for skip in ("yes", "no"):
        for norm in ("yes", "no"):
            own = cells[(cells["factor.skip"] == skip) & (cells["factor.batch_norm"] == norm)]
            key = f"skip_{skip}.norm_{norm}"
            found[f"{key}.accuracy"] = percent(own.val_accuracy.mean())
            found[f"{key}.lowest"] = percent(own.val_accuracy.min())
            found[f"{key}.highest"] = percent(own.val_accuracy.max())
            found[f"{key}.healthy"] = str((own.verdict == "healthy").sum())
            found[f"{key}.cells"] = str(len(own))
    plain = cells[(cells["factor.skip"] == "no") & (cells["factor.batch_norm"] == "no")]
    fast = plain[plain["factor.lr"] == "0.001"]
    found["plain_fast.cells"] = str(len(fast))
    found["plain_fast.stuck"] = str((fast.status == "not learning").sum())
    found["healthy.accuracy"] = percent(cells[cells.verdict == "healthy"].val_accuracy.mean())
    found["sick.accuracy"] = percent(cells[cells.verdict != "healthy"].val_accuracy.mean())
    found["healthy.cells"] = str((cells.verdict == "healthy").sum())
    found["healthy.stuck"] = str(
        ((cells.verdict == "healthy") & (cells.status == "not learning")).sum()
    )
    effects = table("hw5-coco", "effects")
    main = effects[effects.by.isna()].set_index(["metric", "factor"])
    for factor in ("skip", "batch_norm", "init", "depth", "lr"):
        found[f"matrix.accuracy.{factor}"] = interval(main.loc["accuracy", factor], 1.0, 1)
        found[f"matrix.p.{factor}"] = f"{main.loc['accuracy', factor].p_holm:.2f}"
        found[f"matrix.slope.{factor}"] = interval(main.loc["slope", factor], 1.0, 3)
    return found


def of_demo() -> dict[str, str]:
    """The grid on drawn images that README's first command trains."""
    cells, found = table("hw5", "cells"), {}
    whole = cells[(cells["factor.skip"] == "yes") & (cells["factor.batch_norm"] == "yes")]
    groups = {
        "yes": cells[cells["factor.skip"] == "yes"], "no": cells[cells["factor.skip"] == "no"],
        "fast": whole[whole["factor.lr"] == "0.001"], "slow": whole[whole["factor.lr"] == "2e-5"],
    }  # fmt: skip
    for name, own in groups.items():
        found[f"demo.{name}.cells"] = str(len(own))
        found[f"demo.{name}.lowest"] = f"{100 * own.val_accuracy.min():.0f} %"
        found[f"demo.{name}.highest"] = f"{100 * own.val_accuracy.max():.0f} %"
        found[f"demo.{name}.slope"] = f"{own.slope.abs().mean():.2f}"
        found[f"demo.{name}.healthy"] = str((own.verdict == "healthy").sum())
    lost = groups["yes"].val_accuracy.mean() - groups["no"].val_accuracy.mean()
    found["demo.lost"] = f"{100 * lost:.0f}"
    return found


def of_retrained() -> dict[str, str]:
    """Cells that `benchmarks/retrained.py` trained again, in the order of its table."""
    found = {}
    for i, row in pd.read_csv(ROOT / "reports" / "retrained.csv").iterrows():
        found[f"again.{i}.cell"] = row["cell"]
        found[f"again.{i}.published"] = percent(row.published)
        found[f"again.{i}.now"] = percent(row.again)
        found[f"again.{i}.interval"] = f"{100 * row.low:.1f} to {100 * row.high:.1f} %"
    return found


def figures() -> dict[str, str]:
    """Name -> text of every figure."""
    return of_study() | of_matrix() | of_retrained() | of_demo()


def filled(page: str) -> str:
    """The page with every figure as the tables have it.

    Raises:
        KeyError: the page names a figure that is not there.
    """
    known = figures()
    return FIGURE.sub(lambda found: f"<!--{found['name']}-->{known[found['name']]}<!---->", page)


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        for page in PAGES:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.writelines(f"{name:32} {text}\n" for name, text in figures().items())
