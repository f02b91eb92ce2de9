"""One visual language for every figure and table of the book.

A colour per family of methods, which colour-blind readers can tell apart and which stands out from the page by 3 to 1
at least; baselines dashed, methods that adapt solid, the multiplicative rule and decayed baselines dotted, the
paper's digitised curves pale. A
`Figure` is drawn twice, for light and dark pages, as vector graphics, and carries its alternative text and its data
as CSV.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgb
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, NullLocator
from matplotlib.transforms import Bbox

LONG = 40  # characters of a table's cell from which on it is broken into lines
EQUAL = 1e-3  # relative difference below which two numbers are told as equal
LARGE = 1e6  # from which on a number is written as a power of ten
LABELS = {
    "sgd": "SGD",
    "sgd_hd": "SGD-HD",
    "sgdn": "SGDN",
    "sgdn_hd": "SGDN-HD",
    "adam": "Adam",
    "adam_decayed": "Adam, α/√t",
    "adam_hd": "Adam-HD",
    "prodigy": "Prodigy",
}
MODELS = {"logreg": "logistic regression", "mlp": "the perceptron", "vgg": "VGG", "vit": "the vision transformer"}
QUANTITIES = {
    "train_loss": "training loss",
    "valid_loss": "validation loss",
    "valid_error": "validation error",
    "alpha": "learning rate α",
    "loss": "minibatch loss",
}


def label(method: str, decay: str = "none", rule: str = "additive") -> str:
    """Return what a method is called on pages: "Adam, α/√t", "SGD-HD, multiplicative"."""
    name = LABELS[f"{method}_decayed" if decay == "inv_sqrt" else method] + (", cosine" if decay == "cosine" else "")
    return f"{name}, multiplicative" if rule == "multiplicative" else name


COSINE_LINE = (0, (5, 1.5, 1, 1.5))  # of a learning rate that follows a cosine


@dataclass(frozen=True)
class Theme:
    """The colours of a page: light or dark."""

    name: str
    text: str
    grid: str
    paper: str
    background: str
    palette: tuple

    def color(self, method: str, strength: float = 1.0):
        """Return a method's colour, blended towards the background for a strength below 1."""
        family = FAMILIES.index(method.removesuffix("_hd"))
        color, ground = np.array(to_rgb(self.palette[family])), np.array(to_rgb(self.background))
        return tuple(strength * color + (1 - strength) * ground)

    def line(self, method: str, rule: str = "additive", decay: str = "none", strength: float = 1.0) -> dict:
        """Return matplotlib's line properties for a method."""
        adapts = method.endswith("_hd") or method == "prodigy"
        style = (0, (1, 1)) if rule == "multiplicative" else "-" if adapts else (0, (4, 2))
        if decay != "none":
            style = COSINE_LINE if decay == "cosine" else (0, (1, 2.5))
        return dict(color=self.color(method, strength), linestyle=style, linewidth=1.6 if adapts else 1.3)


LIGHT = Theme("light", "#1f2328", "#d8dee4", "#8a8f98", "#ffffff", ("#0b5394", "#cc7a00", "#00875f", "#a13d97"))
DARK = Theme("dark", "#e6e6e6", "#3d444d", "#9aa0a8", "#121212", ("#4fa8e8", "#f0a830", "#2fc398", "#d9a0e8"))
FAMILIES = ("sgd", "sgdn", "adam", "prodigy")
MARKERS = dict(zip(FAMILIES, "os^P", strict=True))


