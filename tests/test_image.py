"""The image, built from wheels and the distribution's own packages, and started: make test-image.

The base is made of the distribution's packages, so nothing is pulled from a registry of images.
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from wheels_lab import gathered

DEPLOY = Path(__file__).parents[1] / "deploy"
WANTED = "FIELDMARK_TEST_IMAGE"
TOOLS = ("buildah", "mmdebstrap")
PACKAGES = "python3-venv,ca-certificates"

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(WANTED not in os.environ, reason="make test-image"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a base from packages needs root"),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool} on this machine")
        for tool in TOOLS
    ),
]


def codename():
    """The distribution's release, which its own packages belong to."""
    lines = Path("/etc/os-release").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_CODENAME", "").strip('"')


@pytest.fixture(scope="module")
def buildah(tmp_path_factory):
    """Runs buildah on a store of its own."""
    own = tmp_path_factory.mktemp("store")

    def run(*words, check=True):
        # chroot: no namespaces are needed, which many machines of a CI forbid.
        places = ["--root", str(own / "root"), "--runroot", str(own / "run")]
        command = ["buildah", *places, *map(str, words)]
        variables = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        if check:
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-4000:]}"
        return done

    yield run
    run("rm", "--all", check=False)
    run("rmi", "--all", "--force", check=False)


@pytest.fixture(scope="module")
def image(buildah, tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    whole = gathered(folder / "wheels")
    made = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", codename(),
            str(folder / "base.tar")]  # fmt: skip
    done = subprocess.run(made, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no base can be made here: {done.stderr.strip().splitlines()[-1]}")
    base = buildah("from", "scratch").stdout.strip()
    buildah("add", base, folder / "base.tar", "/")
    buildah("commit", base, "localhost/base")
    shutil.copy(DEPLOY / "Dockerfile", folder)
    (folder / "base.tar").unlink()
    buildah("build", "--pull=never", "--build-arg", "BASE=localhost/base",
            "--tag", "localhost/fieldmark", folder)  # fmt: skip
    return whole


@pytest.fixture(scope="module")
def shell(buildah, image):
    """Runs a line in a container of the image, as its own user."""
    container = buildah("from", "--pull=never", "localhost/fieldmark").stdout.strip()

    def run(line, check=True):
        return buildah("run", container, "--", "sh", "-c", line, check=check).stdout

    return run


def test_the_image_begins_with_our_command_as_a_user_of_its_own(buildah, shell):
    told = json.loads(buildah("inspect", "--type", "image", "localhost/fieldmark").stdout)
    config = told["OCIv1"]["config"]
    (entry,) = config["Entrypoint"]
    assert config["User"] == "fieldmark"
    assert "/var/lib/fieldmark" in config["Volumes"]
    assert shell("id -u").strip() == "10001"
    assert "fieldmark 0." in shell(f"{entry} --version")
    assert shell("touch /opt/fieldmark/bin/x 2>&1 || echo no").strip().endswith("no")


def test_a_coordinator_comes_up_in_it_and_a_site_makes_its_key(shell):
    bounds = "--host 127.0.0.1 --listen 127.0.0.1 --port 18443"
    said = shell(
        "cd /var/lib/fieldmark && PATH=/opt/fieldmark/bin:$PATH && set -e; "
        f"fieldmark server init federation {bounds}; fieldmark site key lyon.key; "
        "fieldmark server add-site federation lyon --their-key lyon.key.pub; "
        "fieldmark server up federation --detach; fieldmark server status federation; "
        "fieldmark server stop federation"
    )
    assert "up, SuperLink serving" in said
    assert "kit: federation/kits/lyon.kit" in said
    assert said.strip().endswith("stopped")


def test_what_is_installed_in_it_belongs_together(shell):
    assert "No broken requirements" in shell("/opt/fieldmark/bin/pip check")


def test_a_federation_is_simulated_in_it(shell, image):
    if not image:
        pytest.skip("torchvision is not a CPU build here: it does not load beside torch's")
    sets = ("data.image_size=32", "data.fieldmarks_train=60", "data.fieldmarks_test=12",
            "partition.sites=2", "federation.rounds=1")  # fmt: skip
    options = " ".join(f"--set {one}" for one in sets)
    shell(
        "cd /var/lib/fieldmark && touch r.toml && "
        f"/opt/fieldmark/bin/fieldmark simulate r.toml {options} && test -f runs/run/report.html"
    )
