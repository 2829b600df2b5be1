"""The client for what lies elsewhere: addresses as people write them, servers as they are, no secret ever told."""

from __future__ import annotations

import email.utils
import logging
import pickle
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.remote import client
from inflate3d.remote.address import Address, join, scrubbed, shown
from inflate3d.remote.http import _Redirects
from inflate3d.remote.outcomes import Absent, Damaged, Refused, Unreachable
from loopback_servers import Clock, FaultyServer, faulty, moto_s3

CONTENT = bytes(range(251)) * 2000  # 502 000 bytes, of no period that a block has
MANY = 10**7
Served = tuple[str, type[FaultyServer]]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    clock = Clock()
    monkeypatch.setattr("inflate3d.remote.patience.time", clock)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    return clock


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = tmp_path / "my sets"
    folder.mkdir()
    for name in ("a.tar", "a b#1.tar", "ü 100%.tar"):
        (folder / name).write_bytes(CONTENT)
    with faulty(tmp_path) as (url, handler):
        yield url, handler


# ------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "url", "told", "name"),
    [
        ("https://host/set/a.tar", "https://host/set/a.tar", "https://host/set/a.tar", "a.tar"),
        ("HTTP://host:80/set/", "http://host:80/set", "http://host:80/set", "set"),
        ("http://host", "http://host/", "http://host", ""),
        ("http://[::1]:80/a", "http://[::1]:80/a", "http://[::1]:80/a", "a"),
        ("http://host/my set/a b.tar", "http://host/my%20set/a%20b.tar", "http://host/my%20set/a%20b.tar", "a b.tar"),
        ("http://host/my%20set", "http://host/my%20set", "http://host/my%20set", "my set"),
        ("http://host/100%/ü#1", "http://host/100%25/%C3%BC%231", "http://host/100%25/%C3%BC%231", "ü#1"),
        ("http://me:pa%40ss@host/a", "http://host/a", "http://***@host/a", "a"),
        ("http://me:p@ss@host/a", "http://host/a", "http://***@host/a", "a"),
        ("https://host/a?sig=x%2Fy/z&e=1", "https://host/a?sig=x%2Fy/z&e=1", "https://host/a?...", "a"),
        ("s3://bucket/my set/a?1#2%20", "s3://bucket/my set/a?1#2%20", "s3://bucket/my set/a?1#2%20", "a?1#2%20"),
        ("s3://bucket", "s3://bucket/", "s3://bucket", ""),
    ],
)
def test_an_address_is_read_asked_for_and_shown(text: str, url: str, told: str, name: str) -> None:
    address = Address.parse(text)
    assert (address.url, str(address), f"{address!r}", shown(text), address.name) == (url, told, told, told, name)
    assert Address.parse(address.text) == address == pickle.loads(pickle.dumps(address))


def test_a_folders_credentials_and_query_hold_for_its_files() -> None:
    file = Address.parse("https://me:pw@host/set?sig=1") / "a b?.tar"
    assert file.text == "https://me:pw@host/set/a%20b%3F.tar?sig=1" == join("https://me:pw@host/set?sig=1", "a b?.tar")
    assert (file.name, file.parent.text) == ("a b?.tar", "https://me:pw@host/set?sig=1")
    assert (Address.parse("s3://bucket/set/") / "a b?.tar").text == "s3://bucket/set/a b?.tar"


@pytest.mark.parametrize(
    "text", ["http://me:s3cret/x@host/", "http://me:s3cret?@host", "https://", "http://a..b/", "x"]
)
def test_what_is_no_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InputError, match=r"expected https?://HOST|is no address") as caught:
        Address.parse(text)
    assert "s3cret" not in str(caught.value)


def test_what_a_library_says_is_told_without_secrets() -> None:
    said = 'Could not connect to "https://me:s3cret@host/a?X-Amz-Signature=s3cret" or\nhttp://h/b?x=s3cret'
    assert scrubbed(said) == 'Could not connect to "https://***@host/a?..." or http://h/b?...'


# ---------------------------------------------------------------------------------------------------- what arrives


@pytest.mark.parametrize("path", ["my sets/a b%231.tar", "my%20sets/a b#1.tar", "my sets/ü 100%.tar", "my sets/a.tar"])
def test_a_file_is_found_however_its_address_is_written(served: Served, path: str) -> None:
    address = Address.parse(f"{served[0]}/{path}")
    assert client.read(address, limit=MANY) == CONTENT == b"".join(client.pieces(address.parent / address.name))
    assert client.size(address) == len(CONTENT)


