"""Stand-ins for the programs that an instance's user data calls: ``python sandbox_tools.py TOOL ARGUMENTS``.

Each call is noted in ``calls.jsonl`` of the sandbox (environment variable ``SANDBOX``). ``dnf`` installs a
Python under the name that was asked for; ``systemctl start`` runs the unit's program as systemd would;
``shutdown -h now`` notes the end, which the sandbox carries out; ``aws s3 cp`` copies. Each start of a unit's
program is noted as ``start-unit``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

SANDBOX = Path(os.environ["SANDBOX"])
TOOLS = ("shutdown", "dnf", "systemctl", "aws")
#: Written when the machine is to be powered off.
DOWN = "down"
SYSTEMD_PID = "systemd.pid"
#: In the environment of every process of the unit: its control group.
GROUP = "SANDBOX_GROUP"


def install_tools() -> None:
    """Write the tools into the sandbox's ``bin``."""
    folder = SANDBOX / "bin"
    folder.mkdir()
    for tool in TOOLS:
        write_program(folder / tool, [sys.executable, str(Path(__file__).resolve()), tool])


def write_program(path: Path, command: list[str]) -> None:
    """Write a program that runs a command with further arguments."""
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def shutdown(arguments: list[str]) -> None:
    """Power off now; a time in the future is just noted."""
    if arguments == ["-h", "now"]:
        (SANDBOX / DOWN).touch()


def dnf(arguments: list[str]) -> None:
    """Install a Python, which is this machine's own under another name."""
    if arguments[0] != "install":
        sys.exit(f"unknown command {arguments[0]}")
    for package in arguments[1:]:
        if re.fullmatch(r"python3\.\d+", package):
            write_program(SANDBOX / "bin" / package, [bare_python()])


def bare_python() -> str:
    """Return the interpreter that this one's environment was made from: it has no packages of ours."""
    return getattr(sys, "_base_executable", sys.executable)


def aws(arguments: list[str]) -> None:
    """Copy an object, or all below a prefix, as ``aws s3 cp`` does."""
    import boto3

    recursive = "--recursive" in arguments
    plain = [word for word in arguments if not word.startswith("--")]
    if plain[:2] != ["s3", "cp"] or len(plain) != 4:
        sys.exit(f"unknown command {arguments}")
    source, target = plain[2:]
    client = boto3.client("s3")
    if source == "-":
        bucket, key = split(target)
        client.put_object(Bucket=bucket, Key=key, Body=sys.stdin.buffer.read())
        return
    if not recursive:
        sys.exit("only whole folders are copied here")
    bucket, prefix = split(source)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    if not keys:
        sys.exit(f"nothing below {source}")
    for key in keys:
        path = Path(target) / key.removeprefix(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, str(path))


def split(url: str) -> tuple[str, str]:
    """Return bucket and key of ``s3://bucket/key``."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def systemctl(arguments: list[str]) -> None:
    """Start a unit in the background."""
    if arguments[0] == "start":
        with (SANDBOX / "journal").open("ab") as journal:
            subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), "run-unit", arguments[1]],
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                start_new_session=True,
            )


class Unit:
    """What this stand-in for systemd heeds of a unit file; of anything it does not know it says so."""

    KNOWN = re.compile(
        "Description|After|Wants|SuccessAction|StartLimitIntervalSec|StartLimitBurst|StartLimitAction|Type|"
        "DynamicUser|StateDirectory|NoNewPrivileges|Environment|ExecStart|Restart|RestartSec|KillMode|"
        "LimitNOFILE|TimeoutStopSec"
    )

    def __init__(self, path: Path) -> None:
        self.settings: dict[str, list[str]] = {}
        for line in path.read_text().splitlines():
            if line and not line.startswith("["):
                name, _, value = line.partition("=")
                assert self.KNOWN.fullmatch(name), f"unknown setting {name}"
                self.settings.setdefault(name, []).append(value)
        self.command = shlex.split(self.settings["ExecStart"][0])
        words = [word for line in self.settings["Environment"] for word in shlex.split(line)]
        self.environment = dict(word.split("=", 1) for word in words)
        assert os.access(self.command[0], os.X_OK), f"{self.command[0]} is no program"

    def get(self, name: str) -> str:
        """Return the one value of a setting."""
        (value,) = self.settings[name]
        return value


def run_unit(arguments: list[str]) -> None:
    """Run a unit: start it again when it fails, and power off when it ends in order, or fails too often."""
    unit = Unit(Path(os.environ["CIRRUS_ROOT"]) / "etc/systemd/system" / arguments[0])
    (SANDBOX / SYSTEMD_PID).write_text(str(os.getpid()))
    starts: list[float] = []
    process: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if process is not None:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    while not stopping:
        now = time.monotonic()
        starts = [at for at in starts if now - at < float(unit.get("StartLimitIntervalSec"))]
        if len(starts) >= int(unit.get("StartLimitBurst")):
            action = unit.get("StartLimitAction")
            break
        starts.append(now)
        # A machine's services inherit little of whoever set it up.
        inherited = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "SANDBOX", "PATH"))}
        note("start-unit", arguments)
        process = subprocess.Popen(unit.command, env={**inherited, **unit.environment, GROUP: str(SANDBOX)})
        code = process.wait()
        assert unit.get("KillMode") == "mixed"
        kill_group()
        if code == 0:
            action = unit.get("SuccessAction")
            break
        assert unit.get("Restart") == "on-failure"
        time.sleep(float(unit.get("RestartSec")))
    if not stopping:
        assert action == "poweroff"
        (SANDBOX / DOWN).touch()


def kill_group() -> None:
    """Kill what a unit's main process has left behind."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(GROUP) == str(SANDBOX):
                process.kill()


def note(tool: str, arguments: list[str]) -> None:
    """Note a call."""
    with (SANDBOX / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([tool, *arguments]) + "\n")


def main() -> None:
    """Do what was called, and note it."""
    tool, arguments = sys.argv[1], sys.argv[2:]
    note(tool, arguments)
    tools = {"shutdown": shutdown, "dnf": dnf, "aws": aws, "systemctl": systemctl, "run-unit": run_unit}
    tools[tool](arguments)


if __name__ == "__main__":
    main()
