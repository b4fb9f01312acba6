"""Readers for CUB's text files: one record per line, an id first, separated by blanks."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fgvc_core.data.files import first_few
from fgvc_core.data.labels import LeftOut
from fgvc_core.data.soundness import refuse_unsound_list
from fgvc_core.errors import DataError

_NUMBER = re.compile("[0-9]{1,18}")


def damaged(what: str, why: str = "The tree is not as CUB-200-2011 was published.") -> DataError:
    """Error for a tree whose text files are missing, damaged or contradictory."""
    return DataError(what, why=why, remedy="Unpack the published archive again, or mend the file.")


def read_names(root: Path, name: str) -> dict[int, str]:
    """Read lines of ``id text`` by id, in file order.

    Raises:
        DataError: if the file is missing, a line has no number or no text, or an id repeats.
    """
    names: dict[int, str] = {}
    for line_number, line in enumerate(_read_lines(root, name), start=1):
        if not line.strip():
            continue
        key, _, text = line.strip().partition(" ")
        number = number_in(key)
        if number is None or not text.strip():
            raise damaged(f"{name}, line {line_number}: '{line[:60]}' is not 'number name'.")
        if number in names:
            raise damaged(f"{name}, line {line_number}: the number {key} is listed twice.")
        names[number] = text.strip()
    if not names:
        raise damaged(f"{name} is empty.")
    return names


def read_numbers(root: Path, name: str, columns: int | None = None) -> NDArray[np.float64]:
    """Read a file of numbers as float64 (lines, columns).

    Raises:
        DataError: if the file is missing or empty, or a line does not have ``columns``
            finite numbers.
    """
    lines = _read_lines(root, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            numbers_LC = np.loadtxt(lines, dtype=np.float64, ndmin=2, comments=None)
    except (ValueError, UserWarning) as error:
        raise damaged(f"{name} is not a table of numbers: {str(error).split(';')[0]}.") from None
    if columns is not None and numbers_LC.shape[1] != columns:
        raise damaged(f"{name} has {numbers_LC.shape[1]} numbers a line instead of {columns}.")
    if not np.isfinite(numbers_LC).all():
        raise damaged(f"{name} holds numbers that are not finite.")
    return numbers_LC


def align(
    numbers_LC: NDArray[np.float64], image_ids: Sequence[int], name: str
) -> NDArray[np.float64]:
    """Order the lines of a table like the images, and drop their id column.

    Lines of images that are not in the tree are ignored: a subset of the data set may keep
    the published files unchanged.

    Raises:
        DataError: if an image has no line or more than one.
    """
    at = {int(key): line for line, key in enumerate(numbers_LC[:, 0])}
    if len(at) != len(numbers_LC):
        twice = [int(k) for k, n in Counter(numbers_LC[:, 0].tolist()).items() if n > 1]
        raise damaged(f"{name} has more than one line for image {first_few(twice)}.")
    absent = [i for i in image_ids if i not in at]
    if absent:
        raise damaged(f"{name} has no line for {len(absent)} images: {first_few(absent)}.")
    return numbers_LC[[at[i] for i in image_ids], 1:]


def readable_lines(root: Path, name: str, left_out: LeftOut) -> dict[int, str]:
    """Read lines of ``id text`` by id; the first line of an id counts.

    Raises:
        DataError: if there is no such file, or it cannot be read at all.
    """
    found: dict[int, str] = {}
    for image_id, text in readable_pairs(root, name, left_out):
        found.setdefault(image_id, text)
    return found


def readable_pairs(root: Path, name: str, left_out: LeftOut) -> list[tuple[int, str]]:
    """Read lines of ``id text`` in file order; damaged lines are left out, equal ids kept.

    Raises:
        DataError: if there is no such file, or it cannot be read at all.
    """
    try:
        refuse_unsound_list(root, root / name)
        lines = (root / name).read_bytes().split(b"\n")
    except FileNotFoundError:
        raise damaged(f"'{root / name}' does not exist.") from None
    except OSError as error:
        raise damaged(f"'{root / name}' cannot be read: {error.strerror}.") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, _, text = line.decode("utf-8", "replace").strip().partition(" ")
        image_id = number_in(key)
        if image_id is None or not text.strip() or "\ufffd" in text:
            left_out.add("on a damaged line", f"{name}, line {number}")
        else:
            found.append((image_id, text.strip()))
    return found


def number_in(text: str) -> int | None:
    """Parse a non-negative integer of 1 to 18 digits, 0 to 9; None for any other text.

    ``int`` alone raises above 4,300 digits and accepts digits of other scripts.

    >>> number_in("007"), number_in("-1"), number_in("9" * 5000)
    (7, None, None)
    """
    return int(text) if _NUMBER.fullmatch(text) else None


def _read_lines(root: Path, name: str) -> list[str]:
    # Split at newlines only: str.splitlines would also split at a form feed.
    try:
        refuse_unsound_list(root, root / name)
        return (root / name).read_bytes().decode("utf-8").split("\n")
    except FileNotFoundError:
        raise damaged(f"'{root / name}' does not exist.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise damaged(f"'{root / name}' cannot be read as text: {error}.") from None
