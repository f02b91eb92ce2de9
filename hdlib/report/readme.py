"""Draw the README's figure from the recorded runs: `python -m hdlib.report.readme`."""

from dataclasses import replace
from pathlib import Path

from hdlib.report import claims, figures
from hdlib.report.style import LIGHT
from hdlib.runs import Store


def main() -> None:
    """Write book/_static/online-tuning.svg, on white, because READMEs are shown on any ground."""
    fields = dict(model="logreg", task="mnist", epochs=50)
    records = claims.select(Store("results").all(), **fields)
    records = [r for r in records if r.spec.beta in (0, 1e-4) and r.spec.alpha0 > 0]
    svg = figures.final_loss(records, "online-tuning").svg(replace(LIGHT, name="print"))
    svg = svg.replace("<defs>", '<rect width="100%" height="100%" fill="#ffffff"/><defs>', 1)
    Path("book/_static/online-tuning.svg").write_text(svg)


if __name__ == "__main__":
    main()
