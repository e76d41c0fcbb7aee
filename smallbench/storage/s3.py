"""S3-compatible object stores, through boto3: the only module that imports it.

Attempts and pauses are those of `smallbench.retry`, around botocore's own; which errors are
transient is decided in `storage.s3_errors`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from smallbench.errors import ConfigError, CredentialsError, UnavailableError
from smallbench.retry import retried
from smallbench.storage.base import AlreadyExistsError, NotFoundError, Stored, check_endpoint
from smallbench.storage.config import StorageConfig
from smallbench.storage.s3_errors import (
    NOT_OFFERED,
    ForeignAnswerError,
    TransientError,
    answer_error,
    check_answer,
    code_of,
    deletion_error,
    no_answer_error,
)

PART_BYTES = 8 << 20
"""Size of a multipart upload's parts; smaller files travel in one request. S3 allows 10,000 parts:
boto3 takes larger ones for files over 78 GiB."""

NUM_CONNECTIONS = 10
"""Of one transfer. boto3's default, as the size of parts is: with 32 MiB on 4 connections uploads
took up to a third longer, and twice as long where each connection is limited (docs/results.md)."""
NUM_POOLED_CONNECTIONS = 2 * NUM_CONNECTIONS
"""Kept open for two transfers at a time; with more of them connections are made anew."""

# Without an answer, a request ends after 2 × 20 s, and a part of a download after 2 × 2 × 20 s.
CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 20
REQUEST_ATTEMPTS = 2
"""Of botocore, for one attempt of `smallbench.retry`. It waits up to 0.05 s between them, up to 1 s
if the store throttles, and up to 5 s more if it sends `x-amz-retry-after`."""
DOWNLOAD_ATTEMPTS = 2
"""By s3transfer, of a part whose body broke off; each is REQUEST_ATTEMPTS requests."""
AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn")

T = TypeVar("T")


class S3Storage:
    """A bucket below a prefix."""

    def __init__(self, url: str, config: StorageConfig) -> None:
        try:
            from boto3.s3.transfer import TransferConfig
        except ImportError:
            raise UnavailableError(
                f"storage {url} needs boto3; pip install 'smallbench[train]'"
            ) from None
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._bucket, self._prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.url = f"s3://{bucket}/{self._prefix}".rstrip("/")
        self._config = config
        self._has_conditional_writes = True
        """Whether the store knows conditional writes."""
        self._has_read = False
        """Whether a listing, which has no body, has succeeded: the credentials are right."""
        self._said: set[str] = set()
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=NUM_CONNECTIONS,
            num_download_attempts=DOWNLOAD_ATTEMPTS,
            preferred_transfer_client="classic",  # never another because a package is there
        )
        self._cached_client: Any = self._new_client()

    @property
    def _client(self) -> Any:
        client = self._cached_client or self._new_client()
        self._cached_client = client
        return client

    def _new_client(self) -> Any:
        """Return a client with the current credentials; sends no request."""
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        try:
            # Not boto3's own session, which keeps the credentials that it found first.
            client = boto3.Session().client(
                "s3",
                endpoint_url=self._config.endpoint_url,
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": REQUEST_ATTEMPTS},
                    max_pool_connections=NUM_POOLED_CONNECTIONS,
                    connect_timeout=CONNECT_TIMEOUT_SECONDS,
                    read_timeout=READ_TIMEOUT_SECONDS,
                    s3={"addressing_style": self._config.addressing_style},
                    request_checksum_calculation=self._config.checksum_mode,
                    response_checksum_validation=self._config.checksum_mode,
                ),
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"storage {self.url}: {error}") from None
        in_host = self._config.addressing_style != "path"
        check_endpoint(client.meta.endpoint_url, bucket=self._bucket, in_host=in_host)
        client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
        if self._config.checksum_mode == "when_required":
            client.meta.events.register("before-call.s3.DeleteObjects", _drop_checksum)
        client.meta.events.register("after-call.s3", check_answer)
        if not urlsplit(client.meta.endpoint_url).netloc.endswith(AWS_DOMAINS):
            client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
        return client

    def list(self, prefix: str = "") -> list[Stored]:
        """Return all objects whose key begins with `prefix`, sorted by key."""

        def ask() -> Iterator[Stored]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for item in (item for page in pages for item in page.get("Contents", ())):
                # A console's "folder" is an object named like the prefix.
                if key := item["Key"].removeprefix(self._prefix):
                    yield Stored(key, item["Size"], item["LastModified"].timestamp())

        found = self._with_retries(lambda: sorted(ask(), key=lambda stored: stored.key))
        self._has_read = True
        return found

    def get(self, key: str) -> bytes:
        """Return a small object's content; raises `NotFoundError`."""

        def ask() -> bytes:
            content: bytes = self._client.get_object(**self._named(key))["Body"].read()
            return content

        return self._with_retries(ask, key)

    def put(self, key: str, content: bytes, *, only_new: bool = False) -> None:
        """Write a small object; with `only_new`, raise `AlreadyExistsError` if it exists."""
        if only_new:
            self._put_new(key, content)
        else:
            self._with_retries(
                lambda: self._client.put_object(**self._named(key), Body=content), key
            )

    def _put_new(self, key: str, content: bytes) -> None:
        from botocore.exceptions import ClientError

        repeated = False

        def ask() -> None:
            nonlocal repeated
            try:
                self._client.put_object(**self._named(key), Body=content, IfNoneMatch="*")
            except ClientError as error:
                code = code_of(error)
                if code == "NotImplemented":
                    self._has_conditional_writes = False
                    return
                repeated |= error.response["ResponseMetadata"].get("RetryAttempts", 0) > 0
                if code == "PreconditionFailed" and repeated and self.get(key) == content:
                    return  # ours: it was written, and only the answer was lost
                raise
            finally:
                repeated = True

        if self._has_conditional_writes:
            self._with_retries(ask, key)
        if not self._has_conditional_writes:
            self._put_unconditionally(key, content)

    def _put_unconditionally(self, key: str, content: bytes) -> None:
        """Check for the object, then write, for stores without conditional writes."""
        self._say_once(
            f"{self.url} knows no conditional writes (IfNoneMatch): two writers that commit in the "
            "same moment would not notice each other"
        )
        if self.num_bytes(key) is not None:
            raise AlreadyExistsError(f"{self.url}/{key} exists already")
        self.put(key, content)

    def num_bytes(self, key: str) -> int | None:
        """Return the size of an object, or None if it does not exist."""
        try:
            answer = self._with_retries(lambda: self._client.head_object(**self._named(key)), key)
        except NotFoundError:
            return None
        return int(answer["ContentLength"])

    def upload(self, path: Path, key: str) -> None:
        """Write a file of any size as an object, in parts if it is large."""
        self._with_retries(
            lambda: self._client.upload_file(
                str(path), self._bucket, self._prefix + key, Config=self._transfer
            ),
            key,
        )

    def download(self, key: str, path: Path) -> None:
        """Write an object of any size to a file, in place; raises `NotFoundError`."""
        self._with_retries(
            lambda: self._client.download_file(
                self._bucket, self._prefix + key, str(path), Config=self._transfer
            ),
            key,
        )

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; missing ones are ignored."""
        for first in range(0, len(keys), 1000):  # as many as one request may name
            self._with_retries(functools.partial(self._delete_some, keys[first : first + 1000]))

    def _delete_some(self, keys: Sequence[str]) -> None:
        from botocore.exceptions import ClientError

        named = {"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True}
        try:
            response = self._client.delete_objects(Bucket=self._bucket, Delete=named)
        except ClientError as error:
            if code_of(error) not in NOT_OFFERED:
                raise
            self._say_once(
                f"{self.url} cannot delete several objects at once ({code_of(error)}); they are "
                "deleted one by one"
            )
            for key in keys:
                self._client.delete_object(**self._named(key))
            return
        for refused in response.get("Errors", ()):
            raise deletion_error(refused, self.url)

    def abort_uploads(self, prefix: str = "") -> int:
        """Abort multipart uploads; how many there were."""
        from botocore.exceptions import ClientError

        def ask() -> list[dict[str, Any]]:
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            try:
                return [upload for page in pages for upload in page.get("Uploads", ())]
            except ClientError as error:
                if code_of(error) not in NOT_OFFERED:
                    raise
                self._say_once(
                    f"{self.url} cannot list unfinished uploads ({code_of(error)}); parts that "
                    "killed uploads leave there are not deleted"
                )
                return []

        def abort(upload: dict[str, Any]) -> None:
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":  # finished or aborted since
                    raise

        found = self._with_retries(ask)
        for upload in found:
            self._with_retries(functools.partial(abort, upload))
        return len(found)

    def check(self) -> None:
        """List, write, read and delete, so that a wrong key or policy shows before any work.

        A store that ignores the condition of a conditional write is found out, too.
        """
        probe, content = f".probe-{uuid4().hex[:12]}", b"smallbench may write here\n"
        self.list(probe)
        self.put(probe, content)
        try:
            if self.get(probe) != content or self.num_bytes(probe) != len(content):
                raise UnavailableError(
                    f"{self.url} does not return what was written to it; is --endpoint_url the "
                    "store's own address?"
                )
            if self._has_conditional_writes:
                self.put(probe, b"this must not be written\n", only_new=True)
                self._has_conditional_writes = False
        except AlreadyExistsError:
            pass
        finally:
            self.delete([probe])

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _with_retries(self, ask: Callable[[], T], key: str = "") -> T:
        """Return the result of `ask`, retried after transient errors of the store."""

        def explained() -> T:
            with self._as_our_errors(f"{self.url}/{key}" if key else self.url):
                return ask()

        try:
            return retried(explained, lambda error: isinstance(error, TransientError))
        except CredentialsError:
            self._cached_client = None  # the next call looks for renewed keys
            raise

    @contextlib.contextmanager
    def _as_our_errors(self, where: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError
        from s3transfer.exceptions import S3DownloadFailedError, S3ValidationError
        from urllib3.exceptions import HTTPError

        silent = (BotoCoreError, HTTPError, ConnectionError, TimeoutError, ResponseParserError)
        try:
            yield
        except silent as error:
            raise self._error_without_answer(error, where) from None
        except ClientError as error:
            raise self._error_of_answer(error, where) from None
        except Boto3Error as error:  # a transfer wraps what went wrong in words of its own
            cause = getattr(error, "last_exception", None) or error.__context__ or error
            if isinstance(cause, ClientError):
                raise self._error_of_answer(cause, where) from None
            raise self._error_without_answer(cause, where) from None
        except ForeignAnswerError as error:
            raise ForeignAnswerError(f"{where} at {self._endpoint()}: {error}") from None
        except (S3DownloadFailedError, S3ValidationError) as error:
            # The object was replaced while its parts were read.
            raise TransientError(f"{where}: {error}") from None

    def _error_without_answer(self, error: BaseException, where: str) -> Exception:
        return no_answer_error(error, where, endpoint=self._endpoint())

    def _error_of_answer(self, error: Any, where: str) -> Exception:
        code, status = code_of(error), error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchKey" or (code in {"404", "NotFound"} and self._has_bucket()):
            return NotFoundError(f"{where} does not exist")
        if status == 404 and code in {"404", "NotFound", "NoSuchBucket"}:
            return UnavailableError(
                f"{self.url}: there is no bucket {self._bucket!r} at {self._endpoint()}; create "
                "it, or correct the name or the address"
            )
        return answer_error(
            error,
            where,
            endpoint=self._endpoint(),
            adds_checksums=self._config.checksum_mode == "when_supported",
            has_read=self._has_read,
        )

    def _endpoint(self) -> str:
        return str(self._client.meta.endpoint_url)

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print(text, file=sys.stderr)

    def _has_bucket(self) -> bool:
        """Return whether the bucket exists: an answer to HEAD does not say what is missing."""
        from botocore.exceptions import ClientError

        with self._as_our_errors(self.url):
            try:
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if code_of(error) not in {"404", "NotFound", "NoSuchBucket"}:
                    raise
                return False
        return True


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Older stores refuse to delete without Content-MD5, which boto3 no longer sends."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


def _drop_checksum(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    """boto3 calls a checksum of its own required here; Content-MD5 is what every store takes."""
    context.get("checksum", {}).pop("request_algorithm", None)
    params["headers"].pop("x-amz-sdk-checksum-algorithm", None)


def _refuse_redirect(*, response: Any, operation: Any, **_: Any) -> None:
    """Fail at a redirect outside AWS: botocore would ask for the region forever."""
    from botocore.exceptions import ClientError

    if response is not None and 300 <= response[0].status_code < 400:
        raise ClientError(response[1], operation.name)
