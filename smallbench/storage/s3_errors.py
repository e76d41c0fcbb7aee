"""Answers and errors of an S3-compatible store, or of what answers in its place, as our errors.

A page of HTML with status 200 is not an object, a proxy's redirect is not a missing bucket, and a
refused checksum is not a wrong key. Each gets its own sentence, with the store's own message. What
becomes a `TransientError` is retried, as `smallbench.retry` says how often.
"""

from __future__ import annotations

import datetime
import html
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from smallbench.errors import ConfigError, CredentialsError, SmallbenchError, UnavailableError
from smallbench.storage.base import AlreadyExistsError

ROOTS = {
    "CompleteMultipartUpload": b"CompleteMultipartUploadResult",
    "CreateMultipartUpload": b"InitiateMultipartUploadResult",
    "DeleteObjects": b"DeleteResult",
    "ListMultipartUploads": b"ListMultipartUploadsResult",
    "ListObjectsV2": b"ListBucketResult",
}
"""Root elements of the answers that are XML."""

TAGGED = {"GetObject", "HeadObject", "PutObject", "UploadPart"}
"""Operations whose answers always have an ETag."""

WRITES = {"PutObject", "UploadPart", "CreateMultipartUpload", "DeleteObjects"}
"""Operations to which boto3 adds checksums with checksum_mode=when_supported."""

