"""Columns of a CSV that lists pictures, read whole or, for tolerance, line by line."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvc_core.data.file_kinds import looks_like_picture
from fgvc_core.data.files import first_few
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.settings import DataSettings
from fgvc_core.data.sheets import is_comment, separator_of, utf8_lines, without_preamble
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.errors import DataError, nearest
from fgvc_core.words import counted

_USUAL = {
    "data.path_column": (
        "file", "filename", "filepath", "image", "imagefile", "imageid", "imagename", "imagepath",
        "img", "imgpath", "isicid", "name", "picture",
    ),
    "data.label_column": (
        "category", "choice", "class", "classname", "diagnosis", "dx", "scientificname", "species",
        "target",
    ),
}  # fmt: skip


_SET = frozenset({"1", "1.0", "true", "True", "TRUE"})
_FLAGS = _SET | {"0", "0.0", "false", "False", "FALSE"}


def _one_label(columns: Sequence[str]) -> str:
    """What to do about a table with one column for each class."""
    return (
        f"The columns {first_few(columns, 10)} each seem to stand for a class. Write one column "
        "'label' with the class's name instead, for instance in Python: "
        f"d = pandas.read_csv(F); d['label'] = d[{list(columns[:2])!r:.60}"
        f"{' + ...' if len(columns) > 2 else ''}].idxmax(axis=1); d.to_csv(F, index=False)."
    )


def plain_name(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.casefold())


@dataclass(frozen=True)
class Sheet:
    """Columns of a CSV by name; line numbers count from 1, the header."""

    name: str
    values: dict[str, list[str]]
    lines: list[int]

    def column(self, name: str, setting: str) -> list[str]:
        if name not in self.values:
            known = list(self.values)
            usual = next((n for n in known if plain_name(n) in _USUAL.get(setting, ())), None)
            hint = f"For instance --set {setting}={usual}." if usual else nearest(name, known)
            if any(looks_like_picture(n) for n in known):
                hint = "Its first line seems to be a picture's: give it a first line with names of "
                hint += "columns, for instance path,label."
            one_hot = self.one_hot()
            if one_hot and setting == "data.label_column":
                hint = _one_label(one_hot)
            elif one_hot:
                hint = f"{hint} {_one_label(one_hot)}".strip()
            hint = hint or f"Set {setting} to the column that you mean."
            raise DataError(
                f"{self.name} has no column '{name}' ({setting}).",
                why=f"Its columns are: {', '.join(known)}.",
                remedy=hint,
            )
        return self.values[name]

    def one_hot(self) -> list[str]:
        """Columns that each stand for a class: 1 in one of them in each line, and 0 elsewhere."""
        flags = [name for name, values in self.values.items() if set(values) <= _FLAGS]
        if len(flags) < 2 or not self.lines:
            return []
        rows = zip(*(self.values[name] for name in flags), strict=True)
        return flags if all(sum(value in _SET for value in row) == 1 for row in rows) else []

    def only(self, settings: DataSettings) -> "Sheet":
        """Lines of the site that the settings select; all lines without such a setting."""
        if settings.site_column is None:
            return self
        values = self.column(settings.site_column, "data.site_column")
        own = [i for i, value in enumerate(values) if value == settings.site_value]
        kept = {name: [column[i] for i in own] for name, column in self.values.items()}
        return Sheet(self.name, kept, [self.lines[i] for i in own])

    def filled(self, name: str, setting: str) -> list[str]:
        """A column that may have no empty values."""
        values = self.column(name, setting)
        empty = [self.lines[i] for i, value in enumerate(values) if not value]
        if empty:
            raise DataError(
                f"{self.name}: column '{name}' is empty in {counted(len(empty), 'line')}: "
                f"{first_few(empty)}.",
                why=f"Every picture needs a value there ({setting}).",
                remedy="Fill the values in, or take the lines out.",
            )
        return values

    def chosen(self, name: str | None, usual: str, setting: str) -> str | None:
        """Name of the column that the settings name, else the usual one if it exists."""
        if name is None:
            return usual if usual in self.values else None
        self.column(name, setting)
        return name


def _text(path: Path, name: str) -> bytes:
    """A list's text as UTF-8.

    Raises:
        DataError: for a spreadsheet, and for text of 16 or 32 bits a character without a mark.
        OSError: if it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(
            f"{name} is a spreadsheet or an archive, and no CSV.",
            remedy="Save it as 'CSV UTF-8' in the spreadsheet program, and set data.manifest to "
            "that file.",
        )
    content = utf8_lines(content)
    if b"\0" in content.partition(b"\n")[0]:
        raise DataError(
            f"{name} is no UTF-8 text: its first line holds zero bytes.",
            why="Text of 16 or 32 bits a character looks so.",
            remedy="Save it as UTF-8 ('CSV UTF-8' in spreadsheet programs; in a shell: "
            "iconv -f UTF-16LE -t UTF-8).",
        )
    return content


