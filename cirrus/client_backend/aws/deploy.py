"""``cirrus deploy`` and ``cirrus destroy``: everything that Cirrus needs in an account, made and removed.

Each deployment has a folder ``deployments/NAME`` in the user's Cirrus folder, with its packages and
Terraform's state. Whoever shall destroy it needs that folder; whoever runs jobs needs the bucket's name only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cirrus.client_backend.aws import sources
from cirrus.client_backend.aws.deployment import Deployment
from cirrus.client_backend.aws.facade import LIVING_STATES, TAG_DEPLOYMENT, AwsFacade, Instance
from cirrus.client_backend.aws.package import build_server_package, build_worker_package
from cirrus.client_backend.aws.terraform import Terraform
from cirrus.client_backend.aws.translation import aws_errors
from cirrus.client_backend.aws.wheels import HOST, Target
from cirrus.client_backend.homes import default_home
from cirrus.config import from_plain
from cirrus.errors import CloudError, ConfigError, nearest
from cirrus.storage import ObjectStore, open_store

if TYPE_CHECKING:
    from boto3.session import Session

#: Servers that were told to end have this long to be gone; while they are there, nothing else can go.
TERMINATE_SECONDS = 300.0
TERMINATE_POLL_SECONDS = 2.0
#: What the deployment itself keeps in the bucket, Terraform's part first; everything else is the user's.
TERRAFORM_PREFIXES = ("cirrus", "packages")
OWN_PREFIXES = (*TERRAFORM_PREFIXES, "jobs", "scratch", "servers", "tmp")
_LEAVING = "shutting-down"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
#: The Python of functions and servers where the packages are for this machine's own.
_EMULATED_PYTHON = "3.13"
#: Set by other options or by the deployment itself.
_OWN_VARIABLES = frozenset(
    {
        "name",
        "region",
        "architecture",
        "python_version",
        "worker_package",
        "server_package",
        "worker_memory_mb",
    }
)

Progress = Callable[[str], None]
Confirm = Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """What to deploy."""

    name: str = "cirrus"
    region: str | None = None
    """None: as the environment or the profile says."""
    target: Target = field(default_factory=Target)
    worker_memory_mb: tuple[int, ...] = (1769,)
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of Terraform."""
    plugin_folder: Path | None = None
    """Take Terraform's provider from here."""
    extra_files: Mapping[str, str] = field(default_factory=dict)
    """Further Terraform files by name, such as ``proxy_override.tf``."""

    def __post_init__(self) -> None:
        """Check the names."""
        check_name(self.name)
        for variable in self.variables:
            if variable in _OWN_VARIABLES:
                raise ConfigError("var", f"{variable} has an option of its own")
        for file in self.extra_files:
            if not re.fullmatch(r"[\w-]+\.tf", file):
                raise ConfigError("extra_files", f"{file!r} is no Terraform file's name")

    def terraform_variables(self, folder: Path) -> dict[str, Any]:
        """Return the variables, where ``worker.zip`` and ``server/`` lie in a folder."""
        target = self.target
        emulated = target.architecture == HOST
        machine = "arm64" if target.limits.machine == "aarch64" else "x86_64"
        variables: dict[str, Any] = {
            **self.variables,
            "name": self.name,
            "architecture": machine,
            "python_version": _EMULATED_PYTHON if emulated else target.python,
            "worker_memory_mb": sorted(set(self.worker_memory_mb)),
            "worker_package": str(folder / "worker.zip"),
            "server_package": str(folder / "server"),
        }
        return variables if self.region is None else {**variables, "region": self.region}


