"""The typed calls to Lambda and EC2: what they ask, how often, and what becomes of AWS' errors."""

from __future__ import annotations

import base64
import concurrent.futures
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import psutil
import pytest
from aws_services import Answer, Request, answering, json_error, moto_services, use_services, xml_error
from stand_ins import make_config
from test_aws_deployment import make_deployment

from cirrus.client_backend.aws import facade as facades
from cirrus.client_backend.aws.backend import AWSBackend
from cirrus.client_backend.aws.facade import OWNER, TAG_OWNER, TAG_RUN, TAG_SHARDS, AwsFacade
from cirrus.client_backend.fleet import WorkerEvent
from cirrus.client_backend.load_formats import SvmlightFormat
from cirrus.client_backend.load_tasks import LoadPlan
from cirrus.errors import (
    AccessDeniedError,
    CapacityError,
    CirrusError,
    CloudError,
    ConfigError,
    CredentialsError,
    LostResponseError,
    MissingResourceError,
    NotReadyError,
    ThrottledError,
)
from cirrus.run_folder import RunFolder


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    """Serve moto."""
    with moto_services() as url:
        yield url


def make_facade(**options: Any) -> AwsFacade:
    """Return a facade that does not wait between tries of its own."""
    return AwsFacade(boto3.session.Session(), region="us-east-1", **options)


@pytest.fixture
def ec2(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AwsFacade]:
    """A facade over moto."""
    use_services(monkeypatch, moto_url)
    facade = make_facade()
    yield facade
    facade.close()


@pytest.fixture
def template(ec2: AwsFacade) -> Iterator[str]:
    """A launch template; whatever was started is ended afterwards."""
    client = boto3.session.Session().client("ec2")
    made = client.create_launch_template(
        LaunchTemplateName="cirrus-servers",
        LaunchTemplateData={"ImageId": "ami-12c6146b", "InstanceType": "c7g.large", "UserData": "aGVsbG8="},
    )
    name = made["LaunchTemplate"]["LaunchTemplateId"]
    yield name
    ec2.terminate([instance.instance_id for instance in ec2.instances()])
    client.delete_launch_template(LaunchTemplateId=name)
    client.close()


def tags(run: str) -> dict[str, str]:
    """Return the tags of a run's server."""
    return {TAG_RUN: run, TAG_SHARDS: "0-1", TAG_OWNER: OWNER, "Name": f"cirrus-{run}"}


def test_servers_start_are_found_and_end(ec2: AwsFacade, template: str) -> None:
    """A server comes from the launch template, is found by its run, and is gone after its end."""
    name = ec2.run_instance(template_id=template, client_token="a-0-1", tags=tags("a"))
    other = ec2.run_instance(template_id=template, client_token="b-0-1", tags=tags("b"), spot=True)
    (found,) = ec2.instances(run_id="a")
    assert (found.instance_id, found.instance_type) == (name, "c7g.large")
    assert found.is_living
    assert found.tags[TAG_SHARDS] == "0-1"
    assert {i.instance_id for i in ec2.instances(states=facades.LIVING_STATES)} == {name, other}
    ec2.terminate([name])
    ec2.terminate([name])
    assert not ec2.instances(run_id="a", states=facades.LIVING_STATES)
    assert ec2.instances(instance_ids=[other])[0].is_living
    assert ec2.instances(instance_ids=["i-0123456789abcdef0"]) == []


def test_what_a_server_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One instance of the newest template, tagged with its disk; a repetition starts no second."""
    asked: list[dict[str, str]] = []

    def answer(request: Request) -> Answer:
        asked.append(dict(urllib.parse.parse_qsl(request.body.decode())))
        body = b"<R><instancesSet><item><instanceId>i-1</instanceId></item></instancesSet></R>"
        return xml_error("InternalError", 500) if len(asked) == 1 else Answer(body=body)

    with answering(answer) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        started = facade.run_instance(
            template_id="lt-1",
            client_token="r-0-1",
            tags={TAG_RUN: "r"},
            instance_type="c7g.xlarge",
            spot=True,
        )
        facade.close()
    assert started == "i-1"
    assert asked[0] == asked[1]
    del asked[0]["Version"]
    assert asked[0] == {
        "Action": "RunInstances",
        "ClientToken": "r-0-1",
        "InstanceMarketOptions.MarketType": "spot",
        "InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior": "terminate",
        "InstanceMarketOptions.SpotOptions.SpotInstanceType": "one-time",
        "InstanceType": "c7g.xlarge",
        "LaunchTemplate.LaunchTemplateId": "lt-1",
        "LaunchTemplate.Version": "$Latest",
        "MaxCount": "1",
        "MinCount": "1",
        "TagSpecification.1.ResourceType": "instance",
        "TagSpecification.1.Tag.1.Key": "cirrus:run",
        "TagSpecification.1.Tag.1.Value": "r",
        "TagSpecification.2.ResourceType": "volume",
        "TagSpecification.2.Tag.1.Key": "cirrus:run",
        "TagSpecification.2.Tag.1.Value": "r",
    }


def test_more_servers_than_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every page of a listing is read."""
    pages = [
        b"<item><instancesSet><item><instanceId>i-%d</instanceId><instanceState><name>running</name>"
        b"</instanceState></item></instancesSet></item>" % page
        for page in range(3)
    ]

    def answer(request: Request) -> Answer:
        page = next((n for n in (1, 2) if f"NextToken=page{n}".encode() in request.body), 0)
        token = b"<nextToken>page%d</nextToken>" % (page + 1) if page < 2 else b""
        return Answer(body=b"<R><reservationSet>%s</reservationSet>%s</R>" % (pages[page], token))

    with answering(answer) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        assert [i.instance_id for i in facade.instances()] == ["i-0", "i-1", "i-2"]
        facade.close()