CHECKSUM_CODES = {
    "BadDigest",
    "InvalidArgument",
    "InvalidDigest",
    "InvalidRequest",
    "NotImplemented",
    "SignatureDoesNotMatch",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
CHECKSUM_HINT = (
    "some stores (R2, GCS, B2, older MinIO) refuse the checksums that boto3 adds: "
    "set --checksum_mode=when_required"
)

REFUSED = {
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
MISADDRESSED = {
    "AuthorizationHeaderMalformed",  # signed for another region
    "IllegalLocationConstraintException",
    "InvalidBucketName",
    "PermanentRedirect",
    "TemporaryRedirect",
}
FULL = {"InsufficientStorage", "QuotaExceeded", "StorageFull", "XMinioStorageFull", "507"}
NOT_OFFERED = {"MethodNotAllowed", "NotImplemented", "405", "501"}
"""Codes of a store that does not know an operation."""

SPEAKS_TLS = re.compile(r"HTTPS|SSL-enabled|\\x15\\x03|\x15\x03", re.IGNORECASE)


class TransientError(UnavailableError):
    """An error that `S3Storage` retries: a refused connection, a cut body, 5xx, 408, 409 or 429.

    These come at once. A timeout has already cost boto3's two attempts, and is not retried.
    """


class ForeignAnswerError(ConfigError):
    """Something answered that is not an S3 store."""


def check_answer(*, http_response: Any, parsed: dict[str, Any], model: Any, **_: Any) -> None:
    """Raise `ForeignAnswerError` if a successful answer cannot come from an S3 store.

    For botocore's event `after-call`. To an error it adds the text of a body that is not XML.
    """
    headers = http_response.headers
    root = ROOTS.get(model.name)
    kind = headers.get("Content-Type", "").lower()
    if http_response.status_code >= 300:
        content = http_response.content
        if b"<Error" not in content:
            # botocore reports a success as a 500 if its XML has another root than expected.
            if getattr(http_response.raw, "status", 500) < 300:
                if root is not None and root in content[:2000]:
                    raise TransientError("the store's answer was cut off")
                raise foreign(_words(content))
            parsed.setdefault("Error", {})["Message"] = _words(content)
        return
    if root is not None and root not in http_response.content[:2000]:
        raise foreign(_words(http_response.content))
    if parsed.get("IsTruncated") and not (
        parsed.get("NextContinuationToken") or parsed.get("NextKeyMarker")
    ):
        raise ForeignAnswerError(
            "the store lists only the first part of its objects and does not say how to continue "
            "(no ListObjectsV2); choose another store"
        )
    if model.name not in TAGGED:
        return
    # An object may be a page; then the store's own headers tell it from a login page.
    is_page = kind.startswith("text/html") and model.name in {"GetObject", "HeadObject"}
    is_marked = any(name.lower().startswith(("x-amz-", "x-goog-")) for name in headers)
    if "ETag" in headers and (is_marked or not is_page):
        return
    if kind.startswith(("text/", "application/json")):
        raise foreign(f"type {kind}")
    raise TransientError("the store sent an answer without an ETag")


def foreign(words: str) -> ForeignAnswerError:
    """Return the error for an answer that is not S3's."""
    return ForeignAnswerError(
        f"this is not an S3 store: it answers with something else ({words}); set --endpoint_url "
        "to the address of the store's S3 API, not of its console, a proxy or a login page"
    )


def answer_error(
    error: Any, where: str, *, endpoint: str, adds_checksums: bool, has_read: bool
) -> SmallbenchError:
    """Return the error for an answer that is one; `error` is botocore's ClientError.

    `adds_checksums`: checksum_mode is when_supported. `has_read`: a request without a body has
    succeeded with these credentials.
    """
    code, status = code_of(error), _status(error)
    message = _one_line(str(error.response.get("Error", {}).get("Message", "")))
    is_coded = code not in {"", str(status)}
    said = f"the store answered {status} {code}" if is_coded else f"answered {status}"
    said = f"{where}: {said}" + (f" ({message})" if message and message != code else "")
    lower = message.lower()
    is_write = adds_checksums and error.operation_name in WRITES
    may_be_checksum = is_write and (
        code in CHECKSUM_CODES or "checksum" in lower or "trailer" in lower
    )
    if code == "PreconditionFailed":
        return AlreadyExistsError(f"{where} exists already")
    if code == "RequestTimeTooSkewed":
        return UnavailableError(f"{said}: {_skew(error)}; set this machine's clock (NTP)")
    if code in FULL or status == 507:
        return UnavailableError(f"{said}: the store is full, or its quota is used up")
    if may_be_checksum and (code != "SignatureDoesNotMatch" or has_read):
        return ConfigError(f"{said}; {CHECKSUM_HINT}")
    if code in REFUSED or status in {401, 403}:
        hint = f"; if the keys are right, {CHECKSUM_HINT}" if may_be_checksum else ""
        return CredentialsError(
            f"{where}: access was refused ({code or status}{f': {message}' if message else ''}); "
            "check the credentials and the bucket's policy (docs/operations.md lists what a run "
            f"needs){hint}"
        )
    if 300 <= status < 400 or code in MISADDRESSED:
        return ConfigError(f"{said}; {_right_address(error)}")
    if status == 400 and _has_http(endpoint) and SPEAKS_TLS.search(message):
        return ConfigError(f"{said}; {_other_scheme(endpoint)}")
    # 409: another conditional write was under way; 408 and 429: too slow and too fast.
    is_transient = status >= 500 and code not in NOT_OFFERED
    if is_transient or status in {408, 409, 429} or code == "RequestTimeout":
        return TransientError(said)
    return UnavailableError(said)


def no_answer_error(error: BaseException, where: str, *, endpoint: str) -> SmallbenchError:
    """Return the error for a request that got no answer; `error` is botocore's or urllib3's."""
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    no_credentials = (
        boto.CredentialRetrievalError,
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.SSOError,
        boto.TokenRetrievalError,
    )
    text = _one_line(re.sub(r"\?[^\s\"']*", "", str(error)))  # URLs without their query
    cause = f"{text} {getattr(error, 'kwargs', {}).get('error', '')}"
    if isinstance(error, no_credentials):
        return CredentialsError(
            f"no usable credentials for {where} ({text}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, ResponseParserError):
        return foreign(_words(text.encode()))
    if isinstance(error, boto.ParamValidationError):
        return ConfigError(f"{where}: {text}")
    if isinstance(error, boto.HTTPClientError) and isinstance(
        error.kwargs.get("error"), ValueError
    ):
        # Its text quotes the header, and so the credential.
        return CredentialsError(
            f"{where}: the credentials cannot be sent in an HTTP header; is there a line end "
            "in an access key or a session token?"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return ConfigError(
            f"{where}: the certificate of {endpoint} is not trusted ({text}); set AWS_CA_BUNDLE to "
            "the file of the certificate authority"
        )
    speaks_tls = _has_http(endpoint) and SPEAKS_TLS.search(cause.replace(endpoint, ""))
    if "WRONG_VERSION_NUMBER" in text or speaks_tls:
        return ConfigError(f"{where} cannot be reached ({text}); {_other_scheme(endpoint)}")
    if isinstance(error, (boto.ConnectTimeoutError, boto.ReadTimeoutError, TimeoutError)):
        return UnavailableError(f"{where}: no answer from the store ({text}); {_CHECK}")
    return TransientError(f"{where} cannot be reached ({text}); {_CHECK}")


_CHECK = "check --endpoint_url and the network"


def code_of(error: Any) -> str:
    """Return the code of botocore's ClientError."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return "PreconditionFailed" if code == "412" else code


def deletion_error(error: Mapping[str, str], url: str) -> SmallbenchError:
    """Return the error for one key of a multi-delete."""
    code = error.get("Code", "")
    kind = CredentialsError if code in REFUSED else TransientError
    reason = ": ".join(filter(None, (code, error.get("Message"))))
    return kind(f"{url}: {error.get('Key')} was not deleted ({reason})")


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _headers(error: Any) -> Mapping[str, str]:
    headers: Mapping[str, str] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers


def _right_address(error: Any) -> str:
    details = error.response.get("Error", {})
    if region := details.get("Region") or _headers(error).get("x-amz-bucket-region"):
        return f"the bucket is in the region {region}: set AWS_DEFAULT_REGION={region}"
    target = details.get("Endpoint") or _headers(error).get("location")
    if target:
        return f"it redirects to {target}: set --endpoint_url to the store's own address"
    return "check the bucket's name, its region and --endpoint_url"


def _has_http(endpoint: str) -> bool:
    # The texts of libraries name HTTPS for any failure behind an https:// address.
    return endpoint.startswith("http:")


def _other_scheme(endpoint: str) -> str:
    is_tls = endpoint.startswith("https:")
    right = re.sub(r"^https?", "http" if is_tls else "https", endpoint)
    spoken = "plain HTTP" if is_tls else "TLS"
    return f"this port speaks {spoken}: set --endpoint_url={right}"


def _skew(error: Any) -> str:
    try:
        theirs = parsedate_to_datetime(_headers(error)["date"])
        seconds = (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()
    except (KeyError, ValueError, TypeError):
        return "this machine's clock differs too much from the store's"
    side = "ahead of" if seconds > 0 else "behind"
    return f"this machine's clock is {abs(seconds):,.0f} s {side} the store's"


def _words(content: bytes) -> str:
    """Return the first words of a body for people, without its tags."""
    text = re.sub(
        r"(?is)<(script|style)\b.*?</\1>|<[^>]*>", " ", content[:4000].decode("utf-8", "replace")
    )
    return _one_line(html.unescape(text)) or "no text"


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= 200 else f"{line[:200]}…"
