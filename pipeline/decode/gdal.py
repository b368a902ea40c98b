"""Where GDAL finds a file, and how it reads: by ranges, merged, retried, with the store's settings of s3fs."""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import urlsplit

from pipeline.decode.header import DecodeError

CACHE_BYTES = 256 << 20  # of decoded blocks: a row of 1024 px windows of a scene of 36,000 px in three bands of bytes
_LOCAL = re.compile(r"^(file://)?/")
_VIRTUAL = {"s3": "/vsis3/", "s3a": "/vsis3/", "gs": "/vsigs/", "gcs": "/vsigs/", "az": "/vsiaz/", "abfs": "/vsiaz/"}


def gdal_path(uri: str) -> str:
    """GDAL's name of a file. Raises DecodeError for a store that GDAL does not know."""
    if _LOCAL.match(uri) or "://" not in uri:
        return uri.removeprefix("file://")
    scheme, rest = uri.split("://", 1)
    if scheme in ("http", "https"):
        return f"/vsicurl/{uri}"
    if scheme not in _VIRTUAL:
        raise DecodeError(f"scenes are read from disk, s3, gs, az and http(s), not from {scheme}://")
    return _VIRTUAL[scheme] + rest


def is_remote(uri: str) -> bool:
    return gdal_path(uri).startswith("/vsi")


def gdal_options() -> dict[str, Any]:
    """GDAL's configuration, from the same environment variables that s3fs reads."""
    options: dict[str, Any] = {
        "GDAL_CACHEMAX": CACHE_BYTES,  # rasterio takes bytes, where GDAL's own variable has megabytes
        "GDAL_NUM_THREADS": "1",  # several windows are read by several processes
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE",  # masks beside a file are asked for by name, folders are not listed
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_HTTP_MULTIPLEX": "YES",
        "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
        "GDAL_HTTP_MAX_RETRY": "3",
        "GDAL_HTTP_RETRY_DELAY": "0.3",
        "GDAL_HTTP_TIMEOUT": "60",
        "GDAL_HTTP_CONNECTTIMEOUT": "20",
        "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/:/vsigs/:/vsiaz/",  # a failure is not remembered
        "GDAL_GEOREF_SOURCES": "PAM,INTERNAL,TABFILE,WORLDFILE",
        "OGR_GEOJSON_MAX_OBJ_SIZE": "0",
    }
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        parts = urlsplit(endpoint)
        options |= {
            "AWS_S3_ENDPOINT": parts.netloc + parts.path.rstrip("/"),
            "AWS_HTTPS": "NO" if parts.scheme == "http" else "YES",
            "AWS_VIRTUAL_HOSTING": "FALSE",
        }
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("1", "yes", "true"):
        options["AWS_NO_SIGN_REQUEST"] = "YES"
    if payer := os.environ.get("AWS_REQUEST_PAYER"):
        options["AWS_REQUEST_PAYER"] = payer
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["AWS_REGION"] = region
    return options
