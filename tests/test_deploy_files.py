"""What is in ``deploy/``: every command is one, every path is named once, the bounds are ours."""

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import click
import pytest
import typer

from fgvc_core.errors import PeerError
from fieldmark.cli import app
from fieldmark.server.deployment.gateway import CALLS
from fieldmark.server.deployment.settings import GatewaySettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STATE = "/var/lib/fieldmark"


def parsed(words):
    """The names on the way to a command and what it is given; fails where there is no such one."""
    command, context, names, rest = typer.main.get_command(app), None, [], list(words)
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context)
        name, *rest = rest
        names.append(name)
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {' '.join(names)}"
    return names, command.make_context(names[-1], rest, parent=context).params


def folder_of(given):
    (found,) = [v for v in given.values() if isinstance(v, str) and v.startswith("/")]
    return Path(found)


def unit(path):
    found = configparser.RawConfigParser(strict=False)
    found.optionxform = str
    found.read_string(path.read_text())
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_a_unit_starts_a_command_of_ours_on_a_folder_of_its_own(path):
    service = unit(path)["Service"]
    binary, *words = shlex.split(service["ExecStart"])
    assert Path(binary).name in PROJECT["scripts"]
    names, given = parsed(words)
    assert names in (["server", "up"], ["site", "up"])
    # In the foreground, or systemd would think that it has ended.
    assert given["detach"] is False
    assert folder_of(given).parent == Path("/var/lib") / service["StateDirectory"]
    for named in service["Environment"].split():
        variable, _, where = named.partition("=")
        assert used(variable)
        assert where.startswith(STATE)


def used(variable):
    """Whether the product reads an environment variable."""
    rooms = ("fgvc_core", "client", "server", "simulations")
    files = (path for room in rooms for path in (ROOT / room).rglob("*.py"))
    return any(variable in path.read_text() for path in files)


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_a_unit_without_a_word(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60
    )
    about_it = [line for line in done.stderr.splitlines() if path.stem in line]
    assert (done.returncode, about_it) == (0, []), done.stderr


