"""What an EC2 instance knows of itself: the instance metadata service, version 2."""

from __future__ import annotations

import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from cirrus.errors import ConfigError, RunError
from cirrus.paramserver.host_records import parse_shards

#: Environment variable that names another metadata service, as the AWS SDKs have it.
ENDPOINT_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
DEFAULT_ENDPOINT = "http://169.254.169.254"
#: Instance tags that the client sets.
RUN_TAG = "cirrus:run"
SHARDS_TAG = "cirrus:shards"
REQUEST_SECONDS = 2.0
ATTEMPTS = 4
RETRY_SECONDS = 0.2
TOKEN_SECONDS = 21600
#: A longer answer is none of the service's.
MAX_ANSWER_BYTES = 64 * 1024
_NOT_FOUND = 404
_UNAUTHORIZED = 401


@dataclass(frozen=True, kw_only=True)
class Instance:
    """What an instance was launched as."""

    instance: str
    """Its id."""
    address: str
    """Its private IP address."""
    instance_type: str
    run: str
    """The run that it was launched for."""
    shards: tuple[int, ...]
    """Which shards of that run."""


class InstanceMetadata:
    """Asks the metadata service of the instance that this process runs on.

    Args:
        endpoint: Its URL; None: what the environment names, else the address that AWS gives it.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = (endpoint or os.environ.get(ENDPOINT_VARIABLE) or DEFAULT_ENDPOINT).rstrip("/")
        # Never through a proxy: another machine's answer would be about that machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._token: str | None = None
        self._lock = threading.Lock()

    def get(self, path: str) -> str | None:
        """Return the value at a path below ``latest/meta-data/``, or None where there is none.

        Raises:
            RunError: The service does not answer, or refuses.
        """
        with self._lock:
            for attempt in range(ATTEMPTS):
                try:
                    return self._get(path)
                except urllib.error.HTTPError as error:
                    error.close()
                    if error.code == _NOT_FOUND:
                        return None
                    if error.code == _UNAUTHORIZED:  # the token has expired
                        self._token = None
                    problem: Exception = error
                except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
                    problem = error
                time.sleep(RETRY_SECONDS * 2**attempt)  # there is nothing to wait on but the service
        raise RunError(f"the instance metadata service {self._endpoint} gives no {path}: {problem}")

    def _get(self, path: str) -> str:
        if self._token is None:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            self._token = self._ask("PUT", "latest/api/token", ttl)
        return self._ask("GET", f"latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self._endpoint}/{path}", method=method, headers=headers)
        with self._opener.open(request, timeout=REQUEST_SECONDS) as answer:
            data: bytes = answer.read(MAX_ANSWER_BYTES)
        return data.decode()

    def instance(self) -> Instance:
        """Return what this instance was launched as.

        Raises:
            ConfigError: A tag is missing or wrong.
            RunError: The service does not answer.
        """
        return Instance(
            instance=self._need("instance-id"),
            address=self._need("local-ipv4"),
            instance_type=self._need("instance-type"),
            run=self._need(f"tags/instance/{RUN_TAG}"),
            shards=parse_shards(self._need(f"tags/instance/{SHARDS_TAG}")),
        )

    def is_reclaimed(self) -> bool:
        """Return whether AWS has announced that it takes this spot instance back, in two minutes.

        Raises:
            RunError: The service does not answer.
        """
        return self.get("spot/instance-action") is not None

    def _need(self, path: str) -> str:
        value = self.get(path)
        if not value:
            raise ConfigError(path, "is missing from the instance's metadata")
        return value
