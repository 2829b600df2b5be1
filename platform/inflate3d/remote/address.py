"""Addresses of files and folders elsewhere: https://host/dir, s3://bucket/dir. Printed, one shows no secret of its own.

Of an http address, spaces and letters that are not ASCII may be written as they are or escaped (%20). What follows `?`
(a presigned address, a token) is asked for with every file of a folder. A user and password come from the address, or
from ~/.netrc (another file: NETRC), where the host has an entry of its own.
"""

from __future__ import annotations

import base64
import netrc
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from inflate3d.errors import InputError

_HTTP = ("http", "https")
_PARTS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s/@:\[\]]+)(?::\d{1,5})?")
_RESERVED = "%/:@!$&'()*+,;=~"  # what quoting leaves as it is: % stands in escapes alone by then


@dataclass(frozen=True, repr=False)
class Address:
    """host: with its port, or the bucket; path: escaped for http, as it is for others; user: "name:password", or ""."""

    scheme: str
    host: str
    path: str = ""
    query: str = ""
    user: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read what a person wrote. InputError, which repeats no secret, if it is no address."""
        match = _PARTS.fullmatch(text.strip())
        if match is None:
            raise InputError(f"{text[:100]!r} is no address; allowed: a local folder, http(s)://, s3://")
        scheme, rest = match[1].lower(), match[2]
        if scheme not in _HTTP:
            host, _, path = rest.rstrip("/").partition("/")
            user, _, host = host.rpartition("@")
            return cls(scheme, host, f"/{path}" if path else "", user=user)
        rest, _, query = rest.partition("?")
        host, slash, path = rest.partition("/")
        user, _, host = host.rpartition("@")
        if not _is_host(host):
            raise InputError(
                f"{scheme}://...: expected {scheme}://HOST[:PORT]/PATH; in a user or password write "
                "/ as %2F, ? as %3F and % as %25"
            )
        return cls(scheme, host, _escaped(slash + path).rstrip("/"), _escaped(query, "?"), user)

    def __truediv__(self, name: str) -> Address:
        """Return the address of a file or folder in this one."""
        return replace(self, path=f"{self.path}/{quote(name) if self.is_http else name}")

    @property
    def parent(self) -> Address:
        """The folder."""
        return replace(self, path=self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part of the path, nothing escaped."""
        name = self.path.rpartition("/")[2]
        return unquote(name) if self.is_http else name

    @property
    def is_http(self) -> bool:
        return self.scheme in _HTTP

    @property
    def text(self) -> str:
        """All of it, to be read back, with its secrets: not for messages."""
        user = f"{self.user}@" if self.user else ""
        return f"{self.scheme}://{user}{self.host}{self.path}" + (f"?{self.query}" if self.query else "")

    @property
    def url(self) -> str:
        """What is asked for: the query is part of it, the user and password are not."""
        return replace(self, user="", path=self.path or "/").text

    @property
    def authorization(self) -> str | None:
        """The header that names the user and password, if there are any."""
        user = unquote(self.user)
        if not user:
            with suppress(OSError, netrc.NetrcParseError):
                entry = netrc.netrc(os.environ.get("NETRC")).hosts.get(re.sub(r":\d+$", "", self.host))
                user = f"{entry[0]}:{entry[2]}" if entry else ""
        return f"Basic {base64.b64encode(user.encode()).decode()}" if user else None

    def __str__(self) -> str:
        """Return what may be printed: *** for a user and password, ... for the query."""
        query = "..." if self.query else ""
        return replace(self, query=query, user="***" if self.user else "").text

    __repr__ = __str__


def is_remote(place: object) -> bool:
    """Is this an address, not a local path?"""
    return "://" in str(place)


def join(folder: str, name: str) -> str:
    """Return the text of the address of `name` in the folder at this address."""
    return (Address.parse(folder) / name).text


def shown(place: object, name: str = "") -> str:
    """Return a place, or a file in it, for messages: a local path as it is, an address without its secrets."""
    if not is_remote(place):
        return f"{place}/{name}" if name else str(place)
    address = Address.parse(str(place))
    return str(address / name if name else address)


def scrubbed(text: object) -> str:
    """Return what some library said, in one line and without the secrets of addresses in it."""
    return without_secrets(" ".join(str(text).split()))[:200]


def without_secrets(text: str) -> str:
    """Return a text without the users, passwords and queries of the addresses in it."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"(://[^\s'\"?]*\?)[^\s'\"]+", r"\1...", text)


def _escaped(text: str, further: str = "") -> str:
    return quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", text), safe=_RESERVED + further)


def _is_host(host: str) -> bool:
    try:
        return _HOST.fullmatch(host) is not None and bool(host.encode("idna"))
    except UnicodeError:
        return False