def check_name(name: str) -> str:
    """Return the name of a deployment.

    Raises:
        ConfigError: It cannot be one.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            "name", f"{name!r}: 1 to 20 lower-case letters, digits and hyphens, beginning with a letter"
        )
    return name


def deployment_folder(name: str) -> Path:
    """Return where the packages and the state of a deployment lie."""
    return Path(default_home()).absolute() / "deployments" / check_name(name)


def deploy(
    options: DeployOptions, session: Session, confirm: Confirm, progress: Progress
) -> Deployment | None:
    """Make or renew a deployment; return it, or None where the plan was declined.

    Args:
        options: What.
        session: The account.
        confirm: Shown the plan; its answer decides.
        progress: Told what is being done.

    Raises:
        ConfigError: terraform is missing or too old, or an option is wrong.
        CredentialsError: There are no credentials that work.
        CloudError: AWS refused; doing it again goes on.
    """
    folder = deployment_folder(options.name)
    terraform = Terraform(folder, plugin_folder=options.plugin_folder)
    check_region(session)
    progress(f"account {account_of(session)}")
    build_worker_package(folder / "worker.zip", options.target, progress)
    build_server_package(folder / "server", options.target, progress)
    progress("asking AWS what there is")
    terraform.prepare(
        sources.shipped_folder("terraform"), options.terraform_variables(folder), options.extra_files
    )
    plan = terraform.plan()
    if plan is None:
        progress("there is nothing to change")
    elif not confirm(plan):
        return None
    else:
        progress("carrying out the plan; this takes some minutes")
        terraform.apply(progress)
    deployment = read_deployment(terraform.outputs())
    deployment.note_down()
    return deployment


def destroy(
    name: str,
    session: Session,
    confirm: Confirm,
    progress: Progress,
    *,
    delete_data: bool = False,
    plugin_folder: Path | None = None,
) -> bool:
    """End all servers of a deployment and remove everything of it; return False where that was declined.

    Args:
        name: Of the deployment.
        session: The account.
        confirm: Shown what will go; its answer decides.
        progress: Told what is being done.
        delete_data: Delete what the bucket holds, too; else a bucket with data is an error.
        plugin_folder: As for :func:`deploy`.

    Raises:
        ConfigError: Nothing is deployed under this name from here, or the bucket holds data.
        CredentialsError: There are no credentials that work.
        CloudError: AWS refused; doing it again goes on.
    """
    folder = deployment_folder(name)
    terraform = Terraform(folder, plugin_folder=plugin_folder)
    if not terraform.has_state:
        raise ConfigError("name", f"nothing is deployed as {name!r} from this machine ({folder})")
    account_of(session)
    outputs = terraform.outputs()
    # Where it failed half-way, there are no outputs, and neither servers nor data.
    deployment = read_deployment(outputs) if outputs else None
    keys = [] if deployment is None else _user_keys(open_store(deployment.root))
    if deployment is not None and keys and not delete_data:
        raise ConfigError(
            "delete_data",
            f"{deployment.root} holds {len(keys)} objects of yours (datasets, runs, models): copy what you"
            " want to keep, and have the rest deleted with --delete-data",
        )
    progress("asking AWS what there is")
    terraform.initialise()
    plan = terraform.plan(destroy=True)
    warning = f"\n{len(keys)} objects of yours in the bucket go too." if keys else ""
    if not confirm(f"{plan or 'Nothing is left in the account.'}{warning}"):
        return False
    if deployment is not None:
        _end_servers(session, deployment, name, progress)
        progress(f"emptying {deployment.root}")
        _empty(open_store(deployment.root))
        deployment.forget()
    if plan is not None:
        progress("removing the rest; network interfaces of functions can take AWS up to 45 minutes")
        terraform.apply(progress)
    shutil.rmtree(folder)
    return True


def _user_keys(store: ObjectStore) -> list[str]:
    return [key for key in store.list() if key.partition("/")[0] not in OWN_PREFIXES]


def read_deployment(outputs: Mapping[str, Any]) -> Deployment:
    """Return the deployment that Terraform's outputs describe."""
    names = {field.name for field in dataclasses.fields(Deployment)}
    return from_plain(Deployment, {key: value for key, value in outputs.items() if key in names}, "outputs")


def account_of(session: Session) -> str:
    """Return the number of the account.

    Raises:
        CredentialsError: There are no credentials that work, or no region.
    """
    with aws_errors("asking who you are", needs="sts:GetCallerIdentity"):
        return str(session.client("sts").get_caller_identity()["Account"])


def check_region(session: Session) -> None:
    """Check that there is a region, and that AWS has one of this name: minutes before Terraform would ask.

    Raises:
        ConfigError: There is none.
    """
    region = session.region_name
    if not region:
        raise ConfigError("region", "is missing: give --region, such as eu-central-1, or set AWS_REGION")
    known = {
        name
        for partition in session.get_available_partitions()
        for name in session.get_available_regions("lambda", partition)
    }
    if region not in known:
        near = nearest(region, known)
        hint = "name one, such as eu-central-1" if near is None else f"did you mean {near}?"
        raise ConfigError("region", f"{region!r} is no region of AWS ({hint}); for a new one, upgrade boto3")


def _end_servers(session: Session, deployment: Deployment, name: str, progress: Progress) -> None:
    """End every instance of a deployment, and wait until they are gone.

    Raises:
        CloudError: They are not gone in time.
    """
    end = time.monotonic() + TERMINATE_SECONDS
    with contextlib.closing(AwsFacade(session, region=deployment.region)) as facade:
        while servers := _servers(facade, name):
            ids = [server.instance_id for server in servers]
            progress(f"ending {', '.join(ids)}")
            facade.terminate([server.instance_id for server in servers if server.state != _LEAVING])
            if time.monotonic() > end:
                raise CloudError(f"{', '.join(ids)}: not gone after {TERMINATE_SECONDS:g} s; try again")
            time.sleep(TERMINATE_POLL_SECONDS)  # EC2 can only be asked


def _servers(facade: AwsFacade, name: str) -> list[Instance]:
    """Return the instances of a deployment that are not gone yet."""
    states = (*LIVING_STATES, "stopping", "stopped", _LEAVING)
    return [server for server in facade.instances(states=states) if server.tags.get(TAG_DEPLOYMENT) == name]


def _empty(store: ObjectStore) -> None:
    """Delete all objects but those that Terraform removes."""
    tops = {key.partition("/")[0]: "/" in key for key in store.list()}
    for top, is_folder in sorted(tops.items()):
        if top in TERRAFORM_PREFIXES:
            continue
        if is_folder:
            store.delete_prefix(top)
        else:
            store.delete(top)
