"""How Alibaba Cloud is reached: credentials, endpoint, and one request by the official SDK."""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from tidegate.ipam.cloud import CloudError, Trouble
from tidegate.ipam.clouds.alibaba_answers import Answer

METADATA = "http://100.100.100.200"
"""Where a machine of this provider learns about itself."""


def _sdk(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CloudError(Trouble.UNSUPPORTED, "", f"install tidegate[alibaba]: {error}") from error


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that requests end with."""
    exceptions = _sdk("aliyunsdkcore.acs_exception.exceptions")
    # A ValueError is an answer that is no JSON, or only a part of it.
    return exceptions.ClientException, exceptions.ServerException, OSError, ValueError


def known(keys: Mapping[str, str], environment: Mapping[str, str]) -> Mapping[str, str]:
    """Return the keys, or where there are none, those of the environment.

    >>> known({}, {"ALIBABA_CLOUD_ACCESS_KEY_ID": "a", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "b"})
    {'accessKeyID': 'a', 'secretAccessKey': 'b'}
    """
    return keys or {name: environment[variable] for variable, name in _VARIABLES.items() if variable in environment}


_VARIABLES = {
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "accessKeyID",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "secretAccessKey",
    "ALIBABA_CLOUD_SECURITY_TOKEN": "sessionToken",
    "ALIBABA_CLOUD_ECS_METADATA": "role",
}


def client(
    region: str, keys: Mapping[str, str], port: int | None, connect_s: int, answer_s: int, threads: int, metadata: str = METADATA
) -> Any:
    """Return the SDK's client, its own retries off.

    Raises `CloudError` where there are no credentials. The signer is put in its place by hand: the SDK would prefer variables of
    the environment to a role and to temporary keys.
    """
    # Its log repeats requests that were refused, with their tokens; whatever it says is raised as well.
    logging.getLogger("aliyunsdkcore").setLevel(logging.CRITICAL + 1)
    core = _sdk("aliyunsdkcore.client")
    credentials = _sdk("aliyunsdkcore.auth.credentials")
    id, secret, token = (keys.get(name, "") for name in ("accessKeyID", "secretAccessKey", "sessionToken"))
    signer: Any
    if id and token:
        sts = _sdk("aliyunsdkcore.auth.signers.sts_token_signer")
        signer = sts.StsTokenSigner(credentials.StsTokenCredential(id, secret, token))
    elif id:
        signer = None
    else:
        role = _sdk("aliyunsdkcore.auth.signers.ecs_ram_role_signer")
        signer = role.EcsRamRoleSigner(credentials.EcsRamRoleCredential(keys.get("role", "") or _role(metadata)))
    made = core.AcsClient(
        ak=id or "-",
        secret=secret or "-",
        region_id=region,
        auto_retry=False,
        port=port or 443,
        connect_timeout=connect_s,
        timeout=answer_s,
        pool_size=threads,
    )
    if signer:
        made._signer = signer
    return made


def asking(client: Any, region: str, endpoint: str) -> Callable[[str, Mapping[str, object]], Answer]:
    """Return what sends one request: an action and its parameters, and returns the answer."""
    types, exceptions = _sdk("aliyunsdkcore.http.protocol_type"), _sdk("aliyunsdkcore.acs_exception.exceptions")
    where = urlsplit(endpoint)

    def ask(action: str, asked: Mapping[str, object]) -> Answer:
        product, version = ("vpc", "v20160428") if action == "DescribeVSwitches" else ("ecs", "v20140526")
        request = getattr(_sdk(f"aliyunsdk{product}.request.{version}.{action}Request"), f"{action}Request")()
        request.set_accept_format("json")
        # The SDK speaks plain HTTP unless told, and tells the two apart by identity, not by text.
        request.set_protocol_type(types.HTTP if where.scheme == "http" else types.HTTPS)
        if where.hostname:
            request.set_endpoint(where.hostname)
        for name, value in asked.items():
            request.add_query_param(name, value)
        try:
            answer: Answer = json.loads(client.do_action_with_exception(request))
        except IndexError as error:
            # The SDK (core 2.16.1) looks behind a colon in the message of this refusal without asking whether there is one.
            raise exceptions.ServerException("SignatureDoesNotMatch", "", 400) from error
        return answer

    return ask


def _role(metadata: str) -> str:
    """Return the name of this machine's RAM role."""
    try:
        with urlopen(f"{metadata}/latest/meta-data/ram/security-credentials/", timeout=2) as answer:
            return str(answer.read().decode().split()[0])
    except (OSError, IndexError) as error:
        message = "no access key in the Secret or the environment, and this machine has no RAM role"
        raise CloudError(Trouble.DENIED, "NoCredentials", message) from error
