"""The longest stalls of a worker's greenlets or threads, with and without the agent.

    python bench/stall.py [--worker-class gevent] [--rounds 5] [--seconds 10]

Needs wrk (Debian: `apt-get install wrk`). Three services of one worker each: one bare, one behind the agent, and one
bare again, whose distance from the first is the noise of the measurement. In each a ticker asks to sleep for 1 ms,
again and again, and notes by how much longer it slept: in a gevent or eventlet worker it is a greenlet, and what it
notes is how long the hub was stalled; in a gthread worker it is a thread, and what it notes is how long the
interpreter was held. Meanwhile wrk keeps 200 requests in flight (gthread: 25), each of which sleeps for a while. The
agent drains and exports all the time: its worker is the only one, hence the lead, and it reports every second to a
receiver in this process. The services are loaded in turns, in an order that is reversed each round.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from gunicorn.config import Config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from tests.receiver import Receiver  # noqa: E402  # the checkout's, which the line above makes importable

APPLICATION = """
import json
import random
import threading
import time


class Ticker:
    def __init__(self):
        self.delays_s = []
        self.wanted = True

    def run(self):
        while self.wanted:
            before = time.perf_counter()
            time.sleep(0.001)
            self.delays_s.append(time.perf_counter() - before - 0.001)


def factory(global_conf, mean_s):
    mean_s = float(mean_s)
    tickers = []

    def answer(path):
        if path == "/start":
            tickers.append(Ticker())
            threading.Thread(target=tickers[-1].run).start()  # a greenlet where the worker has patched it
        elif path == "/stop":
            tickers[-1].wanted = False
            return json.dumps(tickers.pop().delays_s).encode()
        else:
            time.sleep(random.uniform(0.5 * mean_s, 1.5 * mean_s))  # equal ones would arrive in bursts
        return b"Hello, world!"

    def application(environ, start_response):
        body = answer(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]

    return application
"""
INI = """
[app:sleepy]
use = call:sleepy:factory
mean_s = {mean_s}

[filter:agent]
use = egg:paste_agent
service_name = bench
store = %(here)s/agent.sqlite
runtime_dir = {runtime_dir}
endpoint = {endpoint}
report_interval_s = 1

[pipeline:main]
pipeline = {pipeline}

[server:main]
use = egg:paste_agent
bind = 127.0.0.1:0
workers = 1
"""
RUN = "from paste_agent.server.gunicorn_paster import run; run()"
SUBJECTS = {"bare": "sleepy", "paste-agent": "agent sleepy", "bare again": "sleepy"}
#: Connections, and mean duration of a request, s: about 1,300 and 1,000 requests a second.
GREENLETS = (200, 0.15)
THREADS = (25, 0.025)


class Service:
    """A service that runs."""

    def __init__(self, directory, runtime_dir, pipeline, endpoint, mean_s, options):
        os.mkdir(directory)
        with open(os.path.join(directory, "sleepy.py"), "w") as file:
            file.write(APPLICATION)
        with open(os.path.join(directory, "bench.ini"), "w") as file:
            file.write(INI.format(pipeline=pipeline, runtime_dir=runtime_dir, endpoint=endpoint, mean_s=mean_s))
        self.log = os.path.join(directory, "log")
        command = [sys.executable, "-c", RUN, *options, "bench.ini"]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=directory, stdout=log, stderr=subprocess.STDOUT)
        self.url = self._wait_for_url()

    def _wait_for_url(self):
        for _ in range(200):
            with open(self.log) as log:
                text = log.read()
            found = re.search(r"Listening at: (http://\S+)", text)
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        sys.exit(f"the service did not start:\n{text}")

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def one_round(service, seconds, connections):
    """Requests a second, and the p99.9 and maximum of the ticker's delays in ms, while wrk loads a service."""
    # A second before and after what is measured: opening connections and closing them is no stall of the service.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds + 2}s", service.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as wrk:
        time.sleep(1)
        service.get("/start")
        time.sleep(seconds)
        delays_ms = sorted(delay_s * 1000 for delay_s in json.loads(service.get("/stop")))
        output = wrk.communicate()[0]
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if errors:
        sys.exit(f"{service.url}: {errors[0]}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
    return rate, delays_ms[int(len(delays_ms) * 0.999)], delays_ms[-1]


def measure(options):
    """The rounds of each subject."""
    connections, mean_s = THREADS if options.worker_class == "gthread" else GREENLETS
    arguments = ["--worker-class", options.worker_class]
    if options.worker_class == "gthread":
        arguments += ["--threads", str(connections)]
    if "control_socket_disable" in Config().settings:
        arguments.append("--no-control-socket")  # it is shared by all servers of a user
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    found = {name: [] for name in SUBJECTS}
    with (
        Receiver() as receiver,
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryDirectory(dir=memory) as runtime_dir,
    ):
        services = {
            name: Service(os.path.join(directory, name), runtime_dir, pipeline, receiver.endpoint, mean_s, arguments)
            for name, pipeline in SUBJECTS.items()
        }
        try:
            for service in services.values():
                one_round(service, 2, connections)  # warms up
            for number in range(options.rounds):
                for name in services if number % 2 else reversed(services):
                    found[name].append(one_round(services[name], options.seconds, connections))
        finally:
            for service in services.values():
                service.stop()
        if not receiver.request_counts():
            sys.exit("the receiver got nothing: the agent did not export")
    print(f"{options.worker_class}, {connections} requests in flight, {options.rounds} rounds of {options.seconds} s")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--worker-class", default="gevent", choices=["gevent", "eventlet", "gthread"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    found = measure(options)
    print(
        "| subject | requests/s | p99.9, ms: median | p99.9, ms: maximum | longest, ms: median | longest, ms: maximum |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, rounds in found.items():
        rates, p999s, longest = zip(*rounds, strict=True)
        print(
            f"| {name} | {statistics.median(rates):,.0f} | {statistics.median(p999s):.1f} | {max(p999s):.1f} "
            f"| {statistics.median(longest):.1f} | {max(longest):.1f} |"
        )


if __name__ == "__main__":
    main()
