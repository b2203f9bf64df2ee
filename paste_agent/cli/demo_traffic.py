"""`paste-agent demo-traffic`: sends a bounded, believable mix of requests to the demo shop on this host.

The mix: people who browse, search, fill baskets and order; links that lead nowhere; now and then the slow page and
the failing one.
"""

from __future__ import annotations

import configparser
import ipaddress
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import click
import requests
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from paste_agent import ini
from paste_agent.errors import AgentError, IniError

DEFAULT_INI = "production.ini"
#: In the shop's every page. Whatever else answers at the address is left alone: this command places orders.
MARK = "paste-agent demo shop"
NO_SERVER = "no server answers"

_DEFAULT_PORT = 8000  # gunicorn's own
_PRODUCTS = 200
_WORDS = (
    "oak",
    "linen",
    "folding",
    "copper bowl",
    "wool blanket",
    "glass",
    "watering can",
    "tool box",
    "velvet",
    "tea",
)
_STRAYS = ("/favicon.ico", "/robots.txt", "/item", "/about-us")
_TIMEOUT_S = (3.0, 30.0)  # connecting, and between two pieces of an answer
_HANG_TIMEOUT_S = (3.0, 120.0)  # the server gives up first, or the page ends
_GRACE_S = 10.0  # a client that a slow page held up may send the rest of its share this much later
_MOST_FAILURES = 20  # in a row: then the server is gone


class TrafficError(AgentError):
    """Traffic that cannot be sent."""


# -- what is sent --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One request of the mix; route: the template that the shop names it by, None where it has none."""

    kind: str
    method: str
    path: str
    route: str | None


def _list(dice: random.Random) -> Step:
    page = dice.choice((1, 1, 1, 2, 3))
    return Step("list", "GET", f"/?page={page}" if page > 1 else "/", "/")


def _search(dice: random.Random) -> Step:
    return Step("search", "GET", f"/search?q={quote(dice.choice(_WORDS))}", "/search")


def _item(dice: random.Random) -> Step:
    return Step("item", "GET", f"/item/{dice.randint(1, _PRODUCTS)}", "/item/{id}")


def _missing_item(dice: random.Random) -> Step:
    return Step("item that is gone", "GET", f"/item/{dice.randint(100_000, 999_999)}", "/item/{id}")


def _stray(dice: random.Random) -> Step:
    return Step("page that never was", "GET", dice.choice(_STRAYS), None)


def _basket(_: random.Random) -> Step:
    return Step("basket", "GET", "/basket", "/basket")


def _add(dice: random.Random) -> Step:
    return Step("add to basket", "POST", f"/basket/{dice.randint(1, _PRODUCTS)}", "/basket/{id}")


def _checkout(_: random.Random) -> Step:
    return Step("checkout", "POST", "/checkout", "/checkout")


def _static(dice: random.Random) -> Step:
    return Step("static file", "GET", f"/static/{dice.choice(('shop.css', 'shop.svg'))}", "/static/{name}")


def _download(_: random.Random) -> Step:
    return Step("download", "GET", "/download/catalogue.csv", "/download/catalogue.csv")


def _slow(_: random.Random) -> Step:
    return Step("slow page", "GET", "/report/sales", "/report/sales")


#: Sent once, where it is asked for: the worker that gets it dies of gunicorn's `timeout`.
_HANG = Step("page that never ends", "GET", "/report/year", "/report/year")


def _broken(_: random.Random) -> Step:
    return Step("failing page", "GET", "/broken", "/broken")


_MIX: dict[Callable[[random.Random], Step], float] = {
    _list: 22,
    _search: 14,
    _item: 29,
    _missing_item: 2.5,
    _stray: 2,
    _basket: 5,
    _add: 9,
    _checkout: 3.5,
    _static: 9,
    _download: 2,
    _slow: 0.6,
    _broken: 1.4,
}


def next_step(dice: random.Random, has_basket: bool) -> Step:
    """What a visitor does next; nobody checks out without a basket."""
    make = dice.choices(list(_MIX), weights=list(_MIX.values()))[0]
    if make is _checkout and not has_basket:
        make = _add
    return make(dice)


