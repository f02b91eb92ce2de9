"""References are called by author and year, in the text and in the list alike: [Baydin et al., 2018a]."""

from __future__ import annotations

from collections import Counter
from string import ascii_lowercase

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle


class AuthorYearLabels(BaseLabelStyle):
    """Labels such as "Baydin et al., 2018a", with a letter where two would be the same."""

    def format_labels(self, sorted_entries):
        names = [f"{_authors(entry)}, {entry.fields.get('year', 'n.d.')}" for entry in sorted_entries]
        often, seen = Counter(names), Counter()
        for name in names:
            yield name + (ascii_lowercase[seen[name]] if often[name] > 1 else "")
            seen[name] += 1


class AuthorYearStyle(PlainStyle):
    default_label_style = AuthorYearLabels


def _authors(entry) -> str:
    names = [" ".join(person.prelast_names + person.last_names) for person in entry.persons["author"]]
    return names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} et al."


def setup(app):
    register_plugin("pybtex.style.formatting", "author_year", AuthorYearStyle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
