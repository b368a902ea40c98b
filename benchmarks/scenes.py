"""What reading a scene by windows fetches from a store: requests and bytes beside those of the blocks that are needed.

    python benchmarks/scenes.py --side-px 4096 --window-px 1024 --halo-px 128

A COG of noise is made and served on loopback by a server that counts ranges. Its windows are read as the segment job
reads them: in the decoding child, one after the other, files and blocks kept. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import http.server
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from pipeline.catalog.raster_windows import WindowOptions, windows_of
from pipeline.decode.child import DecodeChild
from pipeline.decode.raster_header import Asset

BLOCK_PX = 512


class Counted(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges; what was sent is added up."""

    data = b""
    requests = sent = 0
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        kind = type(self)
        kind.requests += 1
        if not self.path.endswith("/scene.tif"):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2]) if asked and asked[2] else len(self.data) - 1, len(self.data) - 1)
        part = self.data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.data)}")
        self.end_headers()
        if send:
            kind.sent += len(part)
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side-px", type=int, default=4096)
    parser.add_argument("--window-px", type=int, default=1024)
    parser.add_argument("--halo-px", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Counted.data = Path(make_cog(folder, options.side_px)).read_bytes()
        needed = blocks_bytes(os.path.join(folder, "scene.tif"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_address[1]}/scene.tif"
    side = options.side_px
    windows = [read for _, read in windows_of(side, side, WindowOptions(options.window_px, options.halo_px))]
    print(
        f"{side} x {side} px, 3 bands of bytes, blocks of {BLOCK_PX} px: {needed / 1e6:.1f} MB; {len(windows)} windows"
    )
    print("| how | requests | MB fetched | of the blocks | windows/s |\n|--|--|--|--|--|")
    begin_s = time.monotonic()
    by_child(uri, windows)
    rate = len(windows) / (time.monotonic() - begin_s)
    sent, count = Counted.sent, Counted.requests
    print(f"| as the segment job | {count} | {sent / 1e6:.1f} | {sent / needed:.2f} | {rate:.1f} |")


def make_cog(folder: str, side: int) -> str:
    import rasterio
    import rasterio.shutil

    plain, path = os.path.join(folder, "plain.tif"), os.path.join(folder, "scene.tif")
    random = np.random.default_rng(0)
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True}
    with rasterio.open(plain, "w", **profile, crs="EPSG:32618", transform=rasterio.Affine(1, 0, 0, 0, -1, 0)) as file:
        file.write(random.integers(0, 64, (3, side, side), np.uint8))
    rasterio.shutil.copy(plain, path, driver="COG", compress="deflate", blocksize=BLOCK_PX, overviews="none")
    return path


def blocks_bytes(path: str) -> int:
    """Of all blocks of the full resolution."""
    import rasterio

    with rasterio.open(path) as file:
        across, down = -(-file.width // BLOCK_PX), -(-file.height // BLOCK_PX)
        sizes = (file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1) for y in range(down) for x in range(across))
        return sum(int(size or 0) for size in sizes)


def by_child(uri: str, windows: list[Any]) -> None:
    with DecodeChild() as child:
        for window in windows:
            child.scene([Asset(uri)], window)


if __name__ == "__main__":
    main()
