"""How to talk to a storage. Credentials are never flags: boto3 finds them as it always does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smallbench.config import option


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Flags for S3-compatible stores; a directory needs none of them."""

    endpoint_url: str | None = option(
        None, help="address of an S3-compatible store; none: AWS_ENDPOINT_URL_S3, or AWS itself"
    )
    addressing_style: Literal["auto", "path", "virtual"] = option(
        "auto",
        help="where a request names the bucket: in the path (MinIO, Ceph) or in the host name "
        "(virtual)",
    )
    checksum_mode: Literal["when_supported", "when_required"] = option(
        "when_supported",
        help="checksums that boto3 adds to requests; when_required for R2, B2 and older MinIO, "
        "which refuse them",
    )
