"""Enables Orbax checkpoints in s3:// buckets.

TensorStore, which writes Orbax's arrays, supports S3, but Orbax 0.12 uses it only for gs:// and disks
(google/orbax#359). For Orbax, S3 behaves like gs://: a file `commit_success.txt` marks a complete checkpoint, because
folders cannot be renamed. The patch replaces the four private names below; setup.cfg therefore limits Orbax's version,
and `tests/test_buckets.py` tests saving, resuming and cleaning up against an S3 server.
"""

import functools
import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_S3 = "s3://"


@functools.cache
def enable() -> None:
    """Patches Orbax in this process; other paths are unaffected."""
    use_gcs, normalize = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path
    kvstore = gcs_utils.get_kvstore_for_gcs
    gcs_utils._GCS_PATH_PREFIX = (*gcs_utils._GCS_PATH_PREFIX, _S3)
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_S3) or use_gcs(path)
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", _S3, 1)
    gcs_utils.get_kvstore_for_gcs = lambda path: _kvstore(path) if path.startswith(_S3) else kvstore(path)


def _kvstore(path: str) -> dict[str, Any]:
    """Returns TensorStore's spec of a URL, with endpoint and region from the standard S3 environment variables."""
    bucket, _, key = path.removeprefix(_S3).partition("/")
    spec = {"driver": "s3", "bucket": bucket, "path": key}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        spec |= {"endpoint": endpoint, "aws_region": region}
    return spec
