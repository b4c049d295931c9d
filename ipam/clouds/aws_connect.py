"""How EC2 is reached: a client of boto3 that tries each request once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from tidegate.ipam.cloud import CloudError, Trouble
from tidegate.ipam.clouds.aws_answers import translate
from tidegate.ipam.clouds.requests import THREADS

CONNECT_S, ANSWER_S = 5.0, 60.0


def connect(region: str, keys: Mapping[str, str], endpoint: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Return a client, and the exceptions that its requests raise; nothing is sent yet.

    Raises `CloudError` where the SDK is missing or there is no region.
    """
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from botocore.session import Session
    except ImportError as error:
        raise CloudError(Trouble.UNSUPPORTED, "", f"install tidegate[aws]: {error}") from error
    config = Config(
        retries={"total_max_attempts": 1}, connect_timeout=CONNECT_S, read_timeout=ANSWER_S, max_pool_connections=THREADS
    )
    core = Session()
    core.register_component("data_loader", _descriptions())
    try:
        session = boto3.session.Session(
            aws_access_key_id=keys.get("accessKeyID"),
            aws_secret_access_key=keys.get("secretAccessKey"),
            aws_session_token=keys.get("sessionToken"),
            region_name=region or None,
            botocore_session=core,
        )
        client = session.client("ec2", config=config, endpoint_url=endpoint or None)
    except BotoCoreError as error:
        raise translate(error) from error
    return client, (BotoCoreError, ClientError, ResponseParserError)


@cache
def _descriptions() -> Any:
    """Return what reads the SDK's descriptions of services, once for all accounts: EC2's takes 0.3 s and 30 MB."""
    from botocore.loaders import create_loader

    return create_loader()
