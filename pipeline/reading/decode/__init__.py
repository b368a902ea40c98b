"""Bytes of a file -> pixels, and the header that says beforehand how many there will be.

`header` and `picture` run in whatever process calls them; `child` runs them in a process of its own, because a crafted
or broken file can crash, hang or exhaust a decoder, and must cost nothing but its own row.
"""

from pipeline.reading.decode.header import DecodeError, DecoderDied, DecodeTimeout, Header, TooLarge, read_header

__all__ = ["DecodeError", "DecodeTimeout", "DecoderDied", "Header", "TooLarge", "read_header"]
