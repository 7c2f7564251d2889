"""The object stores: one set of rules, proved for a folder, for memory and for S3."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cirrus.errors import ConfigError, ConflictError, CorruptDataError, NotFoundError, StorageError
from cirrus.storage import ObjectStore, S3Options, drop_memory_store, open_store
from cirrus.storage.s3_clients import s3_client


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """The URL of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_options(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> S3Options:
    """How to reach that server, with credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return S3Options(endpoint_url=s3_endpoint, attempts=1)


def _fresh_s3(options: S3Options, request: pytest.FixtureRequest) -> ObjectStore:
    import boto3

    bucket = f"b{abs(hash(request.node.nodeid))}"
    client = boto3.session.Session().client("s3", endpoint_url=options.endpoint_url)
    client.create_bucket(Bucket=bucket)
    client.close()
    return open_store(f"s3://{bucket}/some/prefix", s3=options)


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty store of each kind."""
    if request.param == "folder":
        yield open_store(tmp_path / "new" / "store")
    elif request.param == "memory":
        yield open_store("memory://test-storage/some/prefix")
        drop_memory_store("test-storage")
    else:
        yield _fresh_s3(request.getfixturevalue("s3_options"), request)


def test_what_was_put_is_what_one_gets(store: ObjectStore) -> None:
    """An object reads back whole, by range and with its version; a later put replaces it."""
    store.put("a/b", b"0123456789")
    assert store.get("a/b") == b"0123456789"
    assert store.get_range("a/b", 2, 3) == b"234"
    assert store.get_range("a/b", 9, 1) == b"9"
    assert store.get_range("a/b", 4, 0) == b""
    store.put("a/b", memoryview(b"new"))
    data, etag = store.get_versioned("a/b")
    assert data == b"new"
    newer = store.put("a/b", memoryview(b"newer"), if_match=etag)
    assert store.get_versioned("a/b") == (b"newer", newer)


def test_absent_objects(store: ObjectStore) -> None:
    """Reading what is not there is a NotFoundError that names it; deleting it is no error."""
    for read in (store.get, store.get_versioned, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(NotFoundError, match="a/missing"):
            read("a/missing")
    assert not store.exists("a/missing")
    assert store.list() == []
    store.delete("a/missing")
    store.delete_prefix("a")


@pytest.mark.parametrize(("start", "length"), [(0, 11), (9, 2), (10, 1), (50, 5)])
def test_a_range_beyond_the_end_is_corrupt_data(store: ObjectStore, start: int, length: int) -> None:
    """A range that the object does not have means that the object was truncated."""
    store.put("k", b"0123456789")
    with pytest.raises(CorruptDataError, match="k"):
        store.get_range("k", start, length)


def test_list_is_sorted_and_by_string_prefix(store: ObjectStore) -> None:
    """``list`` finds every key that begins with the prefix, in order."""
    for key in ("b", "a/2", "a/10", "a/b/c", "ab"):
        store.put(key, b"")
    assert store.list() == ["a/10", "a/2", "a/b/c", "ab", "b"]
    assert store.list("a/") == ["a/10", "a/2", "a/b/c"]
    assert store.list("a") == ["a/10", "a/2", "a/b/c", "ab"]
    assert store.list("a/1") == ["a/10"]
    assert store.list("x/y") == []


def test_delete_prefix_takes_one_folder_alone(store: ObjectStore) -> None:
    """``delete_prefix`` removes what is below that folder and nothing that merely begins alike."""
    for key in ("runs/1/a", "runs/1/b/c", "runs/10/a", "keep"):
        store.put(key, b"x")
    store.delete_prefix("runs/1")
    assert store.list() == ["keep", "runs/10/a"]
    with pytest.raises(ConfigError):
        store.delete_prefix("")


def test_child_is_a_view_of_a_folder(store: ObjectStore) -> None:
    """A child reads and writes the parent's keys below its prefix."""
    child = store.child("runs/7/")
    child.put("status", b"up")
    assert store.get("runs/7/status") == b"up"
    assert child.list() == ["status"]
    assert child.child("x").url == f"{store.url}/runs/7/x"


def test_if_absent(store: ObjectStore) -> None:
    """``if_absent`` writes once; the second writer gets a ConflictError and changes nothing."""
    store.put("k", b"first", if_absent=True)
    with pytest.raises(ConflictError, match="k"):
        store.put("k", b"second", if_absent=True)
    assert store.get("k") == b"first"


def test_if_match(store: ObjectStore) -> None:
    """``if_match`` writes over that very version only, and never makes a new object."""
    etag = store.put("k", b"1", if_absent=True)
    newer = store.put("k", b"2", if_match=etag)
    with pytest.raises(ConflictError):
        store.put("k", b"3", if_match=etag)
    with pytest.raises(ConflictError):
        store.put("absent", b"3", if_match=newer)
    assert store.get("k") == b"2"
    assert not store.exists("absent")
    with pytest.raises(ConfigError):
        store.put("k", b"3", if_match=newer, if_absent=True)


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", ".", "a/./b", "x\0y"])
def test_keys_stay_below_the_root(store: ObjectStore, key: str) -> None:
    """A key that is no plain relative path is refused before anything happens."""
    for use in (store.get, store.exists, store.delete, lambda k: store.put(k, b"")):
        with pytest.raises(ConfigError, match="relative path"):
            use(key)


def _count_up(store: ObjectStore, times: int) -> None:
    done = 0
    while done < times:
        data, etag = store.get_versioned("count")
        try:
            store.put("count", str(int(data) + 1).encode(), if_match=etag)
        except ConflictError:
            continue
        done += 1


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_conditional_writes_lose_nothing_between_threads(kind: str, tmp_path: Path) -> None:
    """Counters raised by compare-and-swap from several threads end at the exact sum."""
    store = open_store(str(tmp_path) if kind == "folder" else "memory://test-race")
    store.put("count", b"0")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(_count_up, store, 25) for _ in range(4)]:
            future.result()
    assert store.get("count") == b"100"
    drop_memory_store("test-race")


def test_conditional_writes_lose_nothing_between_processes(tmp_path: Path) -> None:
    """The same between processes, which share nothing but the folder."""
    store = open_store(tmp_path)
    store.put("count", b"0")
    code = "import sys, test_storage as t; t._count_up(t.open_store(sys.argv[1]), 50)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    command = [sys.executable, "-c", code, str(tmp_path)]
    workers = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [worker.wait(timeout=30) for worker in workers] == [0, 0]
    assert store.get("count") == b"100"


def test_only_one_of_many_creates(tmp_path: Path) -> None:
    """Of many writers with ``if_absent`` exactly one succeeds."""
    store = open_store(tmp_path)
    start = threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait(timeout=10)
        try:
            store.put("k", str(number).encode(), if_absent=True)
        except ConflictError:
            return False
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(create, range(8))) == 1


