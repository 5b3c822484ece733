"""Files of a data set on the Hugging Face Hub: list them, and fetch one with resumption. Tokens stay in the client."""

import contextlib
import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub import errors as hub_errors

from retlab.errors import UserError

_ENTRY = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?")
_BLOCK_BYTES = 2**20
_LOCAL = {"data set": "file as data.source", "model": "folder"}


@dataclass(frozen=True)
class Listing:
    """Files that an `hf://` entry stands for.

    Attributes:
        root: the data set with its commit pinned, as the Hub's file system names it.
        shown: the data set as the user names it.
        files: size in bytes and blob id by path inside the data set.
        is_folder: whether the entry is a folder, whose files were not chosen one by one.
    """

    root: str
    shown: str
    files: dict[str, tuple[int, str]]
    is_folder: bool


def list_files(entry: str) -> Listing:
    """Resolve `hf://datasets/OWNER/NAME[@REVISION][/path or glob]`. Raises UserError with one sentence."""
    match = _ENTRY.fullmatch(entry)
    assert match, "the configuration's schema has checked the entry"
    repo, revision, inside = match[1], match[2], (match[3] or "").strip("/")
    revision = revision and revision.replace("%2F", "/")
    with hub_sentences(f"data.source: {entry}", repo):
        # The commit is pinned, so that a push during the download cannot mix two states.
        commit = HfApi().dataset_info(repo, revision=revision).sha
        root = f"datasets/{repo}@{commit}"
        system = HfFileSystem()
        path = f"{root}/{inside}".rstrip("/")
        pattern = glob.has_magic(inside) and not system.exists(path)
        listed = system.glob(path, detail=True) if pattern else system.find(path, detail=True)
    files = {
        name.removeprefix(root + "/"): (info["size"], str(info.get("blob_id")))
        for name, info in cast(dict[str, dict[str, Any]], listed).items()
        if info["type"] == "file"
    }
    if not files:
        missing = "no file that matches" if pattern else "no such file or folder"
        raise UserError(f"data.source: {entry}: the data set {repo} has {missing}; correct the path")
    shown = f"hf://datasets/{repo}" + (f"@{revision}" if revision else "")
    return Listing(root, shown, files, is_folder=not pattern and inside not in files)


def fetch(name: str, path: str, size: int, target: Path, advance: Callable[[int], None]) -> None:
    """Bring one file here. An unfinished fetch is kept beside the target and continued by the next call.

    Args:
        name: what messages call the file.
        path: the file in the Hub's file system.
        size: bytes that the Hub's listing says.
        target: where the file lies when it is complete.
        advance: told of bytes that lie here, those of an earlier attempt included.

    Raises:
        UserError: refused, out of reach, or of another size than listed.
    """
    partial = target.with_name(target.name + ".incomplete")
    done = 0
    try:
        with open(partial, "ab") as file, hub_sentences(name, "/".join(path.split("@")[0].split("/")[1:])):
            done = file.tell()
            advance(done)
            if done < size:
                with HfFileSystem().open(path, "rb", block_size=0) as stream:
                    # The stream asks for what follows its position; it refuses a plain seek.
                    stream.loc = done
                    while block := stream.read(_BLOCK_BYTES):
                        file.write(block)
                        done += len(block)
                        advance(len(block))
            if done == size:
                file.flush()
                os.fsync(file.fileno())
    finally:
        if done == 0 < size:
            partial.unlink()
    if done != size:
        partial.unlink(missing_ok=True)
        raise UserError(f"{name}: the Hub sent {done:,} bytes where it lists {size:,}; run the same command again")
    os.replace(partial, target)


@contextlib.contextmanager
def hub_sentences(what: str, repo: str, kind: str = "data set") -> Iterator[None]:
    """Errors of the Hub and of the network become one sentence each.

    Args:
        what: the key, or the entry of it, that asked for the repository.
        repo: OWNER/NAME.
        kind: "data set" or "model".
    """
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{repo}"
    try:
        yield
    except hub_errors.OfflineModeIsEnabled:
        message = f"HF_HUB_OFFLINE forbids to ask the Hub; unset it, or give a local {_LOCAL[kind]}"
    except hub_errors.GatedRepoError:
        message = f"{repo} is gated: accept its conditions on {page}, and {log_in}"
    except (hub_errors.RepositoryNotFoundError, hub_errors.HFValidationError):
        message = f"the Hub has no {kind} {repo}, or it is private; correct the name, or {log_in}"
    except hub_errors.RevisionNotFoundError:
        message = f"the {kind} {repo} has no such revision; correct what follows the @"
    except hub_errors.LocalEntryNotFoundError:
        message = f"{repo} is not in the local cache, and {constants.ENDPOINT} cannot be reached; check the network"
    except (hub_errors.EntryNotFoundError, FileNotFoundError):
        message = f"the {kind} {repo} has no such file; correct the path"
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = log_in if status in (401, 403) else "run the same command later, it continues"
        message = f"the Hub answers with HTTP {status}; {advice}"
    except (hub_errors.HTTPError, ConnectionError):
        message = (
            f"{constants.ENDPOINT} cannot be reached or the connection broke off;"
            " check the network and run the same command again, it continues"
        )
    else:
        return
    raise UserError(f"{what}: {message}") from None
