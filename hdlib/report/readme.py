"""Draw the README's figure from the recorded runs: `python -m hdlib.report.readme`."""

from dataclasses import replace
from pathlib import Path

from hdlib.report import figures, paper, summary
from hdlib.report.style import LIGHT
from hdlib.runs import Store

PLACE = Path("book/_static/online-tuning.svg")


def drawn(store: str = "results") -> str:
    """Return logistic regression's final losses as SVG text, on white, because READMEs are shown on any ground."""
    records = summary.online_tuning(Store(store).all(), "logreg", paper.ONLINE_EPOCHS)
    records = [r for r in records if r.spec.beta in (0, paper.STATED) and r.spec.rule == "additive"]
    svg = figures.final_loss(records, "online-tuning").svg(replace(LIGHT, name="print"))
    return svg.replace("<defs>", '<rect width="100%" height="100%" fill="#ffffff"/><defs>', 1)


if __name__ == "__main__":
    PLACE.write_text(drawn())
