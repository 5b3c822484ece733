"""A stand-in for the Hugging Face Hub on this machine: data sets and models in folders, served to the real client.

    with Hub(folder) as hub:
        (folder / "datasets/owner/name").mkdir(parents=True)
        subprocess.run([...], env=hub.environment(home))

The client reads HF_ENDPOINT when it is imported, so what talks to the stand-in runs in its own process.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5ca1ab1e" * 5


@dataclass(frozen=True)
class Request:
    """What the stand-in was asked."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """The stand-in.

    Attributes:
        root: folder of `datasets/OWNER/NAME` and `models/OWNER/NAME`.
        token: the token that opens gated and private repositories and may write.
        gated: repositories whose files need the token.
        private: repositories that do not exist without the token.
        branches: further revisions, which hold the same as `main`.
        cut_after: bytes of a file after which the connection breaks off, by its path inside the repository.
        cuts: how many more times it breaks off.
        listed_sizes: false sizes that listings say, by path inside the repository.
        requests: everything that was asked.
    """

    root: Path
    token: str = "hf_stand_in_token_0123456789"
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    branches: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    cuts: int = 0
    listed_sizes: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Environment of a process that takes the stand-in for the Hub and has no login of its own."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of every request for the content of a file of a repository, in order."""
        resolve = f"/resolve/{COMMIT}/{path}"
        return [one.range for one in self.requests if one.method == "GET" and one.path.endswith(resolve)]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Refusal(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.body = self._body()
        url = urlsplit(self.path)
        # Matched before it is unquoted: a revision may hold a slash, such as refs/convert/parquet.
        path, self.query = url.path, parse_qs(url.query)
        authorization = self.headers.get("Authorization")
        self.hub.requests.append(Request(self.command, unquote(path), self.headers.get("Range"), authorization))
        try:
            for pattern, handle in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match:
                    handle(self, **{key: text and unquote(text) for key, text in match.groupdict().items()})
                    return
            raise _Refusal(404, "NoSuchRoute")
        except _Refusal as refusal:
            self._json({"error": refusal.code}, refusal.status, {"X-Error-Code": refusal.code})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _folder(self, kind: str, repo: str, revision: str | None = None) -> Path:
        folder = self.hub.root / kind / repo
        if not folder.is_dir() or (repo in self.hub.private and not self._has_token()):
            raise _Refusal(404 if self._has_token() else 401, "RepoNotFound")
        if revision not in (None, "main", COMMIT, *self.hub.branches):
            raise _Refusal(404, "RevisionNotFound")
        return folder

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "size": 0, "oid": hashlib.sha1(name.encode()).hexdigest()}
        size = self.hub.listed_sizes.get(name, path.stat().st_size)
        return {"type": "file", "path": name, "size": size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}

    def _info(self, kind: str, repo: str, revision: str | None = None) -> None:
        folder = self._folder(kind, repo, revision)
        names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        times = {"createdAt": "2024-01-01T00:00:00.000Z", "lastModified": "2024-01-01T00:00:00.000Z"}
        counts = {"downloads": 0, "likes": 0, "tags": [], "disabled": False}
        access = {"private": repo in self.hub.private, "gated": "manual" if repo in self.hub.gated else False}
        siblings = {"siblings": [{"rfilename": name} for name in names]}
        self._json({"_id": "0", "id": repo, "sha": COMMIT, **times, **counts, **access, **siblings})

    def _tree(self, kind: str, repo: str, revision: str, inside: str | None) -> None:
        folder = self._folder(kind, repo, revision)
        below = folder / (inside or "")
        if not below.is_dir():
            raise _Refusal(404, "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("1", "true")
        found = below.rglob("*") if recursive else below.iterdir()
        self._json([self._entry(folder, path) for path in sorted(found)])

    def _paths_info(self, kind: str, repo: str, revision: str) -> None:
        folder = self._folder(kind, repo, revision)
        is_json = self.headers.get("Content-Type", "").startswith("application/json")
        paths = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode())["paths"]
        found = [folder / path for path in ([paths] if isinstance(paths, str) else paths)]
        self._json([self._entry(folder, path) for path in found if path.exists()])

    def _resolve(self, kind: str | None, repo: str, revision: str, inside: str) -> None:
        folder = self._folder(kind or "models", repo, revision)
        if repo in self.hub.gated and not self._has_token():
            raise _Refusal(403 if self.headers.get("Authorization") else 401, "GatedRepo")
        file = folder / inside
        if not file.is_file():
            raise _Refusal(404, "EntryNotFound")
        content = file.read_bytes()
        start, end = 0, len(content)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked:
            start, end = int(asked[1]), min(int(asked[2]) + 1, end) if asked[2] else end
            if start >= len(content):
                raise _Refusal(416, "RangeNotSatisfiable")
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after.get(inside, len(content))
        if self.hub.cuts and start <= cut < end:
            self.hub.cuts -= 1
            end = cut
            self.close_connection = True
        self.wfile.write(content[start:end])

    def _create(self) -> None:
        self._must_write()
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        kind = f"{asked.get('type') or 'model'}s"
        (self.hub.root / kind / repo).mkdir(parents=True, exist_ok=True)
        prefix = "" if kind == "models" else f"{kind}/"
        self._json({"url": f"{self.hub.url}/{prefix}{repo}", "name": repo, "id": "0"})

    def _must_write(self) -> None:
        if not self._has_token():
            raise _Refusal(401, "Unauthorized")

    def _validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        self._must_write()
        self._folder(kind, repo, revision)
        files = [
            {"path": path, "uploadMode": "lfs" if path.endswith((".safetensors", ".bin")) else "regular"}
            for path in (file["path"] for file in json.loads(self.body)["files"])
        ]
        self._json({"files": [{**file, "shouldIgnore": False} for file in files], "commitOid": COMMIT})

    def _lfs_batch(self, kind: str | None, repo: str) -> None:
        self._must_write()
        self._folder(kind or "models", repo)
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, "WrongContent")
        store = self.hub.root / "lfs"
        store.mkdir(exist_ok=True)
        (store / oid).write_bytes(self.body)
        self._json({})

    def _commit(self, kind: str, repo: str, revision: str) -> None:
        self._must_write()
        folder = self._folder(kind, repo, revision)
        for line in self.body.splitlines():
            item = json.loads(line)
            value, content = item["value"], None
            if item["key"] == "file":
                content = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                content = (self.hub.root / "lfs" / value["oid"]).read_bytes()
            elif item["key"] == "deletedFile":
                with contextlib.suppress(FileNotFoundError):
                    (folder / value["path"]).unlink()
            if content is not None:
                (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (folder / value["path"]).write_bytes(content)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

    def _who_am_i(self) -> None:
        self._must_write()
        self._json({"type": "user", "name": "owner", "orgs": [], "auth": {"type": "access_token"}})


_REPO = r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)"
_PLAIN_REPO = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+?)"
_ROUTES = [
    (rf"{_REPO}(?:/revision/(?P<revision>[^/]+))?", _Handler._info),
    (rf"{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<inside>.+))?", _Handler._tree),
    (rf"{_REPO}/paths-info/(?P<revision>[^/]+)", _Handler._paths_info),
    (rf"{_REPO}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (rf"{_REPO}/commit/(?P<revision>[^/]+)", _Handler._commit),
    (rf"{_PLAIN_REPO}/resolve/(?P<revision>[^/]+)/(?P<inside>.+)", _Handler._resolve),
    (rf"{_PLAIN_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler._lfs_put),
    (r"/api/repos/create", _Handler._create),
    (r"/api/validate-yaml", _Handler._validate_yaml),
    (r"/api/whoami-v2", _Handler._who_am_i),
]
