"""A run's bundle carries no code, and whatever is not it to the bit is refused unopened."""

import io
import warnings
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgvc_core.errors import PeerError
from fgvc_core.protocol.bundle import check_bundle, make_bundle


def with_file(name, content=b""):
    buffer = io.BytesIO(make_bundle())
    with zipfile.ZipFile(buffer, "a") as file, warnings.catch_warnings(action="ignore"):
        file.writestr(name, content)
    return buffer.getvalue()


def test_it_names_two_apps_and_holds_no_python():
    with zipfile.ZipFile(io.BytesIO(make_bundle())) as file:
        assert file.namelist() == ["pyproject.toml", ".info/CONTENT"]
        text = file.read("pyproject.toml").decode()
    assert 'serverapp = "fieldmark.server.app:app"' in text
    assert 'clientapp = "fieldmark.client.app:app"' in text


def test_flower_takes_it_for_an_app_with_one_setting():
    from flwr.cli.config_utils import get_fab_config, validate_config

    config = get_fab_config(make_bundle())
    valid, errors, _ = validate_config(config, check_module=False)
    assert valid, errors
    assert config["tool"]["flwr"]["app"]["config"] == {"run-dir": ""}


@pytest.mark.parametrize(
    ("bundle", "said"),
    [
        (with_file("client/app.py", b"import os"), "also carries 'client/app.py'"),
        (with_file("sitecustomize.py"), "sitecustomize"),
        (with_file("pyproject.toml", b"[project]"), "description"),
        (b"PK\x03\x04 no zip", "no zip"),
        (b"", "no zip"),
        (make_bundle() + b"x" * 100_000, "bytes"),
    ],
    ids=["a module", "a start-up hook", "twice described", "no zip", "empty", "large"],
)
def test_any_other_bundle_is_refused_with_what_it_holds(bundle, said):
    with pytest.raises(PeerError, match=said):
        check_bundle(bundle)


def test_ours_is_let_through():
    check_bundle(make_bundle())


@given(st.integers(0, len(make_bundle()) - 1), st.integers(1, 255))
def test_one_changed_byte_is_enough_to_be_refused(at, by):
    changed = bytearray(make_bundle())
    changed[at] = (changed[at] + by) % 256
    with pytest.raises(PeerError):
        check_bundle(bytes(changed))
