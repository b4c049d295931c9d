"""What holds for every test, and fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import apiserver
import pytest
from hypothesis import settings

# No test passes or fails on a time: a busy machine is not a defect.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apiserver.ApiServer]:
    """A real kube-apiserver with our definitions and rights installed, for the whole run."""
    with apiserver.running(tmp_path_factory.mktemp("apiserver")) as server:
        server.install()
        yield server
