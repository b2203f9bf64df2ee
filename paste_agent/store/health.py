"""How the agent itself fares, as far as the store tells. Reads only."""

from __future__ import annotations

from typing import NamedTuple

from paste_agent import metrics
from paste_agent.aggregate import REPORT_DURATION, Total
from paste_agent.store import history
from paste_agent.store.store import Store, json_object

#: Since which version of the schema there is the table of logs.
_LOGS = 3


class Waiting(NamedTuple):
    """What has not been sent to a collector. Without a collector nothing ever is."""

    number: int
    oldest_s: float | None  #: came into the store, of logs: was written, s since the epoch; None: nothing waits


class Health(NamedTuple):
    """Counters are from the making of the store on."""

    records_dropped: dict[str, int]  #: finished requests that could not be recorded, by reason
    spans_dropped: dict[str, int]  #: by reason
    internal_errors: dict[str, int]  #: faults of the agent, by reason; "" where none is known
    export_failed: dict[str, int]  #: data points, spans and logs that a collector did not take, by signal
    report: Total  #: rounds of reporting within the span of time that was asked for
    traces: Waiting
    logs: Waiting


def health(store: Store, start_s: float, end_s: float) -> Health:
    """Raises what store.READ_ERRORS names."""
    with store.reading():
        counters = store.counters()

        def by(name: str, attribute: str) -> dict[str, int]:
            found: dict[str, int] = {}
            for (counter, attributes), value in counters.items():
                if counter == name:
                    key = str(json_object(attributes).get(attribute, ""))
                    found[key] = found.get(key, 0) + value
            return found

        report = Total()
        for one in history.totals(store, start_s, end_s, [REPORT_DURATION]):
            report.add(one.total)
        return Health(
            records_dropped=by(metrics.RECORDS_DROPPED, metrics.REASON),
            spans_dropped=by(metrics.SPANS_DROPPED, metrics.REASON),
            internal_errors=by(metrics.INTERNAL_ERRORS, metrics.REASON),
            export_failed=by(metrics.EXPORT_FAILED, metrics.SIGNAL),
            report=report,
            traces=_waiting(store, "SELECT count(*), min(written_at) FROM traces WHERE sent = 0", 1),
            logs=_waiting(store, "SELECT count(*), min(at_ns) FROM logs WHERE sent = 0", 1_000_000_000)
            if store.version >= _LOGS
            else Waiting(0, None),
        )


def _waiting(store: Store, sql: str, units: int) -> Waiting:
    ((number, oldest),) = store.query(sql)
    return Waiting(number, None if oldest is None else oldest / units)
