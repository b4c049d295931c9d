"""How the operator logs: JSON in the cluster, colour on a terminal; kopf's own records take the same way."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(style: str) -> None:
    """Set logging up; `style` is `json`, `console`, or `auto` (console on a terminal)."""
    is_console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    renderer: structlog.typing.Processor = structlog.dev.ConsoleRenderer() if is_console else structlog.processors.JSONRenderer()
    finish: list[structlog.typing.Processor] = [] if is_console else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[*shared, *finish, renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish, renderer],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
