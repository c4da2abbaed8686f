"""`remora explain`: how deployments are scaled, and why.

Rules: what is laid out is pure functions from details to text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import click
import msgspec

from remora.cli.errors import CommandError
from remora.cli.instance import find
from remora.config import nearest
from remora.core.autoscale.record import ScalingRecord
from remora.wire.scaling import ScalingDetail

_BY = {
    "demand": "by demand",
    "outside": "from outside (external_scaler_enabled)",
    "options": "by its options (num_replicas)",
}
#: Decisions that are shown.
_SHOWN = 20


def explain(target: str | None, *, as_json: bool) -> None:
    """Print how deployments are scaled.

    Args:
        target: `APP` or `APP/DEPLOYMENT`; None: everything.
        as_json: one object for each deployment.

    Raises:
        CommandError: no instance runs, or it has nothing of that name.
    """
    found = select(asyncio.run(find().scaling()), target)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    click.echo("\n\n".join("\n".join(lines(detail)) for detail in found))


def select(details: Sequence[ScalingDetail], target: str | None) -> list[ScalingDetail]:
    """Keep those of an application, or one. Pure.

    Raises:
        CommandError: there is nothing of that name; says what was probably meant.
    """
    if target is None:
        if not details:
            raise CommandError("Nothing is deployed.")
        return list(details)
    found = [d for d in details if target in (d.app_name, f"{d.app_name}/{d.deployment}")]
    if not found:
        known = sorted({d.app_name for d in details} | {_name(d) for d in details})
        shown = ", ".join(sorted(_name(d) for d in details)) or "nothing is deployed"
        raise CommandError(
            f"There is no application or deployment {target!r} ({shown}).{nearest(target, known)}"
        )
    return found


def _name(detail: ScalingDetail) -> str:
    return f"{detail.app_name}/{detail.deployment}"


def lines(detail: ScalingDetail) -> Iterable[str]:
    """Write one deployment. Pure, but for the time zone of the reader."""
    bounds = f", between {detail.low} and {detail.high}" if detail.by == "demand" else ""
    yield (
        f"{_name(detail)} is scaled {_BY[detail.by]}: {detail.running} of "
        f"{detail.target_num_replicas} replicas run{bounds}. {detail.status}"
    )
    if detail.latest is not None:
        yield ""
        yield "Now"
        yield from _inputs(detail.latest)
        yield f"  formula   {detail.latest.formula or 'no number'}"
        for limit in detail.latest.limits:
            yield f"  then      {limit.why}"
        yield f"  result    {detail.latest.after}"
    custom = {k: v for k, v in detail.metrics.items() if k not in ("queued", "running", "total")}
    for name, value in custom.items():
        yield f"  metric    {name} = {value:g}"
    if detail.metrics_health != "healthy":
        yield f"  reports   {detail.metrics_health}: nothing is scaled down meanwhile"
    for error in detail.errors:
        yield ""
        yield f"Error: {error}"
    if detail.decisions:
        yield ""
        yield "Decisions, the last one first"
        for record in list(reversed(detail.decisions))[:_SHOWN]:
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at_unix_s))
            yield f"  {at}  {record.before} -> {record.after}  {record.reason}"


def _inputs(record: ScalingRecord) -> Iterable[str]:
    yield (
        f"  demand    {record.total:.4g} requests: {record.ongoing:.4g} ongoing and "
        f"{record.queued:.4g} waiting ({record.aggregation} over {record.window_s:.3g} s)"
    )
    yield f"  policy    {record.policy}"
