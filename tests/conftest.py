"""Fixtures that several rooms' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import apiserver
import pytest


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apiserver.ApiServer]:
    """A real kube-apiserver with our definitions and rights installed, for the whole run."""
    if apiserver.binaries() is None:
        pytest.skip("no kube-apiserver: start the lab once, which builds it, or set KUBEBUILDER_ASSETS")
    with apiserver.running(tmp_path_factory.mktemp("apiserver")) as server:
        server.install()
        yield server
