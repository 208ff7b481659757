"""Lets Orbax keep checkpoints in s3:// buckets.

TensorStore, which writes Orbax's arrays, speaks S3, but Orbax 0.12 asks it for gs:// and disks alone
(google/orbax#359). S3 is to Orbax what gs:// is: no renames, so that a file `commit_success.txt` tells a whole
checkpoint; no folders. The four private names below are all that tells them apart; setup.cfg caps Orbax for their sake,
and `tests/training/test_buckets.py` holds save, resume and cleaning up to an S3 server.
"""

import functools
import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_S3 = "s3://"


@functools.cache
def enable() -> None:
    """Changes Orbax in this process; what it does with other paths stays as it is."""
    use_gcs, normalize = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path
    kvstore = gcs_utils.get_kvstore_for_gcs
    gcs_utils._GCS_PATH_PREFIX = (*gcs_utils._GCS_PATH_PREFIX, _S3)
    tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_S3) or use_gcs(path)
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", _S3, 1)
    gcs_utils.get_kvstore_for_gcs = lambda path: _kvstore(path) if path.startswith(_S3) else kvstore(path)


def _kvstore(path: str) -> dict[str, Any]:
    """TensorStore's spec of a URL, with the endpoint and region of the variables that every S3 client reads."""
    bucket, _, key = path.removeprefix(_S3).partition("/")
    spec = {"driver": "s3", "bucket": bucket, "path": key}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        spec |= {"endpoint": endpoint, "aws_region": region}
    return spec
