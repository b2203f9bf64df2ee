"""OpenTelemetry's SDK as a subject of the fault tests' harness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.opentelemetry_service import counts
from tests.faults.load import Tally
from tests.faults.verdict import Counts, Verdict
from tests.receiver import Receiver

CONFIGURATION = str(Path(__file__).with_name("gunicorn.conf.py").resolve())

#: What it reports requests by, and how they are read from what the receiver took.
READINGS: Mapping[str, Callable[[Receiver], Counts]] = {
    "metrics": counts.metric_counts,
    "spans": counts.span_counts,
}


@dataclass
class OpenTelemetry:
    """Under `gunicorn --paste`. often: exports every 0.3 s, as paste-agent does in the tests; else by its defaults."""

    often: bool = True
    warm: str = ""  #: name of a task that is traced while the application is loaded
    variables: Mapping[str, str] = field(default_factory=dict)
    name: str = "opentelemetry-sdk"

    def sections(self, directory: Path) -> str:
        with open(directory / "gunicorn.conf.py", "a") as configuration:
            configuration.write(f"\nimport runpy\npost_fork = runpy.run_path({CONFIGURATION!r})['post_fork']\n")
        warm = f"warm = {self.warm}\n" if self.warm else ""
        return f"[filter:otel]\npaste.filter_app_factory = bench.opentelemetry_service.service:wrapped\n{warm}"

    def pipeline(self) -> str:
        return "otel"

    def environment(self, endpoint: str | None) -> dict[str, str]:
        if endpoint is None:
            return {"OTEL_SDK_DISABLED": "true"}
        often = {"OTEL_METRIC_EXPORT_INTERVAL": "300", "OTEL_BSP_SCHEDULE_DELAY": "300"} if self.often else {}
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **often, **self.variables}

    def stored(self, directory: Path) -> Counts | None:
        return None

    def recover(self, directory: Path) -> None:
        """Nothing is left that could be counted."""

    def troubles(self, directory: Path, output: str) -> list[str]:
        return []


def verdicts(verdict: Verdict, receiver: Receiver) -> dict[str, Verdict]:
    """A trial's verdict by method and status alone, for each way in which requests are reported."""
    tally = Tally(refused=verdict.tally.refused, wrong=verdict.tally.wrong)
    served: Counter[tuple[str | None, str | None, int | None]] = Counter()
    for (method, _route, status), count in verdict.tally.served.items():
        served[method, None, status] += count
    tally.served = served
    for (method, _route), count in verdict.tally.cut_off.items():
        tally.cut_off[method, None] += count  # type: ignore[index]  # no route, as in what it is compared with
    return {
        reading: replace(verdict, title=f"{verdict.title}, by {reading}", tally=tally, received=read(receiver))
        for reading, read in READINGS.items()
    }
