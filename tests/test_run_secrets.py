"""What a token or a key is worth: one that others could have, or that is easy to guess, is not used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from ps_runs import create_run, make_config

from cirrus.client_backend.certificates import make_certificates
from cirrus.client_backend.local import shard_command
from cirrus.errors import CorruptDataError, StorageError
from cirrus.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a new run."""
    return RunFolder(create_run(tmp_path / "run", make_config()))


@pytest.mark.parametrize("cut", [0, 1, 63, 65])
def test_a_token_that_was_cut_short_is_none(folder: RunFolder, cut: int) -> None:
    """An empty one above all: whoever came with nothing would be let in."""
    token = folder.token()
    folder.store.put("token", (token + "0")[:cut].encode(), private=True)
    with pytest.raises(CorruptDataError, match=r"/token: is not the 64 hexadecimal digits"):
        folder.token()


@pytest.mark.parametrize("content", [b"\xff" * 64, b"G" * 64, b"A" * 64, b"a" * 64 + b"\n"])
def test_a_token_has_one_form(folder: RunFolder, content: bytes) -> None:
    """What is none is refused by name, and not repeated: it may be nearly one."""
    folder.store.put("token", content, private=True)
    with pytest.raises(CorruptDataError, match="hexadecimal") as caught:
        folder.token()
    assert content.decode(errors="replace").strip() not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o602])
def test_secrets_that_others_may_use_are_not_used(tmp_path: Path, mode: int) -> None:
    """A token or key with a loose mode, as ``chmod -R`` or a copy leaves it, is refused, with the remedy."""
    folder = RunFolder(str(tmp_path / "run"))
    folder.create(make_config(tls=True), make_certificates(1))
    for key, read in (("token", folder.token), ("tls/shard-0.pem", lambda: folder.shard_certificate(0))):
        path = Path(folder.url) / key
        kept = read()
        path.chmod(mode)
        with pytest.raises(StorageError, match=rf"{key}: is a secret, .*mode {mode:04o}.*chmod 600"):
            read()
        path.chmod(0o600)
        assert read() == kept


def test_a_shard_does_not_serve_with_a_token_that_others_know(folder: RunFolder) -> None:
    """Its process ends with one line that says why, and announces nothing."""
    (Path(folder.url) / "token").chmod(0o644)
    command = [*shard_command(folder.url, 0, 1)]
    assert command[0] == sys.executable
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "chmod 600" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.shard_address(0) is None


SECRETS = ("token", "proof", "signature", "secret", "hmac", "digest")
#: Here a token is a piece of text.
READERS_OF_TEXT = {"cirrus/client_backend/vw.py", "cirrus/client_backend/words_text.py"}


def plain_comparisons(source: str) -> list[str]:
    """Return the comparisons of secrets, by their names, that stop at the first difference."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(op, (ast.Eq, ast.NotEq, ast.In, ast.NotIn)) for op in node.ops)
        and any(word in name.lower() for name in names_in(node) for word in SECRETS)
    ]


def names_in(tree: ast.AST) -> set[str]:
    """Return the names of variables and attributes."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_secrets_are_compared_in_constant_time() -> None:
    """No proof, signature or token is compared by what takes the longer the more of it is right."""
    assert plain_comparisons("if hello.proof != right: pass")
    root = Path(__file__).resolve().parent.parent
    found = {}
    for folder in ("cirrus", "dashboard/cirrus_dashboard", "lambda_package"):
        for path in (root / folder).rglob("*.py"):
            name = str(path.relative_to(root))
            if name not in READERS_OF_TEXT and (plain := plain_comparisons(path.read_text())):
                found[name] = plain
    assert found == {}
    used = [
        (root / name).read_text()
        for name in ("cirrus/paramserver/handshake.py", "cirrus/worker_runtime/map_job.py")
    ]
    assert all("hmac.compare_digest(" in text for text in used)
