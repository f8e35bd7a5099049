import pytest
import servers
from models import saved


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The model that is served."""
    return saved(tmp_path_factory.mktemp("served") / "tiny", 1)


@pytest.fixture(scope="session")
def url(folder):
    """The shipped server in its own process, with a key."""
    with servers.polydistill_serve(folder, "--api-key-env", servers.VARIABLE, **{servers.VARIABLE: servers.KEY}) as url:
        yield url


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(servers.VARIABLE, servers.KEY)
