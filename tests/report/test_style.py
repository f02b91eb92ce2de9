"""Tables show what they hold, whatever it is."""

import pandas as pd

from hdlib.report.style import LONG, Table


def test_text_is_escaped_and_a_sentence_broken_into_lines():
    sentence = "α < β & " * LONG
    shown = Table(pd.DataFrame({"a < b": ["<b>", sentence], "n": [1.5, 2.5]}), "a < b")._repr_html_()
    assert "<b>" not in shown and "&lt;b&gt;" in shown and "a < b" not in shown
    assert shown.count("hd-long") == 1 and "α &lt; β &amp; " * LONG in shown
    assert "<td>1.5</td>" in shown
