"""What the header of an everyday photograph says, and whether the file is all there, without decoding it.

Only what is beyond doubt is answered for: JPEG, PNG and WebP of one frame, 8-bit RGB or grey, no transparency. Whatever
has a twist (CMYK, palettes, 16 bits, animations, several pictures in a file) is left to Pillow, which knows them all.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import simplejpeg
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is opened. Pillow reads more, but some of it (EPS) runs other programs."""
_ORIENTATION = 0x0112  # the EXIF tag
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TWISTS = frozenset({b"tRNS", b"acTL", b"eXIf", b"iTXt", b"zTXt"})  # transparency, animation, what may turn it
_WEBP_TWISTS = 0b0001_1110  # flags of an extended WebP: transparency, EXIF, XMP, animation


class Header(NamedTuple):
    """Of an everyday photograph."""

    extension: str
    """``jpg``, ``png`` or ``webp``."""
    width: int
    """Of the pixels as they lie in the file."""
    height: int
    grey: bool
    orientation: int
    """As EXIF counts: 1 is upright; from 5 on width and height change places."""


def read(data: bytes) -> Header | None:
    """The header of an everyday photograph; None for any other, for what is broken, and for what is no photograph."""
    try:
        if data.startswith(_JPEG):
            return _read_jpeg(data)
        if data.startswith(_PNG):
            return _read_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
    except Exception:  # whatever hostile bytes raise: it is no everyday photograph
        return None
    return None


def is_whole(data: bytes, extension: str) -> bool:
    """Whether a file goes on to the end that its format asks for.

    JPEG: the end marker comes last, but for zeros; without it a decoder may still accept the file. PNG: every chunk
    that a decoder needs is there and has its checksum, so that changed bytes are found as well. WebP: it is as long as
    it says.
    """
    if extension == "jpg":
        return data[-64:].rstrip(b"\0").endswith(b"\xff\xd9")
    if extension == "webp":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    try:
        return all(zlib.crc32(chunk) == checksum for name, chunk, checksum in _png_chunks(data) if name.isupper())
    except struct.error:
        return False


def orientation(image: Image.Image) -> int:
    """How an opened image is to be turned, as EXIF counts."""
    try:
        value = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata nobody can read turns nothing
        return 1
    return value if 1 <= value <= 8 else 1


def _read_jpeg(data: bytes) -> Header | None:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if colours not in ("YCbCr", "RGB", "Gray"):
        return None
    turned = 1
    for marker, at in _jpeg_segments(data):
        if marker == 0xE1:  # EXIF or XMP, in one of many dialects
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                if image.format != "JPEG":  # several pictures
                    return None
                turned = orientation(image)
        elif marker == 0xE2 and data.startswith(b"MPF\0", at):  # several pictures
            return None
    return Header("jpg", int(width), int(height), colours == "Gray", turned)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and start of the content of each segment before the pixels."""
    at = 2
    while True:
        lead, marker, length = struct.unpack_from(">BBH", data, at)
        if lead != 0xFF:
            raise ValueError("no marker where one should be")
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:
            return
        yield marker, at + 4
        at += 2 + length


def _read_png(data: bytes) -> Header | None:
    width, height, depth, colours = struct.unpack_from(">IIBB", data, 16)
    if data[12:16] != b"IHDR" or depth != 8 or colours not in (0, 2):
        return None
    for name, chunk, _ in _png_chunks(data):
        if name in _PNG_TWISTS or (name == b"tEXt" and bytes(chunk[4:20]) == b"Raw profile type"):
            return None
    return Header("png", width, height, colours == 0, 1)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Name, what the checksum is of (name and content) and checksum of each chunk up to the last."""
    view = memoryview(data)
    at, name = len(_PNG), b""
    while name != b"IEND":
        (size,) = struct.unpack_from(">I", data, at)
        end = at + 8 + size
        (checksum,) = struct.unpack_from(">I", data, end)
        name = data[at + 4 : at + 8]
        yield name, view[at + 4 : end], checksum
        at = end + 4


def _read_webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF, False, 1)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        has_alpha = bits >> 28 & 1
        return None if has_alpha else Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, False, 1)
    if kind == b"VP8X" and not data[20] & _WEBP_TWISTS:
        width, height = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        return Header("webp", width, height, False, 1)
    return None