@pytest.mark.parametrize("odd", ["", "no ranges", "chunked", "aligned", "star"])
def test_whatever_a_server_does_the_file_is_whole(served: Served, tmp_path: Path, odd: str) -> None:
    url, handler = served
    address, partial, path = Address.parse(f"{url}/my sets/a.tar"), tmp_path / "part", tmp_path / "whole"
    sha256 = file_sha256(tmp_path / "my sets" / "a.tar")
    for broken in ("", "cut", "reset", "drop", "503 3", "429", "408", "500"):
        for kept in (0, 5000):
            handler.faults[:] = [broken, odd] if broken else [odd]
            partial.write_bytes(CONTENT[:kept])
            client.download(address, path, partial=partial, sha256=sha256, limit=len(CONTENT))
            assert path.read_bytes() == CONTENT, (broken, kept)
            assert not partial.exists()
            assert handler.faults == []
            path.unlink()


def test_a_download_is_whole_or_not_there_and_what_came_is_kept(served: Served, tmp_path: Path) -> None:
    url, handler = served
    address, partial, path = Address.parse(f"{url}/my sets/a.tar"), tmp_path / "part", tmp_path / "whole"
    sha256 = file_sha256(tmp_path / "my sets" / "a.tar")
    handler.faults[:] = ["cut", *["503"] * 500]
    with pytest.raises(Unreachable):
        client.download(address, path, partial=partial, sha256=sha256, limit=MANY)
    assert not path.exists()
    assert partial.read_bytes() == CONTENT[: len(CONTENT) // 2]
    handler.faults[:] = ["rot", "rot"]
    with pytest.raises(Damaged, match="it was deleted"):
        client.download(address, path, partial=partial, sha256=sha256, limit=MANY)
    assert not path.exists()
    assert not partial.exists()
    partial.write_bytes(CONTENT)
    asked = len(handler.asked)
    client.download(address, path, partial=partial, sha256=sha256, limit=MANY)  # it had come whole
    assert (path.read_bytes(), len(handler.asked)) == (CONTENT, asked)


@pytest.mark.parametrize("answer", ["", "chunked", "vast"])
def test_what_is_larger_than_it_may_be_is_refused(served: Served, answer: str) -> None:
    served[1].faults[:] = [answer]
    with pytest.raises(InputError, match=r"a.tar: \d+ bytes or more; it may have at most 1000; refused"):
        client.read(Address.parse(f"{served[0]}/my sets/a.tar"), limit=1000)


@pytest.mark.parametrize(
    ("status", "end", "told"),
    [("404", Absent, "check the address"), ("403", Refused, "credentials"), ("401", Refused, "credentials")],
)
def test_what_is_final_is_not_asked_for_again(served: Served, status: str, end: type, told: str) -> None:
    served[1].faults[:] = [status] * 9
    with pytest.raises(end, match=rf"my%20sets/a.tar: .*HTTP {status}.*{told}"):
        client.read(Address.parse(f"{served[0]}/my sets/a.tar"), limit=MANY)
    assert len(served[1].faults) == 8


# --------------------------------------------------------------------------------------------------------- outages


def test_tries_go_on_until_the_budget_is_used_up(served: Served, clock: Clock) -> None:
    served[1].faults[:] = ["500"] * 500
    with pytest.raises(Unreachable, match=r"HTTP 500 .*tried \d+ times, for at most 90 s without progress"):
        client.read(Address.parse(f"{served[0]}/my sets/a.tar"), limit=MANY, outage_s=90)
    assert clock.now == pytest.approx(90)
    assert max(clock.pauses) <= 10 < len(clock.pauses)


def test_retry_after_is_heeded_as_a_number_and_as_a_date(served: Served, clock: Clock) -> None:
    address = Address.parse(f"{served[0]}/my sets/a.tar")
    served[1].faults[:] = ["429 7", "503 40"]
    assert client.read(address, limit=MANY, outage_s=60) == CONTENT
    assert clock.pauses == [7, 40]
    served[1].faults[:] = [f"503 {email.utils.formatdate(time.time() + 5000, usegmt=True)}", "503 soon"]
    assert client.read(address, limit=MANY, outage_s=9000) == CONTENT
    assert 3000 < clock.pauses[2] < 5001
    assert clock.pauses[3] < 1


def test_a_server_that_asks_for_more_than_the_budget_is_not_waited_for(served: Served, clock: Clock) -> None:
    served[1].faults[:] = ["503 3600"]
    with pytest.raises(Unreachable, match="asks to be left alone for 3600 s"):
        client.read(Address.parse(f"{served[0]}/my sets/a.tar"), limit=MANY, outage_s=60)
    assert clock.pauses == []


def test_progress_renews_the_budget(served: Served, clock: Clock) -> None:
    served[1].faults[:] = ["503 50", "cut", "503 50", "cut", "503 50"]
    assert client.read(Address.parse(f"{served[0]}/my sets/a.tar"), limit=MANY, outage_s=60) == CONTENT
    assert clock.now > 150


def test_an_outage_survives_the_way_out_of_a_loading_process() -> None:
    told = str(Unreachable("http://host: cannot be reached"))
    wrapped = f"Caught Unreachable in DataLoader worker process 0.\nOriginal Traceback:\n  x\nx.Unreachable: {told}\n"
    assert str(Unreachable(wrapped)) == told
    assert not issubclass(Unreachable, InputError | OSError)


# --------------------------------------------------------------------------------------------------------- secrets


def test_a_password_opens_what_it_should(served: Served, tmp_path: Path) -> None:
    url, handler = served
    handler.user = "me:pa@ss"
    host = url.removeprefix("http://")
    assert client.read(Address.parse(f"http://me:pa%40ss@{host}/my sets/a.tar"), limit=MANY) == CONTENT
    with pytest.raises(Refused, match="HTTP 401"):
        client.read(Address.parse(f"{url}/my sets/a.tar"), limit=MANY)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password pa@ss\n")
    assert client.read(Address.parse(f"{url}/my sets/a.tar"), limit=MANY) == CONTENT


def test_a_password_follows_a_redirect_to_its_own_host_alone(served: Served) -> None:
    url, handler = served
    host = url.removeprefix("http://")
    mine = Address.parse(f"http://me:pw@{host}/my sets/a.tar")
    for target, is_told in ((host, True), (host.replace("127.0.0.1", "localhost"), False)):
        handler.faults[:], handler.asked[:] = [f"to http://{target}/my%20sets/a%20b%231.tar?sig=1"], []
        assert client.read(mine, limit=MANY) == CONTENT
        assert [path for path, _ in handler.asked] == ["/my%20sets/a.tar", "/my%20sets/a%20b%231.tar?sig=1"]
        assert [authorization is not None for _, authorization in handler.asked] == [True, is_told]


@pytest.mark.parametrize("target", ["http://host/b", "ftp://host/b", "http://me:s3cret@host/b?s3cret"])
def test_nothing_leads_from_https_to_less(target: str) -> None:
    request = urllib.request.Request("https://host/a?sig=s3cret")
    with pytest.raises(
        InputError, match=r"https://host/a\?\.\.\.: redirects to .* which is not https; refused"
    ) as caught:
        _Redirects().redirect_request(request, None, 302, "Found", {}, target)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "fault", ["404", "403", "500", "503 999", "drop", "rot", "gzip", "vast", "to file:///x?s3cret"]
)
def test_no_secret_is_told_whatever_happens(
    served: Served, tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    url, handler = served
    handler.faults[:] = [fault] * 500
    address = Address.parse(f"http://me:s3cret@{url.removeprefix('http://')}/my sets/a.tar?X-Amz-Signature=s3cret")
    with caplog.at_level(logging.DEBUG), pytest.raises((InputError, Unreachable)) as caught:
        client.download(address, tmp_path / "a", partial=tmp_path / "b", sha256="0" * 64, limit=MANY)
    assert str(caught.value).startswith("http://***@127.0.0.1")
    assert "s3cret" not in f"{caught.value} {caplog.text}"
    assert handler.asked[0][0].endswith("a.tar?X-Amz-Signature=s3cret")


def test_a_proxys_password_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://me:s3cret@127.0.0.1:9")
    for url in ("http://host.invalid/a", "https://host.invalid/a"):
        with pytest.raises(Unreachable, match="refused") as caught:
            client.read(Address.parse(url), limit=MANY, outage_s=0)
        assert "s3cret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------------- stores


@pytest.mark.slow
def test_a_stores_faults_mean_what_a_web_servers_mean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with moto_s3(monkeypatch) as s3:
        s3.put_object(Bucket="weights", Key="my sets/a b#1?.tar", Body=CONTENT)
        folder = Address.parse("s3://weights/my sets")
        assert client.names(folder, "*.tar") == ["a b#1?.tar"]
        file = folder / "a b#1?.tar"
        assert (client.size(file), client.read(file, limit=MANY)) == (len(CONTENT), CONTENT)
        with pytest.raises(InputError, match="may have at most 1000"):
            client.read(file, limit=1000)
        for absent in (folder / "b.tar", Address.parse("s3://nobodys/a.tar")):
            with pytest.raises(Absent, match=r"s3://.*\.tar: no such file"):
                client.read(absent, limit=MANY)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(Unreachable, match=r"s3://weights/my sets/a b#1\?\.tar: cannot be reached"):
            client.read(file, limit=MANY, outage_s=0)


def test_a_store_without_a_package_names_it_and_a_web_server_lists_nothing() -> None:
    with pytest.raises(InputError, match=r"nosuch://.*Allowed: a local folder, http\(s\)://, s3://"):
        client.read(Address.parse("nosuch://bucket/a"), limit=MANY)
    with pytest.raises(InputError, match=r"lists no files; write the numbers: https://host/set/train-\{000\.\.099\}"):
        client.names(Address.parse("https://host/set"), "*.tar")