@dataclass(frozen=True)
class Figure:
    """A figure that shows itself in a notebook and in the book, in the page's theme.

    Attributes:
        draw: called with a Theme, returns a matplotlib figure.
        name: of the CSV file.
        alt: alternative text; says what is to be seen.
        data: what is drawn.
        note: one line below the caption: what was run.
        caption: what the figure shows.
    """

    draw: Callable[[Theme], matplotlib.figure.Figure]
    name: str
    alt: str
    data: pd.DataFrame
    note: str = ""
    caption: str = ""

    def __repr__(self) -> str:  # the page's text/plain: the same in every build, as an address is not
        return " ".join(filter(None, (self.caption, self.alt)))

    def _repr_html_(self) -> str:
        alt = html.escape(self.alt)
        images = "".join(
            f'<img class="hd-figure hd-{theme.name} dark-light" alt="{alt}" '
            f'src="data:image/svg+xml;base64,{_base64(svg)}">'
            for theme, svg in zip((LIGHT, DARK), self.svgs((LIGHT, DARK)), strict=True)
        )
        csv = _base64(self.data.to_csv(index=False, float_format="%.6g"))
        link = f'<a download="{self.name}.csv" href="data:text/csv;base64,{csv}">Data of this figure (CSV)</a>'
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        note = f'<p class="hd-note">{html.escape(self.note)} {link}</p>'
        drawn = f'<div class="hd-scroll">{images}</div>'
        return f'{_ONLY_ONE}<figure class="hd-frame">{drawn}{caption}{note}</figure>'

    def svg(self, theme: Theme) -> str:
        """Return the figure as SVG text, the same bytes for the same data."""
        return self.svgs((theme,))[0]

    def svgs(self, themes: Sequence[Theme]) -> list[str]:
        """Return the figure as SVG texts in several themes.

        All have the layout of the first: to find one takes as long as to draw.
        """
        texts: list[str] = []
        places: list[Bbox] = []
        for theme in themes:
            with matplotlib.rc_context(self._style(theme)):
                figure = self.draw(theme)
                _simplify_ticks(figure)
                if places:
                    figure.set_layout_engine("none")
                    for axes, place in zip(figure.axes, places, strict=True):
                        axes.set_position(place)
                buffer = io.StringIO()
                FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # savefig would draw it twice
                places = [axes.get_position() for axes in figure.axes]
                plt.close(figure)
            texts.append(_lighter(buffer.getvalue()))
        return texts

    def _style(self, theme: Theme) -> dict[str, Any]:
        return {
            **sns.axes_style("whitegrid"),
            **sns.plotting_context("notebook", font_scale=0.8),
            "figure.constrained_layout.use": True,
            "svg.hashsalt": self.name,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid.which": "major",
            "grid.linewidth": 0.6,
            "grid.color": theme.grid,
            "axes.edgecolor": theme.grid,
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.text),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), "none"),
            "legend.frameon": False,
        }


def _simplify_ticks(figure: matplotlib.figure.Figure) -> None:
    """Drop the minor ticks of logarithmic axes of more than a decade, and write powers of ten as text.

    Such minor ticks show nothing, for the style draws no marks and within a decade alone they have labels, and cost a
    third of the time; formulas cost a seventh.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            if axis.get_scale() == "log" and high > 10 * low:
                axis.set_minor_locator(NullLocator())
                if isinstance(axis.get_major_formatter(), LogFormatterSciNotation):
                    axis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))


@dataclass(frozen=True)
class Table:
    """A table that shows itself in a notebook and in the book; columns become headings as they are."""

    data: pd.DataFrame
    note: str = ""

    def __repr__(self) -> str:
        return self.note or "a table"

    def _repr_html_(self) -> str:
        data = self.data.rename(columns=html.escape).map(_cell)
        body = data.to_html(index=False, border=0, classes="dataframe hd-table", escape=False)
        note = f'<p class="hd-note">{html.escape(self.note)}</p>' if self.note else ""
        return f'<div class="hd-scroll">{body}</div>{note}'


@dataclass(frozen=True)
class Noted:
    """A table's cell with a remark in small print below it."""

    text: str
    remark: str


