"""How the operator reaches the API server: kubernetes-asyncio logs in, whatever the kubeconfig asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kubernetes_asyncio import config
from kubernetes_asyncio.client import ApiClient, Configuration, EventsV1Api

from tidegate.kube.client import Client
from tidegate.kube.credentials import CredentialsError


@dataclass(frozen=True, slots=True)
class Access:
    """The door for raw bytes, and what is written with typed calls, over one pool of connections."""

    client: Client
    events: Any
    configuration: Any


async def connect(kubeconfig: str | None) -> Access:
    """Log in by `kubeconfig`, or as the pod that we run in. Raises CredentialsError."""
    configuration = Configuration()
    try:
        if kubeconfig:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        remedy = "" if kubeconfig else ": outside of a pod name a kubeconfig with --kubeconfig or $KUBECONFIG"
        raise CredentialsError(f"{kubeconfig or 'service account'}: {error}{remedy}") from error
    # A watch keeps its connection for itself, so the pool must not have an end.
    configuration.connection_pool_maxsize = 0
    api = ApiClient(configuration)

    async def authorize() -> Mapping[str, str]:
        token = await configuration.get_api_key_with_prefix("BearerToken")
        return {"Authorization": token} if token else {}

    client = Client(api.rest_client.pool_manager, configuration.host or "", authorize)
    return Access(client, EventsV1Api(api), configuration)
