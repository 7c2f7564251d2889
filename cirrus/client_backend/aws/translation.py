"""AWS' errors, as Cirrus' own with what to do about them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
    SSOError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from cirrus.errors import (
    AccessDeniedError,
    CapacityError,
    CirrusError,
    CloudError,
    CredentialsError,
    LostResponseError,
    MissingResourceError,
    NotReadyError,
    ThrottledError,
)

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_WRONG_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "IncompleteSignature",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
_DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
_THROTTLED = frozenset(
    {
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
#: A function that was idle for weeks, or was just changed, is made ready by the first invocation of it.
_NOT_READY = frozenset({"ResourceConflictException", "ResourceNotReadyException"})
_CAPACITY = frozenset(
    {
        "InstanceLimitExceeded",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "MaxSpotInstanceCountExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",
        "VcpuLimitExceeded",
    }
)
_NO_ANSWER = (ConnectionClosedError, ReadTimeoutError, ResponseParserError, ResponseStreamingError)
_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)


@contextlib.contextmanager
def aws_errors(what: str, *, needs: str) -> Iterator[None]:
    """Translate the SDK's errors.

    Args:
        what: What was being done, such as ``invoking the function cirrus-worker``.
        needs: The permission that it takes, such as ``lambda:InvokeFunction``.

    Raises:
        CloudError: Of the class that fits, where the SDK raised one of its own.
    """
    try:
        yield
    except ClientError as error:
        raise translate(error, what, needs) from error
    except _NO_CREDENTIALS as error:
        raise CredentialsError(
            f"{what}: no AWS credentials can be used ({error}): set AWS_PROFILE, or run 'aws configure' or"
            " 'aws sso login'"
        ) from error
    except NoRegionError as error:
        raise CredentialsError(f"{what}: no region is set: set AWS_REGION") from error
    except _NO_ANSWER as error:
        raise LostResponseError(f"{what}: no answer came: {error}") from error
    except BotoCoreError as error:
        raise CloudError(f"{what}: {error}") from error


def translate(error: ClientError, what: str, needs: str) -> CirrusError:
    """Return the error to raise for what a service answered; arguments as of :func:`aws_errors`."""
    # The stubs promise more fields than services send.
    response: Any = error.response
    details = response.get("Error", {})
    code, text = str(details.get("Code", "")), str(details.get("Message") or details.get("message") or "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
    said = f"{what}: {code}: {text}"
    if code in _EXPIRED:
        return CredentialsError(f"{what}: the AWS credentials have expired: renew them ('aws sso login')")
    if code in _WRONG_CREDENTIALS:
        return CredentialsError(
            f"{said}: the AWS credentials are wrong: check AWS_PROFILE and 'aws configure'"
        )
    if code in _DENIED:
        return AccessDeniedError(f"{what}: access denied: the credentials need {needs} here ({text})")
    if code in _THROTTLED:
        return ThrottledError(f"{said}: AWS is throttling")
    if code in _NOT_READY:
        return NotReadyError(f"{said}: AWS makes it ready")
    if code in _CAPACITY:
        return CapacityError(
            f"{said}: choose another instance type or availability zone, or on demand instead of spot"
        )
    if code == "ResourceNotFoundException" or "NotFound" in code:
        return MissingResourceError(f"{said}: it is not there: run 'cirrus deploy'")
    if status >= 500:
        return LostResponseError(f"{said}: the service failed, and may have carried the request out")
    return CloudError(said)
