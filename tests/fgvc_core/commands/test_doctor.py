"""What a machine lacks is named with what to do about it, and no check ends the others."""

import json
import os
import tempfile

import pytest
from typer.testing import CliRunner

import fieldmark.cli
from fgvc_core.commands import doctor
from fgvc_core.errors import ConfigurationError


def finding(name):
    (found,) = [f for f in doctor.examine().findings if f.name == name]
    return found


def test_this_machine_is_examined_to_the_end():
    done = CliRunner().invoke(fieldmark.cli.app, ["doctor", "--json"])
    found = json.loads(done.output)
    assert done.exit_code == (0 if found["ok"] else 2)
    assert [check["name"] for check in found["checks"]] == [
        *("version", "python", "libraries", "extras", "weights", "device", "cores", "memory"),
        *("shared memory", "disk", "temporary folder", "open files", "terminal", "proxy", "ports"),
    ]
    assert all(check["level"] in ("ok", "note", "failed") for check in found["checks"])
    assert finding("libraries").level == "ok"


def test_a_library_of_another_version_or_that_is_missing_fails(monkeypatch):
    needed = ["numpy>=999", "no-such-library", 'onnx>=999; extra == "export"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    found = finding("libraries")
    assert (found.level, found.exit_code) == ("failed", 2)
    assert "numpy" in found.said
    assert ">=999" in found.said
    assert "no-such-library is missing" in found.said
    assert "onnx" not in found.said


def test_a_cache_that_cannot_be_written_or_is_full_fails(monkeypatch, tmp_path):
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "new"))
    assert finding("disk").level == "ok"
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert "0.1 GB free" in finding("disk").said
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in finding("disk").said
    assert "cannot be written" in finding("shared memory").said


@pytest.mark.parametrize(
    ("variables", "level", "said"),
    [
        ({}, "ok", "none"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "note", "HTTPS_PROXY is set"),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "note", "SOCKS"),
    ],
)
def test_proxies_are_named(monkeypatch, variables, level, said):
    for name in ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = finding("proxy")
    assert (found.level, said in found.said) == (level, True)


def test_little_memory_and_a_terminal_without_unicode_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "_available_gb", lambda: 0.4)
    assert finding("memory").said == "0.4 GB free, 2 needed"
    monkeypatch.setattr(doctor.locale, "getpreferredencoding", lambda do_setlocale: "ISO-8859-1")
    assert finding("terminal").level == "note"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert "OMP_NUM_THREADS = 8" in finding("cores").said


def test_a_check_that_fails_does_not_end_the_others(monkeypatch):
    def broken(**_):
        raise OSError("no room at all")

    def homeless():
        raise ConfigurationError("No home.", remedy="Set HOME.")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", broken)
    monkeypatch.setattr(doctor, "cache_folder", homeless)
    assert "no room at all" in finding("temporary folder").said
    found = finding("disk")
    assert (found.level, found.said, found.remedy) == ("failed", "No home.", "Set HOME.")
    assert finding("ports").level == "ok"
