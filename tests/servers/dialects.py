"""What stores, and things that are mistaken for stores, answer in S3's place.

    with proxy.failing(Dialect(DIALECTS["r2"])): ...

A rule sees a request's method, path and headers (lower case), and answers by itself or lets the
server behind the proxy do it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

PAGE = b"<!doctype html><html><head><title>Console</title></head><body>Please log in</body></html>"


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    content_type: str = "application/xml"
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """Sent as it is, without a head."""


Rule = Callable[[str, str, Mapping[str, str]], Reply | None]


def refusal(status: int, code: str, message: str, extra: str = "") -> Reply:
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return Reply(status, body.encode())


def has_checksum(headers: Mapping[str, str]) -> bool:
    names = ("x-amz-sdk-checksum-algorithm", "x-amz-trailer")
    return any(name.startswith("x-amz-checksum-") or name in names for name in headers)


def always(reply: Reply) -> Rule:
    return lambda method, path, headers: reply


def for_uploads_with_checksum(reply: Reply, methods: tuple[str, ...] = ("PUT", "POST")) -> Rule:
    return lambda method, path, headers: (
        reply if method in methods and has_checksum(headers) else None
    )


def for_large(reply: Reply) -> Rule:
    return lambda method, path, headers: (
        reply if method == "PUT" and int(headers.get("content-length", 0)) > 10_000 else None
    )


def for_query(method: str, query: str, reply: Reply) -> Rule:
    return lambda m, path, headers: (
        reply if m == method and query in path.partition("?")[2] else None
    )


def old_minio(method: str, path: str, headers: Mapping[str, str]) -> Reply | None:
    """Before 2023: no conditional writes, no trailing checksums."""
    if method == "PUT" and "if-none-match" in headers:
        return refusal(501, "NotImplemented", "A header you provided is not implemented")
    if method == "PUT" and "x-amz-trailer" in headers:
        return refusal(400, "XAmzContentSHA256Mismatch", "The provided header does not match")
    return None


def liar(method: str, path: str, headers: Mapping[str, str]) -> Reply | None:
    """A cache that returns what it has seen for any path."""
    if method == "GET" and ".probe" in path and "list-type" not in path:
        return Reply(200, b"another object", "binary/octet-stream", {"ETag": '"1"'})
    return None


NOT_OFFERED = refusal(501, "NotImplemented", "This functionality is not implemented")
LIST_OF_OLD = (
    b"<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><IsTruncated>true"
    b"</IsTruncated><Marker/><NextMarker>a</NextMarker></ListBucketResult>"
)

DIALECTS: dict[str, Rule] = {
    "r2": for_uploads_with_checksum(
        refusal(501, "NotImplemented", "Header 'x-amz-sdk-checksum-algorithm' not implemented"),
        ("PUT",),
    ),
    "gcs": for_uploads_with_checksum(refusal(403, "SignatureDoesNotMatch", "Invalid argument.")),
    "b2": for_uploads_with_checksum(
        refusal(400, "InvalidArgument", "Unsupported header 'x-amz-sdk-checksum-algorithm'"),
        ("PUT",),
    ),
    "old minio": old_minio,
    "console": always(Reply(200, PAGE, "text/html")),
    "static page": always(Reply(200, PAGE, "text/html", {"ETag": '"5f-1"'})),
    "broken page": always(Reply(200, b"<html><br><p>Hello & welcome", "text/html")),
    "json service": always(Reply(200, b'{"status": "ok"}', "application/json")),
    "nginx redirect": always(
        Reply(
            301,
            b"<html>301 Moved Permanently</html>",
            "text/html",
            {"Location": "https://store.example/"},
        )
    ),
    "temporary redirect": always(
        Reply(302, b"", "text/html", {"Location": "https://login.example/"})
    ),
    "moved": always(
        refusal(
            301,
            "PermanentRedirect",
            "The bucket must be addressed using another endpoint",
            "<Endpoint>lab.s3.example</Endpoint>",
        )
    ),
    "region": always(
        refusal(
            400,
            "AuthorizationHeaderMalformed",
            "the region 'us-east-1' is wrong",
            "<Region>eu-central-1</Region>",
        )
    ),
    "go tls port": always(
        Reply(400, b"Client sent an HTTP request to an HTTPS server.\n", "text/plain")
    ),
    "nginx tls port": always(
        Reply(
            400,
            b"<html><h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port</html>",
            "text/html",
        )
    ),
    "raw tls port": always(Reply(0, b"", raw=b"\x15\x03\x01\x00\x02\x02\x50")),
    "skew": always(
        refusal(403, "RequestTimeTooSkewed", "The difference between the times is too large.")
    ),
    "expired": always(refusal(400, "ExpiredToken", "The provided token has expired.")),
    "encryption wanted": lambda method, path, headers: (
        refusal(403, "AccessDenied", "explicit deny in a resource-based policy")
        if method == "PUT" and "x-amz-server-side-encryption" not in headers
        else None
    ),
    "forbidden page": always(Reply(403, b"<html>Blocked by the firewall</html>", "text/html")),
    "slow down": always(refusal(503, "SlowDown", "Please reduce your request rate.")),
    "bad gateway": always(Reply(502, b"<html>Bad gateway</html>", "text/html")),
    "full": for_large(refusal(507, "XMinioStorageFull", "minimum free drive threshold")),
    "quota": for_large(refusal(403, "QuotaExceeded", "quota exceeded")),
    "no multi-delete": for_query("POST", "delete", NOT_OFFERED),
    "no upload list": for_query("GET", "uploads", NOT_OFFERED),
    "object lock": for_query(
        "POST",
        "delete",
        Reply(
            200,
            b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>object "
            b"protected by object lock</Message></Error></DeleteResult>",
        ),
    ),
    "old listing": for_query("GET", "list-type", Reply(200, LIST_OF_OLD)),
    "liar": liar,
}
