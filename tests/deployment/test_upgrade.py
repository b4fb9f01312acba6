"""The upgrade drill of the operations page: forward by itself, back by what the message says."""

import contextlib
import shlex
import sqlite3
import subprocess
import sys

import pytest

from fieldmark.server.deployment.processes import free_loopback_port
from fieldmark.server.deployment.storage import DATABASE

pytestmark = [pytest.mark.deployment, pytest.mark.slow]

BEFORE = "d90a2f91f23c"
"""The database's revision under Flower 1.41, which lacks the column below."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command of ours in a folder with a coordinator and one site."""
    folder = tmp_path_factory.mktemp("upgrade")

    def command(words, code=0):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fieldmark", *shlex.split(words)],
            cwd=folder, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    command.database = folder / "fed" / "state" / DATABASE
    command.log = folder / "fed" / "logs" / "supervisor.log"
    port = free_loopback_port()
    command(f"server init fed --host 127.0.0.1 --listen 127.0.0.1 --port {port}")
    command("site key lyon.key")
    command("server add-site fed lyon --their-key lyon.key.pub")
    try:
        up_and_down(command)
        yield command
    finally:
        with contextlib.suppress(AssertionError):
            command("server stop fed")


def up_and_down(run):
    """Start the coordinator, wait for its sites to be nodes, and stop it; what its status was."""
    run("server up fed --detach")
    said = run("server status fed")
    run("server stop fed")
    return said


def sql(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as link:
        for statement in statements:
            link.execute(statement)
        link.commit()


def revision(path):
    with contextlib.closing(sqlite3.connect(path)) as link:
        return link.execute("select version_num from alembic_version").fetchone()[0]


def test_a_database_of_the_version_before_is_brought_up_to_date_at_the_start(run):
    now = revision(run.database)
    assert now != BEFORE
    sql(
        run.database,
        "alter table compacted_contexts drop column token_count",
        f"update alembic_version set version_num = '{BEFORE}'",
    )
    assert "up, SuperLink serving" in up_and_down(run)
    assert revision(run.database) == now


def test_a_database_of_a_later_version_is_refused_at_once_and_the_remedy_is_one(run):
    sql(run.database, "update alembic_version set version_num = 'f0f0f0f0f0f0'")
    said = run("server up fed --detach", code=3)
    assert "is of a later version" in said
    assert "sites' keys are registered again from sites.json" in said
    for path in run.database.parent.glob(f"{DATABASE}*"):
        path.unlink()
    before = run.log.read_text().count("site lyon is node")
    assert "up, SuperLink serving" in up_and_down(run)
    assert run.log.read_text().count("site lyon is node") == before + 1
