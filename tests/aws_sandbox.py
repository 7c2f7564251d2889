"""Instances on loopback: each runs the user data that it was launched with, in a folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from fake_metadata import FakeMetadata, instance_values

import cirrus.paramserver

TOOLS = Path(__file__).with_name("sandbox_tools.py")
#: How often the operator looks for launched and terminated instances.
LOOK_SECONDS = 0.2
#: An instance that is terminated gets so long to end in order.
STOP_SECONDS = 10.0


class SandboxInstance:
    """One instance: its folder, its metadata service and its processes.

    Args:
        folder: A new folder.
        instance: Its id.
        user_data: The script.
        tags: The instance's tags.
        environment: Where the emulated AWS is.
        instance_type: Its type; a client claims a warm server of its own type alone.
    """

    def __init__(
        self,
        folder: Path,
        instance: str,
        user_data: bytes,
        tags: Mapping[str, str],
        environment: Mapping[str, str],
        instance_type: str = "c7gn.large",
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.root = folder / "root"
        self.instance = instance
        values = instance_values(instance, tags.get("cirrus:run", ""), tags.get("cirrus:shards", ""))
        self.metadata = FakeMetadata({**values, "instance-type": instance_type})
        self.metadata.__enter__()
        self._seed_kernels()
        kept = {k: v for k, v in os.environ.items() if k in ("HOME", "LANG", "TMPDIR")}
        self._environment = {
            **kept,
            **environment,
            "SANDBOX": str(folder),
            "CIRRUS_ROOT": str(self.root),
            "CIRRUS_FIRST_PORT": "0",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        }
        program = "import sandbox_tools; sandbox_tools.install_tools()"
        command = [sys.executable, "-c", program]
        subprocess.run(command, env=self._environment, cwd=TOOLS.parent, check=True, timeout=30)
        (folder / "user_data").write_bytes(user_data)
        with (folder / "console").open("ab") as console:
            self._script = subprocess.Popen(
                ["bash", str(folder / "user_data")],
                env=self._environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def _seed_kernels(self) -> None:
        """Give the instance the kernels that this source tree has compiled already, which takes a while."""
        sources = self.root / "opt/cirrus/site/cirrus/paramserver"
        # Numba's cache has a folder for each folder of sources, by a hash of its path.
        digest = hashlib.sha1(str(sources).encode()).hexdigest()
        target = self.root / "var/lib/cirrus/kernels" / f"paramserver_{digest}"
        target.mkdir(parents=True)
        compiled = Path(cirrus.paramserver.__file__).parent / "__pycache__"
        for file in (*compiled.glob("kernels.*.nbi"), *compiled.glob("kernels.*.nbc")):
            shutil.copy(file, target)

    @property
    def is_down(self) -> bool:
        """True when the machine was shut down from inside."""
        return (self.folder / "down").exists()

    @property
    def calls(self) -> list[list[str]]:
        """The calls of the tools, in order."""
        with contextlib.suppress(FileNotFoundError):
            return [json.loads(line) for line in (self.folder / "calls.jsonl").read_text().splitlines()]
        return []

    @property
    def journal(self) -> str:
        """What the script and the unit have said."""
        files = [self.folder / "console", self.folder / "journal"]
        return "\n".join(file.read_text(errors="replace") for file in files if file.exists())

    def wait_for_user_data(self, seconds: float) -> int:
        """Wait for the end of the script; return its exit code."""
        return self._script.wait(seconds)

    def reclaim(self) -> None:
        """Have AWS announce that it takes the spot instance back."""
        self.metadata.values["spot/instance-action"] = '{"action": "terminate", "time": "soon"}'

    def processes(self) -> list[psutil.Process]:
        """Return every process of the instance."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SANDBOX") == str(self.folder):
                    found.append(process)
        return found

    def host_program(self) -> psutil.Process:
        """Return the main process of the unit that user data has installed."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if "cirrus.client_backend.aws.host" in process.cmdline():
                    return process
        raise AssertionError(f"{self.instance} has no host program:\n{self.journal}")

    def power_off(self) -> None:
        """End it as an operating system does: SIGTERM to the service, then everything that is left."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.kill(int((self.folder / "systemd.pid").read_text()), signal.SIGTERM)
            psutil.wait_procs(self.processes(), STOP_SECONDS)
        self.crash()

    def crash(self) -> None:
        """End it as a power failure does."""
        for _ in range(5):
            processes = self.processes()
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, 2.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._script.wait(2.0)
        self.metadata.__exit__(None, None, None)


class Operator:
    """Runs the instances that an emulated EC2 has, and tells it which have ended; a context manager.

    Args:
        folder: Where the instances' folders go.
        ec2: A client of the emulator.
        environment: Where the emulated AWS is, for the instances.
    """

    def __init__(self, folder: Path, ec2: Any, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._ec2 = ec2
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.problems: list[str] = []
        """Errors of this stand-in itself; tests look at them."""
        self.living: dict[str, SandboxInstance] = {}
        self.gone: dict[str, SandboxInstance] = {}
        self._thread = threading.Thread(target=self._work, name="ec2-operator", daemon=True)

    def __enter__(self) -> Operator:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for instance in list(self.living.values()):
            instance.crash()

    def crash(self, instance_id: str) -> None:
        """End an instance as a failure of its machine does."""
        with self._lock:
            self.living[instance_id].crash()
            self._note_gone(instance_id)

    def _note_gone(self, instance_id: str) -> None:
        """Have EC2 know that an instance has ended."""
        self._ec2.terminate_instances(InstanceIds=[instance_id])
        self.gone[instance_id] = self.living.pop(instance_id)

    def _work(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 (told at the end of the tests)
                self.problems.append(repr(error))

    def _look(self) -> None:
        answer = self._ec2.describe_instances()
        found = {raw["InstanceId"]: raw for r in answer["Reservations"] for raw in r["Instances"]}
        with self._lock:
            for instance_id, raw in found.items():
                state = raw["State"]["Name"]
                if state in ("pending", "running") and instance_id not in {**self.living, **self.gone}:
                    self.living[instance_id] = self._launch(instance_id, raw)
                elif state not in ("pending", "running") and instance_id in self.living:
                    self.living[instance_id].power_off()
                    self._note_gone(instance_id)
            for instance_id, instance in list(self.living.items()):
                if instance.is_down:
                    instance.power_off()
                    self._note_gone(instance_id)

    def _launch(self, instance_id: str, raw: Mapping[str, Any]) -> SandboxInstance:
        import base64

        answer = self._ec2.describe_instance_attribute(InstanceId=instance_id, Attribute="userData")
        user_data = base64.b64decode(answer["UserData"]["Value"])
        assert re.match(rb"#!/bin/bash\n", user_data), user_data[:100]
        tags = {tag["Key"]: tag["Value"] for tag in raw.get("Tags", ())}
        folder = self._folder / instance_id
        kind = raw["InstanceType"]
        return SandboxInstance(folder, instance_id, user_data, tags, self._environment, kind)
