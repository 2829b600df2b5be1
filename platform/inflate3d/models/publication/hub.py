"""Published directories on the Hugging Face Hub, fetched by its own client into its own cache.

The client resumes, locks, shows progress and heeds HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and the user's token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.models.publication.integrity import parse_sums
from inflate3d.models.publication.layout import SUMS
from inflate3d.models.publication.places import HubPlace, parse_hub_file
from inflate3d.remote.outcomes import Unreachable

_AGAIN = "load again to go on from there"


def hub_directory(place: HubPlace, *, cache_dir: str | Path | None = None) -> Path:
    """Return the local snapshot of a repository; all its files come from one commit.

    InputError if it is not there or damaged, or offline; Unreachable for an outage.
    """
    get = _getter(place, cache_dir)
    absent = (
        f"no {SUMS}, or a file that it names is missing; it is no publication of inflate3d. "
        "Weights of timm are loaded by timm's own name: platform models list"
    )
    with _told(place, absent):
        sums = get(SUMS, place.revision)
        names = parse_sums(sums.read_text(encoding="utf-8", errors="replace"), where=f"{place}: {SUMS}")
        for name in names:
            get(name, sums.parent.name)
    return sums.parent


def hub_file(name: str, *, cache_dir: str | Path | None = None) -> Path:
    """Return the local copy of "hf-hub:org/name[@revision]/file", any file of any repository; errors as above."""
    place, file = parse_hub_file(name)
    with _told(place, f"no file {file!r} there"):
        return _getter(place, cache_dir)(file, place.revision)


def _getter(place: HubPlace, cache_dir: str | Path | None) -> Callable[[str, str | None], Path]:
    from huggingface_hub import hf_hub_download

    def get(name: str, revision: str | None) -> Path:
        ask = partial(hf_hub_download, revision=revision, cache_dir=cache_dir, library_name="inflate3d")
        try:
            return Path(ask(place.repository, name))
        except OSError:
            raise
        except Exception as fault:  # the client's transport raises kinds of its own
            raise Unreachable(f"{place}: cannot be reached ({_first(fault)}); {_AGAIN}") from fault

    return get


@contextmanager
def _told(place: HubPlace, absent: str) -> Iterator[None]:
    """Tell what the client's errors mean; absent: that a file is not in the repository."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError as fault:
        raise InputError(f"{place}: the Hub has no revision {place.revision!r} of {place.repository}") from fault
    except RepositoryNotFoundError as fault:
        raise InputError(f"{place}: the Hub has no such model, or wants a login: hf auth login") from fault
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as fault:
        end = InputError if HF_HUB_OFFLINE else Unreachable
        raise end(f"{place}: no copy in the cache, and the Hub cannot be asked ({_first(fault)})") from fault
    except EntryNotFoundError as fault:
        raise InputError(f"{place}: {absent}") from fault
    except OSError as fault:
        status = fault.response.status_code if isinstance(fault, HfHubHTTPError) else 0
        end = Unreachable if status == 429 or status >= 500 else InputError
        raise end(f"{place}: cannot be fetched ({_first(fault)}); {_AGAIN}") from fault


def _first(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0][:200]
