"""What Lambda writes at the end of an invocation: how long it took, and how long it is billed.

The line is text, or JSON where the function's log format is JSON
(https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-advanced.html, ``platform.report``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_REPORT = re.compile(r"^REPORT RequestId: (?P<id>\S+)\s(?P<rest>.*)$", re.MULTILINE)
_FIELD = re.compile(r"(?P<name>[A-Z][A-Za-z ]*): (?P<number>\d+(?:\.\d+)?) (?P<unit>ms|MB)")


@dataclass(frozen=True, kw_only=True)
class LambdaReport:
    """What one invocation took."""

    request_id: str
    billed_seconds: float
    seconds: float
    """Of the handler."""
    init_seconds: float = 0.0
    """Of a cold start, importing included; 0 for a warm one."""
    memory_mb: int = 0
    max_memory_mb: int = 0


def parse_report(log_tail: str) -> LambdaReport | None:
    """Return the last report in the tail of a log, or None where there is none that is whole."""
    for line in reversed(log_tail.splitlines()):
        found = _parse_json(line) if line.lstrip().startswith("{") else _parse_text(line)
        if found is not None:
            return found
    return None


def _parse_text(line: str) -> LambdaReport | None:
    match = _REPORT.match(line.strip())
    if match is None:
        return None
    fields = {field["name"].strip(): float(field["number"]) for field in _FIELD.finditer(match["rest"])}
    if "Billed Duration" not in fields or "Duration" not in fields:
        return None
    return LambdaReport(
        request_id=match["id"],
        billed_seconds=_seconds(fields["Billed Duration"]),
        seconds=_seconds(fields["Duration"]),
        init_seconds=_seconds(fields.get("Init Duration", 0.0)),
        memory_mb=int(fields.get("Memory Size", 0)),
        max_memory_mb=int(fields.get("Max Memory Used", 0)),
    )


def _parse_json(line: str) -> LambdaReport | None:
    try:
        raw: Any = json.loads(line)
        if raw.get("type") != "platform.report":
            return None
        record = raw["record"]
        metrics = record["metrics"]
        return LambdaReport(
            request_id=str(record["requestId"]),
            billed_seconds=_seconds(metrics["billedDurationMs"]),
            seconds=_seconds(metrics["durationMs"]),
            init_seconds=_seconds(metrics.get("initDurationMs", 0.0)),
            memory_mb=int(metrics.get("memorySizeMB", 0)),
            max_memory_mb=int(metrics.get("maxMemoryUsedMB", 0)),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _seconds(milliseconds: Any) -> float:
    return round(float(milliseconds) / 1000.0, 6)
