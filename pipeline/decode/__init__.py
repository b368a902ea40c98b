"""Bytes of a file, or a window of a raster scene -> pixels, in a process of its own.

A crafted or broken file can crash, hang or exhaust a decoder, and must cost nothing but its own row: `child` runs what
the other files do in a process with a memory limit and a deadline.

Reading order:
    header        what a picture's file says before a pixel is decoded; the errors
    picture       pictures and label pictures (Pillow, simplejpeg)
    gdal          where GDAL finds a file, and how it is told to read
    gdal_file     one open file: its mask, palette, bands and place
    raster_header what a scene says of itself, and whether that fits a network
    raster        scenes: windows, the valid mask, bands of several files on one grid (GDAL)
    serve         the child's side
    child_process the running child and the descriptors that lead to it
    child         the parent's side
    memory_file   how bytes pass between the two
    pool          several children, as many as readers wait for
"""

from pipeline.decode.header import DecodeError, DecoderDied, DecodeTimeout, Header, TooLarge, read_header

__all__ = ["DecodeError", "DecodeTimeout", "DecoderDied", "Header", "TooLarge", "read_header"]