def read_sheet(root: Path, path: Path, name: str) -> Sheet:
    lines: list[int] = []
    try:
        refuse_unsound_list(root, path)
        content, skipped, separator = without_preamble(_text(path, name))
        # csv wants line ends as they are; splitlines would also split at a form feed.
        text = io.StringIO(content.decode("utf-8"), newline="")
        header_line = text.readline()
        separator = separator or separator_of(header_line.strip("\r\n"))
        text.seek(0)
        reader = csv.reader(text, delimiter=separator, strict=True, skipinitialspace=True)
        header = [field.strip() for field in next(reader, [])]
        _check_header(header, name)
        values: dict[str, list[str]] = {field: [] for field in header}
        for fields in reader:
            if not any(field.strip() for field in fields) or is_comment(fields, header):
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{name}, line {skipped + reader.line_num}: "
                    f"{counted(len(fields), 'field')} instead of {len(header)}.",
                    why="Values would land in the wrong columns.",
                    remedy="Mend the line; a value with a comma needs quotes.",
                )
            lines.append(skipped + reader.line_num)
            for field, value in zip(header, fields, strict=True):
                values[field].append(value.strip())
    except FileNotFoundError:
        raise _no_manifest(path) from None
    except csv.Error as error:
        raise DataError(
            f"{name}, line {skipped + reader.line_num}, cannot be read as a CSV: {error}.",
            why="A quotation mark opens a value that ends with the next one.",
            remedy="Close the quotation mark, or write two for one that belongs to the value.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as a CSV: {error}.",
            remedy="Save it as UTF-8 text ('CSV UTF-8' in spreadsheet programs; in a shell: "
            "iconv -f CP1252 -t UTF-8).",
        ) from None
    if not lines:
        raise DataError(f"{name} lists no pictures.", remedy="Give it one line a picture.")
    return Sheet(name, values, lines)


def read_line_by_line(root: Path, path: Path, name: str, left_out: LeftOut) -> Sheet:
    """Read the sheet without its damaged lines; no line affects how another is read.

    Raises:
        DataError: if there is no such file, or its header is damaged.
    """
    try:
        refuse_unsound_list(root, path)
        content, skipped, separator = without_preamble(_text(path, name))
    except FileNotFoundError:
        raise _no_manifest(path) from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}.") from None
    header_line, *lines = content.split(b"\n")
    separator = separator or separator_of(header_line.decode("utf-8", "replace").strip())
    header = [field.strip() for field in _fields(header_line, separator) or ()]
    if not header:
        raise DataError(
            f"{name} has no header line that can be read as comma-separated UTF-8.",
            remedy="Give it a first line with the names of its columns.",
        )
    _check_header(header, name)
    sheet = Sheet(name, {field: [] for field in header}, [])
    for number, line in enumerate(lines, start=skipped + 2):
        fields = _fields(line, separator)
        if not line.strip() or (fields and not any(field.strip() for field in fields)):
            continue
        if fields is not None and is_comment(fields, header):
            continue
        if fields is None or len(fields) != len(header):
            left_out.add("on a damaged line", f"line {number}")
            continue
        sheet.lines.append(number)
        for field, value in zip(header, fields, strict=True):
            sheet.values[field].append(value.strip())
    return sheet


def _fields(line: bytes, separator: str) -> list[str] | None:
    """Fields of one line; None if it is damaged."""
    try:
        text = line.rstrip(b"\r").decode("utf-8")
        (fields,) = csv.reader([text], delimiter=separator, strict=True, skipinitialspace=True)
    except (UnicodeDecodeError, ValueError, csv.Error):
        return None
    return fields


def _no_manifest(path: Path) -> DataError:
    return DataError(
        f"There is no manifest at '{path}'.",
        why="data.name = 'manifest' reads paths and labels from it.",
        remedy="Set data.manifest to the CSV's path, relative to data.path.",
    )


def _check_header(header: list[str], name: str) -> None:
    twice = [field for field, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(
            f"{name} has more than one column {first_few(twice)}.",
            why="It is not clear which one is meant.",
            remedy="Rename the columns.",
        )
