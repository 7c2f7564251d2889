"""Runs the program ``terraform`` in a folder of its own for each deployment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cirrus.errors import CloudError, ConfigError, CorruptDataError

#: As terraform/versions.tf says.
OLDEST_VERSION = (1, 9)
#: Making or deleting everything takes minutes; network interfaces of functions can hold their security group
#: for three quarters of an hour.
APPLY_SECONDS = 3600.0 * 1.5
COMMAND_SECONDS = 600.0
VARIABLES_FILE = "terraform.tfvars.json"
PLAN_FILE = "planned.tfplan"
STATE_FILE = "terraform.tfstate"
_NO_CHANGES, _CHANGES = 0, 2
_ERROR_LINES = 25
#: Lines of Terraform's that say that something is done, or has taken long.
_TELLING = re.compile(r": (\w+ complete after|Still \w+)")


class Terraform:
    """Terraform in one folder, which keeps its files, variables and state.

    Args:
        folder: Where.
        plugin_folder: Take the provider from here, and from nowhere else; None: as Terraform is configured.

    Raises:
        ConfigError: There is no terraform on the path, or it is too old.
    """

    def __init__(self, folder: Path, *, plugin_folder: Path | None = None) -> None:
        self.folder = folder
        self._plugin_folder = plugin_folder
        program = shutil.which("terraform")
        if program is None:
            raise ConfigError(
                "terraform", "is not installed: see https://developer.hashicorp.com/terraform/install"
            )
        self._program = program
        self._check_version()

    def _check_version(self) -> None:
        text = self._run(["version", "-json"], chdir=False).stdout
        match = re.search(r'"terraform_version":\s*"(\d+)\.(\d+)', text)
        if match is None:
            raise ConfigError("terraform", f"{self._program} does not tell its version: {text[:200]!r}")
        version = (int(match[1]), int(match[2]))
        if version < OLDEST_VERSION:
            wanted = ".".join(map(str, OLDEST_VERSION))
            raise ConfigError("terraform", f"version {match[1]}.{match[2]} is too old; {wanted} is needed")

    @property
    def has_state(self) -> bool:
        """True when something was made from this folder, perhaps half-way, and has not been destroyed.

        Raises:
            CorruptDataError: The state cannot be read.
        """
        path = self.folder / STATE_FILE
        try:
            return bool(json.loads(path.read_bytes())["resources"])
        except FileNotFoundError:
            return False
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(f"{path}: is no state of Terraform: {error!r}") from error

    def prepare(self, source: Path, variables: Mapping[str, Any], extra: Mapping[str, str]) -> None:
        """Put the files and variables into the folder, and have Terraform fetch its provider.

        Args:
            source: The folder with the Terraform files.
            variables: Values of Terraform's variables.
            extra: Contents of further files by name.

        Raises:
            CloudError: The provider cannot be fetched.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (*self.folder.glob("*.tf"), *self.folder.glob("*.tftpl")):
            old.unlink()
        for file in (*source.glob("*.tf"), *source.glob("*.tftpl")):
            shutil.copy(file, self.folder)
        for name, text in extra.items():
            (self.folder / name).write_text(text)
        (self.folder / VARIABLES_FILE).write_text(json.dumps(variables, indent=2))
        self.initialise()

    def initialise(self) -> None:
        """Have Terraform fetch its provider.

        Raises:
            CloudError: It cannot be fetched.
        """
        arguments = ["init", "-input=false", "-no-color"]
        if self._plugin_folder is not None:
            arguments.append(f"-plugin-dir={self._plugin_folder}")
        self._check(self._run(arguments))

    def plan(self, *, destroy: bool = False) -> str | None:
        """Plan the changes, for :meth:`apply`; return them as text, or None where there are none.

        Raises:
            CloudError: There is no such plan.
        """
        arguments = ["plan", "-input=false", "-no-color", "-detailed-exitcode", f"-out={PLAN_FILE}"]
        done = self._run([*arguments, "-destroy"] if destroy else arguments)
        if done.returncode == _NO_CHANGES:
            return None
        if done.returncode != _CHANGES:
            self._check(done)
        return done.stdout

    def apply(self, progress: Callable[[str], None]) -> None:
        """Carry out the plan.

        Args:
            progress: Told of each thing when it is made, changed or gone.

        Raises:
            CloudError: That failed half-way; doing it again goes on.
        """
        command = self._command(["apply", "-input=false", "-no-color", PLAN_FILE])
        with tempfile.TemporaryFile("w+") as errors:
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env=self._environment(),
                )
            except OSError as error:
                raise ConfigError("terraform", f"{self._program} cannot be started: {error}") from error
            # Terraform ends in order when it is interrupted; what it had begun is in its state then.
            timer = threading.Timer(APPLY_SECONDS, process.send_signal, [signal.SIGINT])
            timer.start()
            try:
                with process:
                    assert process.stdout is not None
                    for line in process.stdout:
                        if _TELLING.search(line):
                            progress(f"  {line.strip()}")
            finally:
                timer.cancel()
            errors.seek(0)
            done = subprocess.CompletedProcess(command, process.returncode, "", errors.read())
        self._check(done)

    def outputs(self) -> dict[str, Any]:
        """Return the outputs by name.

        Raises:
            CloudError: The state cannot be read.
        """
        done = self._check(self._run(["output", "-json", "-no-color"]))
        return {name: output["value"] for name, output in json.loads(done.stdout or "{}").items()}

    def _command(self, arguments: Sequence[str], *, chdir: bool = True) -> list[str]:
        return [self._program, *([f"-chdir={self.folder}"] if chdir else []), *arguments]

    def _environment(self) -> dict[str, str]:
        environment = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
        # With a provider from a folder, nobody shall ask a registry, nor stumble over how to find one.
        if self._plugin_folder is not None:
            environment["TF_CLI_CONFIG_FILE"] = os.devnull
        return environment

    def _run(
        self, arguments: Sequence[str], *, seconds: float = COMMAND_SECONDS, chdir: bool = True
    ) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                self._command(arguments, chdir=chdir),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                env=self._environment(),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise CloudError(f"terraform {arguments[0]} has not ended within {seconds:g} s") from error
        except OSError as error:
            raise ConfigError("terraform", f"{self._program} cannot be started: {error}") from error

    def _check(self, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        if done.returncode != 0:
            lines = [line.strip("│╷╵ ") for line in (done.stderr or done.stdout).splitlines()]
            text = "\n".join([line for line in lines if line][:_ERROR_LINES])
            raise CloudError(f"terraform {_subcommand(done.args)} failed:\n{text}")
        return done


def _subcommand(command: Sequence[str]) -> str:
    return next(word for word in command[1:] if not word.startswith("-"))
