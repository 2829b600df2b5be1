"""Published directories on the Hugging Face Hub, fetched by its own client into its own cache.

The client resumes, locks, shows progress and heeds HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and the user's token.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.models.publication.integrity import parse_sums
from inflate3d.models.publication.layout import SUMS
from inflate3d.models.publication.places import HubPlace
from inflate3d.remote.outcomes import Unreachable

_AGAIN = "load again to go on from there"


def hub_directory(place: HubPlace, *, cache_dir: str | Path | None = None) -> Path:
    """Return the local snapshot of a repository; all its files come from one commit.

    InputError if it is not there or damaged, or offline; Unreachable for an outage.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def get(name: str, revision: str | None) -> Path:
        ask = partial(hf_hub_download, revision=revision, cache_dir=cache_dir, library_name="inflate3d")
        try:
            return Path(ask(place.repository, name))
        except OSError:
            raise
        except Exception as fault:  # the client's transport raises kinds of its own
            raise Unreachable(f"{place}: cannot be reached ({_first(fault)}); {_AGAIN}") from fault

    try:
        sums = get(SUMS, place.revision)
        names = parse_sums(sums.read_text(encoding="utf-8", errors="replace"), where=f"{place}: {SUMS}")
        for name in names:
            get(name, sums.parent.name)
    except RevisionNotFoundError as fault:
        raise InputError(f"{place}: the Hub has no revision {place.revision!r} of {place.repository}") from fault
    except RepositoryNotFoundError as fault:
        raise InputError(f"{place}: the Hub has no such model, or wants a login: hf auth login") from fault
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as fault:
        end = InputError if HF_HUB_OFFLINE else Unreachable
        raise end(f"{place}: no copy in the cache, and the Hub cannot be asked ({_first(fault)})") from fault
    except EntryNotFoundError as fault:
        raise InputError(
            f"{place}: no {SUMS}, or a file that it names is missing; it is no publication of inflate3d. "
            "Weights of timm are loaded by timm's own name: platform models list"
        ) from fault
    except OSError as fault:
        status = fault.response.status_code if isinstance(fault, HfHubHTTPError) else 0
        end = Unreachable if status == 429 or status >= 500 else InputError
        raise end(f"{place}: cannot be fetched ({_first(fault)}); {_AGAIN}") from fault
    return sums.parent


def _first(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0][:200]
