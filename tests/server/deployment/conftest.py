"""What tests of the coordinator's deployment share."""

import pytest

from fieldmark.server.deployment import launching, run_request
from fieldmark.server.deployment.provisioning import add_site, init_server
from fieldmark.server.deployment.settings import DeploymentSettings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A coordinator's folder with one site, taken for up."""
    made = tmp_path / "federation"
    init_server(made, DeploymentSettings(hosts=("127.0.0.1",)))
    add_site(made, "lyon")
    for module in (launching, run_request):
        monkeypatch.setattr(module, "check_idle", lambda folder: None)
    return made
