"""Requests a second and p99 through gunicorn, with and without the agent, under a real load generator.

    python bench/server.py [--starts 6] [--rounds 6] [--seconds 2] [--worker-class sync] [--threads 1]

Needs wrk (Debian: `apt-get install wrk`). Three services of one worker each serve the same 13 bytes: one bare, one
behind the agent, and one bare again, whose distance from the first is the noise of the measurement. wrk loads them in
turns, in an order that is reversed each time; the ratios are taken round by round, so that what the machine does
meanwhile meets all of them. One process may be some percent faster than another of the same code, so all are started
anew several times. A figure is the median over all rounds of all starts.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

APPLICATION = """
def factory(global_conf):
    def application(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
        return [b"Hello, world!"]
    return application
"""
INI = """
[app:hello]
use = call:hello:factory

[filter:agent]
use = egg:paste_agent
service_name = bench
store = %(here)s/agent.sqlite
runtime_dir = {runtime_dir}

[pipeline:main]
pipeline = {pipeline}

[server:main]
use = egg:paste_agent
bind = 127.0.0.1:0
workers = 1
"""
RUN = "from paste_agent.server.gunicorn_paster import run; run()"
SUBJECTS = {"bare": "hello", "paste-agent": "agent hello", "bare again": "hello"}


class Service:
    """A service that runs."""

    def __init__(self, directory, runtime_dir, pipeline, options):
        os.mkdir(directory)
        with open(os.path.join(directory, "hello.py"), "w") as file:
            file.write(APPLICATION)
        with open(os.path.join(directory, "bench.ini"), "w") as file:
            file.write(INI.format(pipeline=pipeline, runtime_dir=runtime_dir))
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

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def load(url, seconds, connections):
    """Requests a second and p99 in ms, as wrk has them."""
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    if errors:
        sys.exit(f"{url}: {errors[0]}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", output).groups()
    return rate, float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def measure(services, rounds, seconds, connections):
    for service in services.values():
        load(service.url, 1, connections)  # warms up
    found = {name: [] for name in services}
    for number in range(rounds):
        names = list(services) if number % 2 else list(reversed(services))
        for name in names:
            found[name].append(load(services[name].url, seconds, connections))
    return found


def start_and_measure(options):
    """One start of all services, and the rounds of it."""
    arguments = ["--worker-class", options.worker_class, "--threads", str(options.threads), "--no-control-socket"]
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory(dir=memory) as runtime_dir:
        services = {
            name: Service(os.path.join(directory, name), runtime_dir, pipeline, arguments)
            for name, pipeline in SUBJECTS.items()
        }
        try:
            return measure(services, options.rounds, options.seconds, options.connections)
        finally:
            for service in services.values():
                service.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--worker-class", default="sync")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")
    found = {name: [] for name in SUBJECTS}
    for _ in range(options.starts):
        for name, rounds in start_and_measure(options).items():
            found[name].extend(rounds)
    print(f"{options.worker_class}, {options.threads} thread(s), {options.connections} connections")
    print("| subject | requests/s | of bare | p99, ms | of bare |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, rounds in found.items():
        rates = [rate / bare for (rate, _), (bare, _) in zip(rounds, found["bare"], strict=True)]
        p99s = [p99 / bare for (_, p99), (_, bare) in zip(rounds, found["bare"], strict=True)]
        print(
            f"| {name} | {statistics.median(rate for rate, _ in rounds):,.0f} | {statistics.median(rates):.3f} "
            f"| {statistics.median(p99 for _, p99 in rounds):.2f} | {statistics.median(p99s):.2f} |"
        )


if __name__ == "__main__":
    main()
