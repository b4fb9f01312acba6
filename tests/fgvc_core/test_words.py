"""Text from outside that would pass for ours."""

import logging

import pytest

from fgvc_core.words import OneRecord, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Äsculapnatter, 毛, naïve café", "Äsculapnatter, 毛, naïve café"),
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[2Jcleared\x07", r"\x1b[2Jcleared\x07"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("abc\u202edcba\u2066x\u200f", r"abc\u202edcba\u2066x\u200f"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_moves_hides_or_turns_text_is_shown_by_its_code(text, shown):
    assert visible(text) == shown


def logged(*words, error=None):
    record = logging.LogRecord("x", logging.WARNING, "", 1, words[0], words[1:], None)
    if error is not None:
        record.exc_info = (type(error), error, error.__traceback__)
    return OneRecord("%(levelname)s %(message)s").format(record)


def test_a_record_is_one_line_whatever_is_in_its_message():
    assert logged("refused: %s", "late\nERROR all is lost") == (
        r"WARNING refused: late\nERROR all is lost"
    )


def test_no_line_of_a_traceback_can_pass_for_a_record():
    try:
        raise ValueError("no\nERROR forged\x1b[0m")
    except ValueError as error:
        lines = logged("failed", error=error).split("\n")
    assert lines[0] == "WARNING failed"
    assert all(line.startswith("  | ") for line in lines[1:])
    assert r"ERROR forged\x1b[0m" in lines[-1]
