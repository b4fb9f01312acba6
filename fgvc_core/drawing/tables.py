"""Tables of pages that fold on a narrow screen, instead of being cut off.

A folded table shows each row as a block: its name, then one line per cell with the cell's column
named on the left. The style sheet does it from ``data-label``, which is written here for all tables
of a page at once, so that no template repeats its heads. Roles keep a folded table a table for
screen readers.
"""

import re

_TABLE = re.compile(r"<table>.*?</table>", re.S)
_HEAD = re.compile(r'<th scope="col"[^>]*>(.*?)</th>', re.S)
_BODY = re.compile(r"<tbody>.*?</tbody>", re.S)
_ROW = re.compile(r"<tr[ >].*?</tr>", re.S)
_CELL = re.compile(r'<(td|th scope="row")')
_HIDDEN = re.compile(r'<span[^>]* aria-hidden="true"[^>]*>.*?</span>', re.S)
_MARKUP = re.compile(r"<[^>]*>")


def folding(page: str) -> str:
    """The page with ``data-label`` on all cells of its tables, and ARIA roles.

    Args:
        page: HTML of our templates, whose values are escaped: every ``<`` is markup of theirs. A
            table's columns are ``<th scope="col">``, the names of its rows ``<th scope="row">``. A
            span with ``aria-hidden`` is no part of a column's name.
    """
    return _TABLE.sub(lambda found: _table(found[0]), page)


def _table(table: str) -> str:
    heads = [
        " ".join(_MARKUP.sub("", _HIDDEN.sub("", head)).split()) for head in _HEAD.findall(table)
    ]
    table = _BODY.sub(lambda body: _ROW.sub(lambda row: _row(row[0], heads), body[0]), table)
    for tag, role in (("table", "table"), ("thead", "rowgroup"), ("tbody", "rowgroup")):
        table = table.replace(f"<{tag}>", f'<{tag} role="{role}">')
    table = table.replace('<th scope="col"', '<th scope="col" role="columnheader"')
    table = re.sub(r"<tr(?=[ >])", '<tr role="row"', table)
    return table.replace('<th scope="row"', '<th scope="row" role="rowheader"').replace(
        "<td", '<td role="cell"'
    )


def _row(row: str, heads: list[str]) -> str:
    labels = iter(heads)

    def labelled(found: re.Match[str]) -> str:
        # Heads are text of a page already: escaped, quotes included.
        return f'{found[0]} data-label="{next(labels, "")}"'

    return _CELL.sub(labelled, row)
