"""Terraform and its AWS provider, where this machine has them."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TERRAFORM = ROOT / "terraform"
#: A plugin folder is laid out as the registry is.
_IN_PLUGIN_FOLDER = "registry.terraform.io/hashicorp/aws/*/*/terraform-provider-aws_v5*"
#: How deep below these a plugin folder may lie.
_DEPTH = 2
COMMAND_SECONDS = 240.0


def _roots() -> list[Path]:
    named = [os.environ[name] for name in ("TF_PLUGIN_CACHE_DIR",) if os.environ.get(name)]
    usual = ["/opt", "/usr/share/terraform", "/usr/local/share/terraform", "~/.terraform.d"]
    return [Path(root).expanduser() for root in (*named, *usual)]


@functools.cache
def plugin_folder() -> Path | None:
    """Return a plugin folder with the AWS provider, found by the provider's file name, or None."""
    for root in _roots():
        for depth in range(_DEPTH + 1):
            for found in sorted(root.glob("*/" * depth + _IN_PLUGIN_FOLDER), reverse=True):
                return found.parents[5]
    return None


def need_terraform() -> Path:
    """Return the plugin folder, or skip the test."""
    if shutil.which("terraform") is None:
        pytest.skip("there is no terraform on this machine")
    folder = plugin_folder()
    if folder is None:
        pytest.skip("there is no plugin folder with terraform-provider-aws_v5* on this machine")
    return folder


def environment() -> dict[str, str]:
    """Return an environment in which no configuration of this machine's user counts."""
    kept = {name: value for name, value in os.environ.items() if not re.match(r"(TF_|AWS_)", name)}
    return {
        **kept,
        "TF_CLI_CONFIG_FILE": os.devnull,
        "TF_IN_AUTOMATION": "1",
        "CHECKPOINT_DISABLE": "1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def terraform(
    folder: Path, arguments: Sequence[str], *, extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run terraform in a folder; the caller looks at how it ended."""
    command = ["terraform", f"-chdir={folder}", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**environment(), **(extra or {})},
        timeout=COMMAND_SECONDS,
        check=False,
    )
