"""The one place where the client talks to Lambda and EC2: typed, with time limits, errors translated.

Retries. Calls that may safely be repeated are, by the SDK's standard mode (:data:`CONTROL_ATTEMPTS` tries
with jittered waits). An invocation is tried exactly once: a repetition by the SDK would start another worker
under the same name, while the first may be at work. Whoever invokes decides what a lost answer means.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.config import Config

from cirrus.client_backend.aws.translation import aws_errors
from cirrus.errors import AccessDeniedError, MissingResourceError

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_ec2.type_defs import FilterTypeDef, InstanceTypeDef

#: Tries of a call that may be repeated.
CONTROL_ATTEMPTS = 5
CONNECT_SECONDS = 5.0
CONTROL_READ_SECONDS = 30.0

#: Tags of an instance: the run that it was launched for and which shards of that; others may come there.
TAG_RUN, TAG_SHARDS, TAG_OWNER, OWNER = "cirrus:run", "cirrus:shards", "cirrus:owner", "cirrus"
#: Tag that everything of a deployment carries, with its name.
TAG_DEPLOYMENT = "cirrus:deployment"
#: States of an instance in which it costs something.
LIVING_STATES = ("pending", "running")


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What came of invoking a function."""

    payload: bytes
    """JSON: what the function returned, or a description of its error."""
    failed: bool
    """The function raised an error, or its time or memory was over."""
    log_tail: str
    """The last 4 KB of its log."""


