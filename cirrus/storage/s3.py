"""Objects in an S3 bucket. The AWS SDK is imported when the first such store is opened, not before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from cirrus.errors import ConflictError, CorruptDataError, NotFoundError, StorageError
from cirrus.storage.base import (
    ObjectInfo,
    ObjectStore,
    check_conditions,
    check_folder,
    check_key,
    check_length,
)
from cirrus.storage.s3_clients import S3Options, s3_client

#: Reading an S3 body can break half-way, which the SDK does not repeat by itself.
S3_BODY_ATTEMPTS = 3


class S3Store(ObjectStore):
    """Objects in an S3 bucket below a prefix."""

    def __init__(self, bucket: str, prefix: str, options: S3Options, client: Any = None) -> None:
        """Open ``s3://BUCKET/PREFIX``; see :func:`open_store`."""
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._root = f"{check_folder(prefix)}/" if prefix else ""
        self._options = options
        self._client = s3_client(options) if client is None else client

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._root + check_key(key)}

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._root}{key}"

    def get(self, key: str) -> bytes:
        """See :meth:`ObjectStore.get`."""
        return self.get_versioned(key)[0]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See :meth:`ObjectStore.get_range`."""
        if length == 0:
            return b""
        data, _ = self._read(key, Range=f"bytes={start}-{start + length - 1}")
        return check_length(data, self.url, key, start, length)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """See :meth:`ObjectStore.get_versioned`."""
        return self._read(key)

    def _read(self, key: str, **arguments: str) -> tuple[bytes, str]:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        with _s3_errors(self._name(key)):
            for attempt in range(S3_BODY_ATTEMPTS):
                response = self._client.get_object(**self._where(key), **arguments)
                try:
                    return response["Body"].read(), response["ETag"]
                except (HTTPClientError, IncompleteReadError):
                    if attempt + 1 == S3_BODY_ATTEMPTS:
                        raise
        raise AssertionError("unreachable")

    def put(
        self,
        key: str,
        data: bytes | memoryview,
        *,
        if_match: str | None = None,
        if_absent: bool = False,
        private: bool = False,
    ) -> str | None:
        """See :meth:`ObjectStore.put`."""
        check_conditions(if_match, if_absent)
        conditions = {}
        if if_match is not None:
            conditions["IfMatch"] = if_match
        if if_absent:
            conditions["IfNoneMatch"] = "*"
        with _s3_errors(self._name(key), conditional=bool(conditions)):
            response = self._client.put_object(**self._where(key), Body=bytes(data), **conditions)
        return str(response["ETag"]) if conditions else None

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`ObjectStore.list`."""
        return [info.key for info in self.find(prefix)]

    def find(self, prefix: str = "") -> Sequence[ObjectInfo]:
        """See :meth:`ObjectStore.find`."""
        infos = []
        with _s3_errors(self._name(prefix)):
            pages = self._client.get_paginator("list_objects_v2")
            found = pages.paginate(
                Bucket=self._bucket,
                Prefix=self._root + prefix,
                PaginationConfig={"PageSize": self._options.page_keys},
            )
            for page in found:
                infos += [
                    ObjectInfo(item["Key"][len(self._root) :], item["Size"], item["ETag"])
                    for item in page.get("Contents", ())
                ]
        return sorted(infos, key=lambda info: info.key)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """See :meth:`ObjectStore.folders`."""
        start = self._root + (f"{check_folder(prefix)}/" if prefix else "")
        names: list[str] = []
        with _s3_errors(self._name(prefix)):
            pages = self._client.get_paginator("list_objects_v2")
            found = pages.paginate(
                Bucket=self._bucket,
                Prefix=start,
                Delimiter="/",
                PaginationConfig={"PageSize": self._options.page_keys},
            )
            for page in found:
                names += [item["Prefix"][len(start) : -1] for item in page.get("CommonPrefixes", ())]
        return tuple(sorted(names))

    def delete(self, key: str) -> None:
        """See :meth:`ObjectStore.delete`."""
        with _s3_errors(self._name(key)):
            self._client.delete_object(**self._where(key))

    def delete_prefix(self, prefix: str) -> None:
        """See :meth:`ObjectStore.delete_prefix`."""
        keys = self.list(check_folder(prefix) + "/")
        step = self._options.page_keys
        for first in range(0, len(keys), step):
            objects = [{"Key": self._root + key} for key in keys[first : first + step]]
            with _s3_errors(self._name(prefix)):
                response = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}
                )
            for problem in response.get("Errors", ()):
                raise StorageError(
                    f"s3://{self._bucket}/{problem.get('Key')}: not deleted: {problem.get('Message')}"
                )

    def exists(self, key: str) -> bool:
        """See :meth:`ObjectStore.exists`."""
        try:
            with _s3_errors(self._name(key)):
                self._client.head_object(**self._where(key))
        except NotFoundError:
            return False
        return True

    def child(self, prefix: str) -> ObjectStore:
        """See :meth:`ObjectStore.child`."""
        return S3Store(self._bucket, self._root + check_folder(prefix), self._options, self._client)


@contextlib.contextmanager
def _s3_errors(name: str, conditional: bool = False) -> Iterator[None]:
    """Translate the SDK's errors about an object."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except ClientError as error:
        _raise_client_error(error, name, conditional)
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageError(
            f"{name}: no AWS credentials were found: set AWS_PROFILE or run 'aws configure'"
        ) from error
    except BotoCoreError as error:
        raise StorageError(f"{name}: {error}") from error


def _raise_client_error(error: Any, name: str, conditional: bool) -> NoReturn:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        raise StorageError(f"{name}: the bucket does not exist: create it or correct the URL") from error
    if conditional and (
        code in ("PreconditionFailed", "ConditionalRequestConflict") or status in (404, 409, 412)
    ):
        raise ConflictError(f"{name}: was changed, made or removed by another writer") from error
    if code in ("NoSuchKey", "404", "NotFound"):
        raise NotFoundError(f"{name}: there is no such object") from error
    if code == "InvalidRange" or status == 416:
        raise CorruptDataError(f"{name}: the object is shorter than expected: load the data again") from error
    if code in ("ExpiredToken", "RequestExpired", "TokenRefreshRequired"):
        raise StorageError(
            f"{name}: the AWS credentials have expired: renew them ('aws sso login')"
        ) from error
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
        raise StorageError(
            f"{name}: the AWS credentials are wrong ({code}): check AWS_PROFILE and 'aws configure'"
        ) from error
    if code in ("SlowDown", "ServiceUnavailable", "Throttling", "RequestLimitExceeded") or status == 503:
        raise StorageError(f"{name}: S3 is throttling, after several tries: try again later") from error
    if status == 403:
        raise StorageError(
            f"{name}: access denied ({code}): the credentials need s3:GetObject, s3:PutObject, "
            "s3:DeleteObject and s3:ListBucket here"
        ) from error
    raise StorageError(f"{name}: S3 answered {code or status}: {error}") from error