# -- sending -------------------------------------------------------------------------------------------------------

#: kind, method, route, status; the last None where no whole answer came.
Key = tuple[str, str, str | None, int | None]


class Traffic:
    """Visitors, each a thread with cookies of its own, that share one steady rate of requests."""

    def __init__(
        self,
        url: str,
        *,
        seconds: int,
        rate: float,
        clients: int,
        seed: int,
        hang: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """url: the shop's, without a slash at its end; rate: requests a second; seed: same seed, same requests.

        hang: ask for the page that never ends, too.
        """
        self.url = url
        self.planned = max(1, round(seconds * rate))
        self.gave_up = False
        self._clock = clock
        self._rate = rate
        self._deadline_s = seconds + _GRACE_S
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._counts: Counter[Key] = Counter()
        self._failures = 0
        self._threads = [
            # Daemons, so that a second Ctrl-C need not wait for an answer.
            threading.Thread(target=self._visit, args=(number, clients, seed), name=f"client-{number}", daemon=True)
            for number in range(clients)
        ]
        self.waiting = int(hang)
        self._hanging = [threading.Thread(target=self._hang, name="client-that-waits", daemon=True)] if hang else []

    def probe(self) -> None:
        """Send the first request. Raises TrafficError when it is not the demo shop that answers."""
        step = Step("list", "GET", "/", "/")
        try:
            with _session() as session, _open(session, "GET", self.url + step.path) as response:
                start = next(response.iter_content(4096), b"")
                if response.status_code != 200 or MARK.encode() not in start:
                    raise TrafficError(
                        f"{self.url}/: answered {response.status_code}, and not as the demo shop; left alone"
                    )
                _read_to_its_end(response)
        except requests.RequestException:
            raise TrafficError(f"{self.url}/: {NO_SERVER}") from None
        self._count(step, response.status_code)

    def start(self) -> None:
        """Let the visitors in."""
        self._started_s = self._clock()
        for thread in (*self._threads, *self._hanging):
            thread.start()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped.set()

    def join(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds for the visitors to end; true when they have.

        Once the traffic was stopped nobody waits for the page that never ends.
        """
        until_s = self._clock() + timeout_s
        threads = self._threads if self._stopped.is_set() else self._threads + self._hanging
        for thread in threads:
            thread.join(max(0.0, until_s - self._clock()))
        return not any(thread.is_alive() for thread in threads)

    def counts(self) -> Counter[Key]:
        """What was sent so far, and how it was answered."""
        with self._lock:
            return Counter(self._counts)

    def _visit(self, number: int, clients: int, seed: int) -> None:
        # Each visitor has dice of its own and a fixed share of the requests: which requests are sent depends on the
        # seed alone, not on how the threads take turns. The first request of all was the probe.
        dice = random.Random(f"{seed}/{number}")
        with _session() as session:
            for position in range(number or clients, self.planned, clients):
                self._stopped.wait(max(0.0, self._started_s + position / self._rate - self._clock()))
                if self._stopped.is_set() or self._clock() > self._started_s + self._deadline_s:
                    return
                step = next_step(dice, "basket" in session.cookies)
                self._count(step, self._send(session, step))

    def _hang(self) -> None:
        with _session() as session:
            self._count(_HANG, self._send(session, _HANG, _HANG_TIMEOUT_S))

    def _send(self, session: requests.Session, step: Step, timeout_s: tuple[float, float] = _TIMEOUT_S) -> int | None:
        try:
            with _open(session, step.method, self.url + step.path, timeout_s) as response:
                _read_to_its_end(response)
                return response.status_code
        except requests.RequestException:
            return None

    def _count(self, step: Step, status: int | None) -> None:
        with self._lock:
            self._counts[step.kind, step.method, step.route, status] += 1
            self._failures = self._failures + 1 if status is None else 0
            if self._failures >= _MOST_FAILURES:
                self.gave_up = True
                self._stopped.set()


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy has no business between two programs of one host
    session.headers["User-Agent"] = "paste-agent-demo-traffic"
    return session


def _open(
    session: requests.Session, method: str, url: str, timeout_s: tuple[float, float] = _TIMEOUT_S
) -> requests.Response:
    # Redirects are not followed: each would be a request that is not in the counts.
    return session.request(method, url, timeout=timeout_s, allow_redirects=False, stream=True)


def _read_to_its_end(response: requests.Response) -> None:
    for _ in response.iter_content(65536):
        pass


# -- where to ------------------------------------------------------------------------------------------------------


def url_of(target: str | None) -> str:
    """The shop's URL, without a slash at its end, from a URL or the path of an ini; None: production.ini here.

    Raises TrafficError for a host that is not this one, IniError for an ini that cannot be used.
    """
    if target is None:
        if not os.path.exists(DEFAULT_INI):
            raise TrafficError(f"no {DEFAULT_INI} in this directory; give the path of the shop's ini, or its URL")
        target = DEFAULT_INI
    return _checked(target if "://" in target else _url_of_ini(target))


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise TrafficError(f"{url}: not a URL; expected one such as http://127.0.0.1:8080") from None
    if parts.scheme != "http" or not host or port == 0:
        raise TrafficError(f"{url}: expected a URL such as http://127.0.0.1:8080")
    if not _is_loopback(host):
        raise TrafficError(f"{url}: refused; this puts load on a server, so it serves only this host (127.0.0.1)")
    return f"http://{_bracketed(host)}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _url_of_ini(path: str) -> str:
    """The address that `[server:main]` listens on."""
    ini.parser_of(path)  # says what is wrong with a file that is no ini
    here = os.path.dirname(os.path.abspath(path))
    # Values may refer to others, as PasteDeploy lets them.
    defaults = {"here": here.replace("%", "%%"), "__file__": os.path.abspath(path).replace("%", "%%")}
    parser = configparser.ConfigParser(defaults)
    parser.read(path, encoding="utf-8")
    if not parser.has_section("server:main"):
        raise IniError(f"{path}: no [server:main]; give the server's URL instead")
    try:
        host, port, bind = (parser.get("server:main", key, fallback="").strip() for key in ("host", "port", "bind"))
        bind = bind or ",".join(parser.get("server:main", "listen", fallback="").split())  # waitress has it so
    except configparser.InterpolationError as error:
        raise IniError(f"{path}: [server:main]: {' '.join(str(error).split())}") from None
    if bind and not host:
        # Of several addresses the first that is no socket file.
        tcp = [address.strip() for address in bind.split(",") if not address.strip().startswith(("unix:", "fd:"))]
        if not tcp:
            raise IniError(f"{path}: [server:main] bind = {bind!r}: no TCP address to send to; give the server's URL")
        host, port = _split_address(tcp[0])
    elif not port:
        host, port = _split_address(host)
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise IniError(f"{path}: [server:main] port = {port!r}: expected 1 to 65535, for example 8080")
    host = host.strip("[]")
    if host in ("", "0.0.0.0", "::", "*"):  # every address of this host
        host = "::1" if host == "::" else "127.0.0.1"
    return f"http://{_bracketed(host)}:{port or _DEFAULT_PORT}"


def _split_address(address: str) -> tuple[str, str]:
    """Host and port of `host:port`, `[v6]:port`, `:port` or a lone host; '' for what is missing."""
    address = address.removeprefix("tcp://")
    head, colon, tail = address.rpartition(":")
    if colon and "]" not in tail and (":" not in head or head.endswith("]")):
        return head, tail
    return address, ""


# -- the command ---------------------------------------------------------------------------------------------------


@click.command("demo-traffic")
@click.argument("target", metavar="[INI | URL]", required=False)
@click.option("--seconds", type=click.IntRange(1, 600), default=60, show_default=True, help="How long to send.")
@click.option("--rate", type=click.FloatRange(0.1, 500), default=20, show_default=True, help="Requests a second.")
@click.option("--clients", type=click.IntRange(1, 16), default=4, show_default=True, help="Visitors at once.")
@click.option("--seed", type=int, default=None, help="The same number sends the same requests again.")
@click.option("--hang", is_flag=True, help="Ask once for a page that never ends: gunicorn kills the worker over it.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def command(
    target: str | None, seconds: int, rate: float, clients: int, seed: int | None, hang: bool, as_json: bool
) -> None:
    """Send a minute of mixed requests to the demo shop.

    INI is the file that the shop was started with, production.ini by default; URL is its address on this host.
    """
    if seed is None:
        seed = random.SystemRandom().randrange(1_000_000)
    shop_ini = DEFAULT_INI if target is None or "://" in target else target
    try:
        traffic = Traffic(url_of(target), seconds=seconds, rate=rate, clients=clients, seed=seed, hang=hang)
        started_s = time.monotonic()
        traffic.probe()
    except AgentError as error:
        hint = f"; start it: gunicorn_paster {shop_ini}" if str(error).endswith(NO_SERVER) else ""
        raise click.ClickException(f"{error}{hint}") from None
    interrupted = _run(traffic)
    counts = traffic.counts()
    if as_json:
        click.echo(json.dumps(_as_json(traffic.url, seed, time.monotonic() - started_s, counts), indent=2))
    else:
        _print(counts, shop_ini)
    if traffic.gave_up:
        raise click.ClickException(f"{traffic.url}/: the server no longer answers")
    if interrupted:
        raise SystemExit(130)  # what a shell expects of a program that Ctrl-C ended


def _run(traffic: Traffic) -> bool:
    """Send, with a progress bar on stderr where that is a terminal; true when Ctrl-C ended it early."""
    console = Console(stderr=True)
    columns = (TextColumn("Sending"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=traffic.planned + traffic.waiting)
        try:
            traffic.start()
            while not traffic.join(0.2):
                progress.update(task, completed=traffic.counts().total())
            progress.update(task, completed=traffic.counts().total())
            return False
        except KeyboardInterrupt:
            traffic.stop()
            traffic.join(_TIMEOUT_S[1])  # for the answers under way
            return True


def _as_json(url: str, seed: int, elapsed_s: float, counts: Counter[Key]) -> dict[str, object]:
    merged: Counter[tuple[str, str | None, int | None]] = Counter()
    for (_, method, route, status), count in counts.items():
        merged[method, route, status] += count
    rows = sorted(merged.items(), key=lambda row: (row[0][1] or "", row[0][0], row[0][2] or 0))
    return {
        "url": url,
        "seed": seed,
        "elapsed_s": round(elapsed_s, 3),
        "requests": counts.total(),
        "unanswered": sum(count for key, count in counts.items() if key[3] is None),
        "counts": [
            {"method": method, "route": route, "status": status, "count": count}
            for (method, route, status), count in rows
        ],
    }


def _print(counts: Counter[Key], shop_ini: str) -> None:
    console = Console(highlight=False)
    table = Table(title=f"{counts.total()} requests", title_justify="left")
    table.add_column("What")
    table.add_column("Request")
    table.add_column("Count", justify="right")
    table.add_column("Answers")
    for (kind, method, route), count, answers in _by_kind(counts):
        table.add_row(kind, f"{method} {route or '(no route)'}", str(count), answers)
    console.print(table)
    console.print(f"What the agent counted: paste-agent report {shop_ini}", soft_wrap=True, markup=False)


def _by_kind(counts: Counter[Key]) -> Iterator[tuple[tuple[str, str, str | None], int, str]]:
    """Kind, method and route with the count and the answers such as `200, 404 (3)`; most sent first."""
    groups: dict[tuple[str, str, str | None], Counter[int | None]] = {}
    for (kind, method, route, status), count in counts.items():
        groups.setdefault((kind, method, route), Counter())[status] += count
    for key, answers in sorted(groups.items(), key=lambda group: -group[1].total()):
        texts = [
            f"{status or 'no answer'} ({count})" if len(answers) > 1 else f"{status or 'no answer'}"
            for status, count in answers.most_common()
        ]
        yield key, answers.total(), ", ".join(texts)
