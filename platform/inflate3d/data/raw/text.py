"""Text files as people save them: their encodings and byte order marks."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

from inflate3d.errors import InputError

# UTF-32's mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path, *, encoding: str | None = None) -> str:
    """Return the text of a file, without its byte order mark, line ends as they are.

    A byte order mark decides (UTF-8, UTF-16 or UTF-32); else `encoding` as stated; else UTF-8. No other is guessed:
    InputError names the byte and the line that does not fit, and a NUL, which no text holds.
    """
    try:
        raw = path.read_bytes()
    except OSError as fault:
        raise InputError(f"{path}: cannot be read: {fault.strerror}") from fault
    mark, stated = next(((m, e) for m, e in _MARKS if raw.startswith(m)), (b"", encoding or "utf-8"))
    try:
        codec = codecs.lookup(stated).name
        text = raw[len(mark) :].decode(codec)
    except LookupError as fault:
        raise InputError(f"{path}: unknown encoding {stated!r}; examples: utf-8, utf-16, cp1252") from fault
    except UnicodeDecodeError as fault:
        if b"\0" not in raw or mark or encoding:
            raise InputError(_undecodable(path, raw[len(mark) :], fault)) from fault
        text = raw.decode("latin-1")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            f"{path} line {line}: holds a NUL byte, so it is not {codec} text; "
            "save it as UTF-8, or state its encoding, such as utf-16-le"
        )
    return text


def read_lines(path: Path, *, encoding: str | None = None) -> list[tuple[int, str]]:
    """Return (line number from 1, text) of each line that is not blank, stripped; encodings as in `read_text`."""
    lines = io.StringIO(read_text(path, encoding=encoding), newline=None)
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def _undecodable(path: Path, raw: bytes, fault: UnicodeDecodeError) -> str:
    line = raw[: fault.start].count(b"\n") + 1
    return (
        f"{path} line {line}: the byte 0x{raw[fault.start]:02x} is not {fault.encoding} text; "
        "save it as UTF-8, or state its encoding, such as cp1252"
    )
