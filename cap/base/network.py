"""Whether the Hub can be reached at all, asked once. Any room may import this."""

from __future__ import annotations

import functools
import logging
import socket
import urllib.request
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

_TIMEOUT_SECONDS = 5

log = logging.getLogger(__name__)

HUB_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""What the Hub's answers and broken connections raise: of httpx or httpx2, as the release of huggingface_hub has it."""


def hub_is_reachable() -> bool:
    """Say whether the Hub answers; where it does not, its libraries would try for minutes before they say so.

    Returns:
        False in offline mode or when no connection can be made; True behind a proxy, where only the libraries know the
        way.
    """
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@functools.cache
def _answers(endpoint: str) -> bool:
    if {"http", "https", "all"} & urllib.request.getproxies().keys():  # what else there is names exceptions
        return True
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), _TIMEOUT_SECONDS).close()
    except OSError:
        log.warning("%s does not answer; using what the local cache holds", endpoint)
        return False
    return True


__all__ = ["HUB_ERROR", "hub_is_reachable"]