def _cell(value: Any) -> Any:
    """Return a table's text for HTML; a sentence is broken into lines, so that it does not hide the next columns."""
    if isinstance(value, Noted):
        both = f'{html.escape(value.text)}<div class="hd-note">{html.escape(value.remark)}</div>'
        return f'<div class="hd-long">{both}</div>' if max(len(value.text), len(value.remark)) > LONG else both
    if not isinstance(value, str):
        return value
    text = re.sub(r"^([^ ]+) (\([^ ]+ to [^ ]+\))$", r"\1<br>\2", html.escape(value))  # a mean and its range
    return f'<div class="hd-long">{text}</div>' if len(value) > LONG else text


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return "mean ± half the range" over seeds, the mean alone for one seed, or how many diverged.

    Where half the range is more than a fifth of the mean, it is "mean (lowest to highest)".
    """
    values = np.asarray(values, dtype=float)
    lost = int((~np.isfinite(values)).sum())
    if lost:
        return "diverged" if lost == len(values) else f"{lost} of {len(values)} diverged"
    mean = significant(values.mean(), digits)
    if len(values) == 1:
        return mean
    half = (values.max() - values.min()) / 2
    if half > abs(values.mean()) / 5:
        return f"{mean} ({significant(values.min(), digits)} to {significant(values.max(), digits)})"
    if abs(values.mean()) >= LARGE:
        return f"{mean} ± {significant(half, 2)}"
    decimals = len(mean.partition(".")[2])
    told = f"{half:.{decimals}f}"
    return f"{mean} ± {told if decimals and float(told) else significant(half, 1 if decimals else 2)}"


def counted(n: int, noun: str) -> str:
    """Return "one run" or "3 runs"."""
    return f"one {noun}" if n == 1 else f"{n:,} {noun}s"


def several(values: Sequence, write=str) -> str:
    """Return "a, b and c"."""
    *most, last = map(write, values)
    return f"{', '.join(most)} and {last}" if most else last


def fraction(factor: float) -> str:
    """Return 0.125 as "1/8", 1.0 as "all"."""
    if factor == 1:
        return "all"
    return f"1/{round(1 / factor)}" if factor < 1 and abs(1 / factor - round(1 / factor)) < 1e-6 else f"{factor:g}"


def significant(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, without an exponent where that is readable."""
    if value == 0 or not np.isfinite(value):
        return _minus(f"{value:g}")
    if abs(value) >= LARGE:
        return scientific(value)
    decimals = max(0, digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]))
    return _minus(f"{value:.{decimals}f}") if decimals <= 6 else scientific(value)


def rounded(value: float) -> str:
    """Return two significant digits."""
    return significant(value, 2) if value < 100 else scientific(float(f"{value:.2g}"))


def relative(low: float, high: float) -> str:
    """Say where ratios from low to high lie, to be followed by what they are ratios to: near 1 in per cent.

    >>> relative(0.51, 164), relative(1.7, 1.701)
    ('at 0.51 to 164 times', 'at 1.7 times')
    >>> relative(1.021, 1.043), relative(0.9929, 0.9955), relative(0.96, 1.038)
    ('2.1 to 4.3 % above', '0.45 to 0.71 % below', 'between 4.0 % below and 3.8 % above')
    >>> relative(0.9999, 1.026)
    'at most 2.6 % above'
    """
    if not 0.5 < low <= high < 1.5:
        first, last = significant(low, 2), significant(high, 2)
        return f"at {first if first == last else f'{first} to {last}'} times"
    first, last = (significant(100 * abs(ratio - 1), 2) for ratio in (low, high))
    if 1 - EQUAL < low < 1 < high:
        return f"at most {last} % above"
    if low < 1 <= high:
        return f"between {first} % below and {last} % above"
    first, last = (last, first) if high < 1 else (first, last)
    return f"{first if first == last else f'{first} to {last}'} % {'below' if high < 1 else 'above'}"


def power_of_ten(value: float) -> str:
    """Return 0.001 as 10⁻³, other numbers as they are."""
    exponent = np.log10(value) if value > 0 else np.nan
    if np.isfinite(exponent) and abs(exponent - round(exponent)) < 1e-9:
        return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:g}"


def scientific(value: float) -> str:
    """Return three significant digits, as a power of ten where the number is very large or small."""
    if not np.isfinite(value):
        return "not finite" if not np.isnan(value) else ""
    if value == 0 or 1e-4 <= abs(value) < LARGE:
        return _minus(f"{value:,.0f}") if abs(value) >= 1000 else significant(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    if abs(int(exponent)) >= 300:
        return _minus(f"{value:.1e}")
    return f"{_minus(mantissa)} × {power_of_ten(10.0 ** int(exponent))}"


def _minus(number: str) -> str:
    """Return a number with the sign that is no hyphen."""
    return number.replace("-", "−")


# Pages without the book's style sheet, such as JupyterLab, show the light figure alone.
_ONLY_ONE = (
    "<style>.hd-dark{display:none}html[data-theme=dark] .hd-dark{display:inline}"
    "html[data-theme=dark] .hd-light{display:none}</style>"
)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _lighter(svg: str) -> str:
    """Cut the coordinates of paths to a hundredth of a point: half the bytes, the same picture."""
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d{2})\d+", r"\1", path[0]), svg)


def between(values: pd.Series) -> str:
    """Return the lowest and the highest of the finite values, as `scientific` does, or one where they are the same."""
    finite = values[np.isfinite(values)]
    if finite.empty:
        return "no finite value"
    ends = dict.fromkeys((scientific(finite.min()), scientific(finite.max())))
    return " to ".join(ends)