REFUSALS: list[tuple[str, int, type[CirrusError], str]] = [
    ("ExpiredTokenException", 403, CredentialsError, "expired"),
    ("UnrecognizedClientException", 403, CredentialsError, "aws configure"),
    ("AccessDeniedException", 403, AccessDeniedError, "lambda:InvokeFunction"),
    ("TooManyRequestsException", 429, ThrottledError, "throttling"),
    ("ResourceNotFoundException", 404, MissingResourceError, "cirrus deploy"),
    ("ResourceConflictException", 409, NotReadyError, "makes it ready"),
    ("ServiceException", 500, LostResponseError, "may have carried"),
    ("InvalidParameterValueException", 400, CloudError, "about InvalidParameterValueException"),
]


@pytest.mark.parametrize(("code", "status", "kind", "text"), REFUSALS)
def test_an_invocation_is_tried_once(
    code: str, status: int, kind: type[CirrusError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Lambda answers, the SDK does not repeat it; the error is ours and says what to do."""
    requests: list[Request] = []

    def answer(request: Request) -> Answer:
        requests.append(request)
        return json_error(code, status)

    with answering(answer) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        with pytest.raises(kind, match=text) as caught:
            facade.invoke("worker", b'{"a": 1}')
        facade.close()
    assert type(caught.value) is kind
    assert [(request.method, request.body) for request in requests] == [("POST", b'{"a": 1}')]


def test_connections_are_kept_for_as_many_as_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next generations of all workers find a connection each, and none makes a new one."""
    workers, peers = 16, []
    at_work = threading.Barrier(workers)

    def answer(request: Request) -> Answer:
        peers.append(request.peer)
        at_work.wait(30.0)
        return Answer(body=b"{}")

    with answering(answer) as url, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        use_services(monkeypatch, url)
        facade = make_facade(max_invocations=workers)
        for _ in range(2):
            for said in pool.map(lambda _: facade.invoke("worker", b"{}"), range(workers)):
                assert not said.failed
        facade.close()
    assert len(peers) == 2 * workers
    assert len(set(peers)) == workers


def test_answers_are_awaited_beyond_the_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that works to its deadline answers after it; a facade's own limit is its read timeout."""

    def answer(request: Request) -> Answer:
        if request.path.endswith("/invocations"):
            never.wait(1.3)
            return Answer(body=b'{"outcome": "deadline"}')
        return Answer(body=b'{"MemorySize": 1769, "Timeout": 900, "ReservedConcurrentExecutions": 9}')

    never = threading.Event()
    with answering(answer) as url:
        use_services(monkeypatch, url)
        launcher = AWSBackend(make_deployment(), generation_seconds=1.0).job_launcher("s3://bucket/job")
        event = WorkerEvent(role="map", run_url="s3://bucket/job", worker_id=0, generation=1)
        assert launcher.invoke(event).outcome == "deadline"
        launcher.close()
        facade = make_facade(invocation_seconds=0.3)
        with pytest.raises(LostResponseError, match="Read timeout"):
            facade.invoke("worker", b"{}")
        facade.close()


def test_an_answer_that_is_lost_is_told_from_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken connection leaves open whether the function works; one that was refused does not."""
    asked: list[Request] = []

    def answer(request: Request) -> Answer:
        asked.append(request)
        return Answer(lost=True)

    with answering(answer) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        with pytest.raises(LostResponseError, match="no answer came"):
            facade.invoke("worker", b"{}")
        facade.close()
    assert len(asked) == 1
    with pytest.raises(CloudError, match="127.0.0.1") as caught:
        make_facade().invoke("worker", b"{}")
    assert not isinstance(caught.value, LostResponseError)


def test_an_answer_has_payload_log_and_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the function returned, whether it failed, and the decoded tail of its log."""
    log = base64.b64encode(b"START\nREPORT RequestId: 1").decode()
    headers = {"X-Amz-Log-Result": log, "X-Amz-Function-Error": "Unhandled"}
    with answering(lambda _: Answer(body=b'{"outcome": 1}', headers=headers)) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        said = facade.invoke("worker", b"{}")
        facade.close()
    assert (said.payload, said.failed) == (b'{"outcome": 1}', True)
    assert said.log_tail.endswith("REPORT RequestId: 1")


@pytest.mark.parametrize(
    ("reserved", "expected"), [(b'{"ReservedConcurrentExecutions": 7}', 7), (b"{}", 93), (None, None)]
)
def test_how_many_invocations_may_work_at_once(
    reserved: bytes | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function's reservation counts, else what the account has left; both may be secret."""

    def answer(request: Request) -> Answer:
        if reserved is None:
            return json_error("AccessDeniedException", 403)
        if "account-settings" in request.path:
            return Answer(body=b'{"AccountLimit": {"UnreservedConcurrentExecutions": 93}}')
        return Answer(body=reserved)

    with answering(answer) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        assert facade.concurrency("worker") == expected
        facade.close()


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("InsufficientInstanceCapacity", CapacityError, "another instance type"),
        ("VcpuLimitExceeded", CapacityError, "another instance type"),
        ("UnauthorizedOperation", AccessDeniedError, "ec2:RunInstances"),
        ("RequestExpired", CredentialsError, "expired"),
        ("AuthFailure", CredentialsError, "wrong"),
        ("InvalidLaunchTemplateId.NotFoundException", MissingResourceError, "cirrus deploy"),
    ],
)
def test_what_ec2_refuses(
    code: str, kind: type[CirrusError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EC2's refusals are told apart, and each says what to do."""
    with answering(lambda _: xml_error(code)) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        with pytest.raises(kind, match=text):
            facade.run_instance(template_id="lt-1", client_token="x", tags={})
        facade.close()


def test_calls_that_may_be_repeated_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """EC2's throttling is waited out."""
    answers = iter([xml_error("RequestLimitExceeded", 503), Answer(body=b"<R><return>true</return></R>")])
    with answering(lambda _: next(answers)) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        facade.terminate(["i-1"])
        facade.close()
    assert next(answers, None) is None


def test_an_answer_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a proxy says in a service's name is no answer."""
    with answering(lambda _: Answer(502, b"<!doctype html><h1>Bad gateway")) as url:
        use_services(monkeypatch, url)
        facade = make_facade()
        with pytest.raises(LostResponseError):
            facade.instances()
        facade.close()


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error names the ways to give some."""
    use_services(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CredentialsError, match="aws sso login"):
        make_facade().instances()


def test_a_search_hears_what_aws_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's limit of functions is the least that any of them may do; None where that is secret."""

    def answer(request: Request) -> Answer:
        if "account-settings" in request.path:
            return Answer(body=b'{"AccountLimit": {"UnreservedConcurrentExecutions": 93}}')
        return Answer(body=b"{}")

    with answering(answer) as url:
        use_services(monkeypatch, url)
        assert AWSBackend(make_deployment()).max_functions == 93
    with answering(lambda _: json_error("AccessDeniedException", 403)) as url:
        use_services(monkeypatch, url)
        assert AWSBackend(make_deployment()).max_functions is None
    assert AWSBackend(make_deployment()).options == ("--home", f"s3://{make_deployment().bucket}")


@pytest.mark.parametrize("kind", ["run", "job", "load"])
def test_nothing_stays_open_of_what_cannot_begin(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that may not work at all is an error that leaves no connection."""

    def answer(request: Request) -> Answer:
        if "concurrency" in request.path:
            return Answer(body=b'{"ReservedConcurrentExecutions": 0}')
        return Answer(body=b'{"MemorySize": 1769, "Timeout": 900}')

    plan = LoadPlan(
        files=("rows",),
        url="s3://bucket/rows",
        prefix="chunks/1/",
        folder="s3://bucket/rows/loading/1",
        is_temporary=False,
        n_workers=2,
        n_buckets=1,
        shuffle=False,
        seed=0,
        bucket_bytes=1,
        svmlight=SvmlightFormat(),
    )
    with answering(answer) as url:
        use_services(monkeypatch, url)
        backend = AWSBackend(make_deployment())
        begin: dict[str, Callable[[], object]] = {
            "run": lambda: backend.launcher(RunFolder("memory://none"), make_config()),
            "job": lambda: backend.job_launcher("s3://bucket/job"),
            "load": lambda: backend.load_workers(plan),
        }
        with pytest.raises(ConfigError, match="its reserved concurrency is 0") as caught:
            begin[kind]()
        port = int(url.rpartition(":")[2])
        connections = psutil.Process().net_connections("tcp4")
        assert [
            c for c in connections if c.raddr and c.raddr.port == port and c.status == "ESTABLISHED"
        ] == []
        del caught
