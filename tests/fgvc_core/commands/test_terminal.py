"""What a person sees on a terminal: no color where they want none, and lines that fit."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fgvc_core.commands.terminal import fitted

COLOR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38)[;m]")
DEMO = str(Path(__file__).parents[3] / "simulations" / "recipes" / "demo.toml")


def shown(words, width, **environment):
    """What a command shows on a terminal so many characters wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    command = [sys.executable, *(words if words[0] == "-c" else ("-m", "fieldmark", *words))]
    process = subprocess.Popen(
        command,
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
    )  # fmt: skip
    os.close(theirs)
    found = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other end is closed.
            part = b""
        if not part:
            break
        found += part
    os.close(ours)
    assert process.wait(60) == 0
    return found.decode()


@pytest.mark.parametrize("words", [["--help"], ["new", "--help"], ["recipes"]], ids=" ".join)
def test_no_color_is_shown_to_whom_wants_none(words):
    assert not COLOR.search(shown(words, 80, NO_COLOR="1"))


def test_others_get_colors():
    assert COLOR.search(shown(["--help"], 80))


@pytest.mark.parametrize(
    "words", [["--help"], ["new", "--help"], ["explain-recipe", DEMO], ["recipes"]], ids=" ".join
)
def test_words_are_whole_on_a_narrow_terminal(words):
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(words, 44, NO_COLOR="1"))
    wide = [line for line in plain.replace("\r", "").split("\n") if len(line) > 44]
    # A path is one word, however long it is.
    assert [line for line in wide if "/" not in line] == []


WORK = """
import sys, time
from fgvc_core.commands.terminal import progress
with progress("Working", **{options}) as tell:
    for done in range(1, 4):
        time.sleep(.3)
        tell(done, 3)
"""


def test_progress_says_how_much_is_left():
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(["-c", WORK.format(options={})], 80))
    assert "Working" in plain
    assert "2/3" in plain
    assert re.search(r"2/3 0:00:0\d", plain)


def test_a_bar_that_waits_comes_with_its_work():
    told = WORK.format(options={"waits": True, "ends": True}).replace(
        "time.sleep", "print(0);time.sleep"
    )
    plain = shown(["-c", told], 80)
    assert plain.index("0") < plain.index("Working")


def test_nothing_is_shown_where_nobody_looks():
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(options={})], capture_output=True, check=True
    )
    assert done.stdout + done.stderr == b""


def test_a_program_gets_whole_sentences():
    assert fitted("word " * 40, "  ") == "  " + "word " * 40