@dataclass(frozen=True, kw_only=True)
class FunctionInfo:
    """What a function is."""

    memory_mb: int
    timeout_seconds: int


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A virtual machine."""

    instance_id: str
    state: str
    """``pending``, ``running``, ``shutting-down``, ``terminated``, ``stopping`` or ``stopped``."""
    reason: str
    """Why it is in this state, such as ``Server.SpotInstanceTermination``; may be empty."""
    instance_type: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_living(self) -> bool:
        """True when it works or is about to."""
        return self.state in LIVING_STATES


class AwsFacade:
    """Calls to Lambda and EC2.

    Args:
        session: Credentials; its region is not used.
        region: Where the deployment is.
        max_invocations: Invocations at the same time: connections are kept for as many.
        invocation_seconds: How long an answer of an invocation may take.
    """

    def __init__(
        self,
        session: Session,
        *,
        region: str,
        max_invocations: int = 1,
        invocation_seconds: float = 60.0,
    ) -> None:
        control = Config(
            region_name=region,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=CONTROL_READ_SECONDS,
            retries={"mode": "standard", "total_max_attempts": CONTROL_ATTEMPTS},
        )
        invocations = Config(
            region_name=region,
            connect_timeout=CONNECT_SECONDS,
            read_timeout=invocation_seconds,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=max_invocations,
            tcp_keepalive=True,
        )
        with aws_errors("connecting to AWS", needs="credentials"):
            self._ec2 = session.client("ec2", config=control)
            self._lambda = session.client("lambda", config=control)
            self._invoker = session.client("lambda", config=invocations)

    def close(self) -> None:
        """Close idle connections; invocations that are at work go on."""
        for client in (self._ec2, self._lambda, self._invoker):
            client.close()

    # Functions.

    def invoke(self, function: str, payload: bytes) -> Invocation:
        """Invoke a function, and wait for its answer. One attempt.

        Raises:
            ThrottledError: As many functions as the account allows are at work.
            LostResponseError: No answer came; the function may be at work.
            CloudError: It was not invoked.
        """
        with aws_errors(f"invoking {function}", needs="lambda:InvokeFunction"):
            answer = self._invoker.invoke(
                FunctionName=function, InvocationType="RequestResponse", LogType="Tail", Payload=payload
            )
            body = answer["Payload"].read()
        log_tail = base64.b64decode(answer.get("LogResult", "")).decode(errors="replace")
        return Invocation(payload=body, failed=bool(answer.get("FunctionError")), log_tail=log_tail)

    def function_info(self, function: str) -> FunctionInfo:
        """Return what a function is.

        Raises:
            MissingResourceError: There is no such function.
        """
        with aws_errors(f"looking up the function {function}", needs="lambda:GetFunctionConfiguration"):
            found = self._lambda.get_function_configuration(FunctionName=function)
        return FunctionInfo(memory_mb=found["MemorySize"], timeout_seconds=found["Timeout"])

    def concurrency(self, function: str) -> int | None:
        """Return how many invocations of a function may work at once; None where that may not be asked.

        It is the function's own reservation, else what the account has left for all functions without one.
        """
        try:
            with aws_errors(
                f"looking up the concurrency of {function}", needs="lambda:GetFunctionConcurrency"
            ):
                reserved = self._lambda.get_function_concurrency(FunctionName=function)
            if (own := reserved.get("ReservedConcurrentExecutions")) is not None:
                return own
            with aws_errors("looking up the account's concurrency", needs="lambda:GetAccountSettings"):
                return self._lambda.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"]
        except AccessDeniedError:
            return None

    # Servers.

    def run_instance(
        self,
        *,
        template_id: str,
        client_token: str,
        tags: Mapping[str, str],
        instance_type: str | None = None,
        spot: bool = False,
    ) -> str:
        """Start an instance from a launch template; return its id. The same token starts it once.

        Args:
            template_id: The launch template.
            client_token: A name of this very request, at most 64 characters.
            tags: Of the instance and its disk.
            instance_type: Instead of the template's.
            spot: As a spot instance, which can be taken back with two minutes' notice.

        Raises:
            CapacityError: There is no such machine to be had, or not for this account.
            MissingResourceError: There is no such template.
        """
        pairs: Any = [{"Key": key, "Value": value} for key, value in tags.items()]
        arguments: dict[str, Any] = {}
        if instance_type is not None:
            arguments["InstanceType"] = instance_type
        if spot:
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
        with aws_errors("starting a server", needs="ec2:RunInstances, ec2:CreateTags and iam:PassRole"):
            answer = self._ec2.run_instances(
                LaunchTemplate={"LaunchTemplateId": template_id, "Version": "$Latest"},
                MinCount=1,
                MaxCount=1,
                ClientToken=client_token,
                TagSpecifications=[
                    {"ResourceType": "instance", "Tags": pairs},
                    {"ResourceType": "volume", "Tags": pairs},
                ],
                **arguments,
            )
        return answer["Instances"][0]["InstanceId"]

    def instances(
        self,
        *,
        run_id: str | None = None,
        instance_ids: Sequence[str] | None = None,
        states: Iterable[str] | None = None,
    ) -> list[Instance]:
        """Return the instances of Cirrus, by run, id and state; those unknown to EC2 are left out."""
        filters: list[FilterTypeDef] = [{"Name": f"tag:{TAG_OWNER}", "Values": [OWNER]}]
        if run_id is not None:
            filters.append({"Name": f"tag:{TAG_RUN}", "Values": [run_id]})
        if instance_ids is not None:
            filters.append({"Name": "instance-id", "Values": list(instance_ids)})
        if states is not None:
            filters.append({"Name": "instance-state-name", "Values": list(states)})
        found = []
        with aws_errors("looking for servers", needs="ec2:DescribeInstances"):
            for page in self._ec2.get_paginator("describe_instances").paginate(Filters=filters):
                for reservation in page["Reservations"]:
                    found += [_instance(raw) for raw in reservation["Instances"]]
        return found

    def terminate(self, instance_ids: Sequence[str]) -> None:
        """End instances; those that are gone are left alone."""
        if not instance_ids:
            return
        for instance_id in instance_ids:
            try:
                with aws_errors(f"ending the server {instance_id}", needs="ec2:TerminateInstances"):
                    self._ec2.terminate_instances(InstanceIds=[instance_id])
            except MissingResourceError:
                continue

    def spot_price(self, instance_type: str, availability_zone: str) -> float | None:
        """Return what a spot instance costs now, in dollars an hour, or None where nobody says."""
        try:
            with aws_errors("looking up spot prices", needs="ec2:DescribeSpotPriceHistory"):
                answer = self._ec2.describe_spot_price_history(
                    InstanceTypes=[instance_type],  # type: ignore[list-item]  # any type that there is
                    AvailabilityZone=availability_zone,
                    ProductDescriptions=["Linux/UNIX"],
                    MaxResults=1,
                )
        except AccessDeniedError:
            return None
        prices = answer["SpotPriceHistory"]
        return float(prices[0]["SpotPrice"]) if prices else None


def _instance(raw: InstanceTypeDef) -> Instance:
    reason = raw.get("StateReason", {})
    return Instance(
        instance_id=raw["InstanceId"],
        state=raw["State"]["Name"],
        reason=f"{reason.get('Code', '')} {reason.get('Message', '')}".strip(),
        instance_type=raw.get("InstanceType", ""),
        tags={tag["Key"]: tag["Value"] for tag in raw.get("Tags", ())},
    )