BOUNDED = ("MemoryHigh", "MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuota", "CPUWeight")
HELD = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ReadWritePaths": STATE,
    "PrivateTmp": "yes",
    "ProtectProc": "invisible",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
    "LimitCORE": "0",
    # Its default ends the whole unit where one process was killed for memory.
    "OOMPolicy": "continue",
}
EXPOSED = 2.0
"""What 'systemd-analyze security' may say at most, of 10: below 3 it calls a unit 'OK'."""


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_a_unit_is_bounded_in_memory_tasks_and_processor(path):
    service = unit(path)["Service"]
    for option in BOUNDED:
        assert re.fullmatch(r"\d+%?", service[option]), option
    high, most = (int(service[n].rstrip("%")) for n in ("MemoryHigh", "MemoryMax"))
    assert 0 < high < most <= 90
    # A gateway that serves all its connections at once, and what Flower starts, have room.
    assert int(service["TasksMax"]) >= 1000
    assert int(service["CPUQuota"].rstrip("%")) >= 100


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
def test_a_unit_may_write_its_own_folder_and_call_what_a_service_calls(path):
    service = unit(path)["Service"]
    assert {option: service.get(option) for option in HELD} == HELD


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.name)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_finds_a_unit_little_exposed(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(copy)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= EXPOSED, done.stdout


def test_the_containers_are_bounded_too():
    for name, service in composed()["services"].items():
        assert re.fullmatch(r"\$\{\w+_MEMORY:-\d+g\}", service["mem_limit"]), name
        assert service["memswap_limit"] == service["mem_limit"]
        assert re.fullmatch(r"\$\{\w+_CPUS:-\d+\}", service["cpus"]), name
        assert 1000 <= service["pids_limit"] <= 4096
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def composed():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_compose_file_starts_commands_of_ours_on_volumes_that_it_names():
    found = composed()
    commands = {name: parsed(shlex.split(s["command"])) for name, s in found["services"].items()}
    assert {name: names for name, (names, _) in commands.items()} == {
        "coordinator": ["server", "up"],
        "site": ["site", "up"],
    }
    for name, service in found["services"].items():
        assert (DEPLOY / service["build"] / "Dockerfile").is_file()
        mounted = {v.rpartition(":")[0]: v.rpartition(":")[2] for v in service["volumes"]}
        volume = next(v for v in service["volumes"] if not v.startswith("$"))
        source, _, target = volume.partition(":")
        assert source in found["volumes"]
        assert mounted[source] == target == STATE
        assert folder_of(commands[name][1]).is_relative_to(target)
    # One open port, the gateway's; a site has none.
    port = GatewaySettings().port
    assert found["services"]["coordinator"]["ports"] == [f"{port}:{port}"]
    assert "ports" not in found["services"]["site"]


def test_the_commands_in_its_comments_are_ours():
    text = (DEPLOY / "compose.yaml").read_text()
    lines = re.findall(r"^#\s+docker compose run --rm (\w+) (.*)$", text, re.M)
    assert len(lines) >= 2
    for service, command in lines:
        assert service in composed()["services"]
        parsed(shlex.split(command))


def test_the_image_takes_the_wheels_that_the_script_makes_and_begins_with_our_command():
    text = (DEPLOY / "Dockerfile").read_text()
    said = (DEPLOY / "wheels.py").read_text()
    (folder,) = re.findall(r"^COPY (?!--from)(\S+)", text, re.M)
    assert f"python deploy/wheels.py deploy/{folder}" in text
    lock = Path(re.search(r"-r (\S+)", text)[1]).name
    assert f'LOCK = "{lock}"' in said
    for option in ("--no-index", "--require-hashes"):
        assert option in text
    entry = Path(re.search(r'^ENTRYPOINT \["(\S+)"\]$', text, re.M)[1])
    assert entry.name in PROJECT["scripts"]
    # Where the units look for it, too.
    assert {shlex.split(unit(path)["Service"]["ExecStart"])[0] for path in UNITS} == {str(entry)}
    (named,) = re.findall(r"^ENV (.*)$", text, re.M)
    assert all(used(word.partition("=")[0]) for word in named.split())
    assert re.search(r"^USER (?!root)\w+$", text, re.M)
    python = re.search(r"^ARG BASE=python:(\d+)\.(\d+)", text, re.M)
    assert (int(python[1]), int(python[2])) >= (3, 11)


def test_a_unit_of_a_site_that_nobody_admits_any_more_is_not_started_again():
    service = unit(DEPLOY / "fieldmark-site.service")["Service"]
    assert service["RestartPreventExitStatus"] == str(PeerError.exit_code)


def test_the_proxies_forward_what_the_gateway_serves_and_nothing_else():
    nginx = (DEPLOY / "nginx.conf").read_text()
    (calls,) = re.findall(r"location ~ \^/v1/\(fleet/\((\S+)\)\|announcement\)\$", nginx)
    assert set(calls.split("|")) == CALLS
    caddy = (DEPLOY / "Caddyfile").read_text()
    (paths,) = re.findall(r"^\s*@site path (.*)$", caddy, re.M)
    assert set(paths.split()) == {f"/v1/fleet/{call}" for call in CALLS} | {"/v1/announcement"}


def test_their_bounds_are_the_gateways_own():
    bounds = GatewaySettings()
    nginx, caddy = ((DEPLOY / name).read_text() for name in ("nginx.conf", "Caddyfile"))
    assert f"client_max_body_size {bounds.body_mb:g}m;" in nginx
    assert f"max_size {bounds.body_mb:g}MB" in caddy
    assert f"client_header_timeout {bounds.slow_s:g}s;" in nginx
    assert f"read_header {bounds.slow_s:g}s" in caddy
    assert f"read_body {bounds.request_s:g}s" in caddy
    for text in (nginx, caddy):
        named = set(re.findall(r"gateway\.(\w+)", text.split("{")[0]))
        assert named <= set(GatewaySettings.model_fields)
        assert f"127.0.0.1:{bounds.port}" in text