def test_readers_never_see_half_an_object(tmp_path: Path) -> None:
    """While one thread replaces an object, another reads the old or the new one whole."""
    store = open_store(tmp_path)
    versions = [bytes([i]) * 100_000 for i in range(2)]
    store.put("k", versions[0])
    done = threading.Event()

    def write() -> None:
        for i in range(100):
            store.put("k", versions[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert store.get("k") in versions
    writer.join()
    assert os.listdir(tmp_path) == ["k"]


def test_private_files(tmp_path: Path) -> None:
    """``private`` lets nobody but the owner read the file."""
    store = open_store(tmp_path)
    store.put("token", b"secret", private=True)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    store.put("token", b"other", private=True)
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_unfinished_writes_are_no_objects(tmp_path: Path) -> None:
    """What a killed writer left half-written is not listed."""
    store = open_store(tmp_path)
    store.put("a/k", b"")
    (tmp_path / "a" / ".tmp-0123").write_bytes(b"half")
    assert store.list() == ["a/k"]


def test_a_file_in_the_way_is_a_storage_error(tmp_path: Path) -> None:
    """The operating system's refusals become StorageErrors that name what is in the way."""
    store = open_store(tmp_path)
    store.put("a", b"")
    with pytest.raises(StorageError, match="/a: is a file, where a folder is needed"):
        store.put("a/b", b"")
    with pytest.raises(NotFoundError):
        store.get("a/b")
    assert not store.exists("a/b")


@pytest.mark.parametrize("url", ["", "gs://bucket/x", "s3://", "memory://", "file://host/x", "http://x/y"])
def test_urls_of_no_known_kind(url: str) -> None:
    """A URL that cannot work is refused at once."""
    with pytest.raises(ConfigError, match="url"):
        open_store(url)


def test_file_urls_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``file://`` and relative paths lead to the same folder, whose url is absolute."""
    monkeypatch.chdir(tmp_path)
    open_store("a b").put("k", b"1")
    assert open_store(f"file://{tmp_path}/a%20b").get("k") == b"1"
    assert open_store("a b").url == f"{tmp_path}/a b"


def test_memory_stores_are_shared_by_name_and_can_be_dropped() -> None:
    """Two stores of one name share objects until the name is dropped."""
    open_store("memory://test-named").put("k", b"1")
    assert open_store("memory://test-named").get("k") == b"1"
    drop_memory_store("test-named")
    assert not open_store("memory://test-named").exists("k")
    drop_memory_store("test-named")


def test_s3_lists_beyond_one_page(s3_options: S3Options, request: pytest.FixtureRequest) -> None:
    """More keys than one page of S3's answer are all listed and all deleted."""
    store = _fresh_s3(dataclasses.replace(s3_options, page_keys=3), request)
    for i in range(10):
        store.put(f"k/{i}", b"")
    assert len(store.list("k/")) == 10
    store.delete_prefix("k")
    assert store.list() == []


def test_s3_errors_name_the_object_and_a_remedy(
    s3_options: S3Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing bucket, missing credentials and a dead endpoint each give one clear StorageError."""
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/k: the bucket does not exist"):
        open_store("s3://no-such-bucket", s3=s3_options).get("k")
    dead = S3Options(endpoint_url="http://127.0.0.1:1", attempts=1, connect_timeout_seconds=1)
    with pytest.raises(StorageError, match=r"s3://bucket/k: .*127\.0\.0\.1:1"):
        open_store("s3://bucket", s3=dead).put("k", b"")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="AWS_PROFILE"):
        open_store("s3://bucket", s3=s3_options).get("k")


def test_importing_storage_does_not_import_boto3() -> None:
    """A worker's cold start does not pay for the AWS SDK."""
    check = "sys.exit({'boto3', 'numpy'} & set(sys.modules) != set())"
    code = f"import sys, cirrus.storage as s; s.open_store('x'); {check}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=30).returncode == 0


def test_s3_lists_and_deletes_more_than_a_thousand_objects(
    s3_options: S3Options, request: pytest.FixtureRequest
) -> None:
    """S3 answers with at most 1,000 keys at once, and deletes as many; nothing beyond is left out."""
    store = _fresh_s3(s3_options, request)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda i: store.put(f"k/{i:04}", b""), range(1003)):
            pass
    assert store.list("k/") == [f"k/{i:04}" for i in range(1003)]
    store.delete_prefix("k")
    assert store.list() == []


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("ExpiredToken", 400, "expired: renew them"),
        ("InvalidAccessKeyId", 403, "aws configure"),
        ("AccessDenied", 403, "access denied.*s3:PutObject"),
        ("SlowDown", 503, "throttling, after several tries"),
    ],
)
def test_what_s3_refuses_says_what_to_do(
    code: str, status: int, text: str, s3_options: S3Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expired and wrong credentials, missing rights and throttling are told apart."""
    from aws_services import Answer, answering

    body = f"<Error><Code>{code}</Code><Message>about it</Message></Error>".encode()
    with answering(lambda _: Answer(status, body)) as url:
        store = open_store("s3://bucket", s3=dataclasses.replace(s3_options, endpoint_url=url))
        with pytest.raises(StorageError, match=f"s3://bucket/k: .*{text}"):
            store.put("k", b"")


def test_throttling_is_waited_out(s3_options: S3Options) -> None:
    """S3 may refuse for a moment, which its callers do not notice."""
    from aws_services import Answer, answering

    slow = Answer(503, b"<Error><Code>SlowDown</Code></Error>")
    answers = iter([slow, Answer(200, b"", {"ETag": '"1"'})])
    with answering(lambda _: next(answers)) as url:
        store = open_store("s3://bucket", s3=dataclasses.replace(s3_options, endpoint_url=url, attempts=3))
        assert store.put("k", b"", if_absent=True) == '"1"'


def test_stores_share_a_client_as_long_as_nothing_of_it_changes(
    s3_options: S3Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making one takes long; another region, other options or another environment take another one."""
    first = s3_client(s3_options)
    assert s3_client(dataclasses.replace(s3_options)) is first
    assert s3_client(dataclasses.replace(s3_options, attempts=2)) is not first
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    other = s3_client(s3_options)
    assert other is not first
    assert other.meta.region_name == "eu-central-1"


def test_renewed_credentials_are_used(
    s3_options: S3Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that lives on after its credentials were written anew finds those, as a new process does."""
    from aws_services import Answer, Request, answering

    seen: list[str] = []

    def answer(request: Request) -> Answer:
        found = re.search(r"Credential=(\w+)/", request.headers["Authorization"])
        assert found is not None
        seen.append(found[1])
        return Answer(200, b"", {"ETag": '"1"'})

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with answering(answer) as url:
        for key in ("first", "second", "second"):
            file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")
            open_store("s3://bucket", s3=dataclasses.replace(s3_options, endpoint_url=url)).put("k", b"")
    assert seen == ["first", "second", "second"]


def test_a_fork_makes_its_own_client() -> None:
    """Two processes that used one connection would read each other's answers."""
    code = (
        "import os, sys\nfrom cirrus.storage.s3_clients import S3Options, s3_client\n"
        "first = s3_client(S3Options())\nassert s3_client(S3Options()) is first\n"
        "child = os.fork()\nif child == 0: os._exit(s3_client(S3Options()) is first)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_DEFAULT_REGION": "us-east-1"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0
