"""CPU that an agent adds to a request of a framework: its route, a view, and what turns its result into a response.

    python bench/frameworks.py [--starts 3] [--rounds 15] [--requests 500] [--only NAME …] [--json]

As bench/page.py measures it: each subject in a process of its own, all of them on one core, in turns, started anew
several times. A view returns a dictionary, and the framework makes JSON of it. The floor is that of bench/overhead.py.
Peers are measured when they are installed: see bench/requirements.txt.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile

import overhead
import page

#: As in page.py: name, what it imports.
SUBJECTS = {
    "bare": "",
    "bare, once more": "",
    "floor": "",
    "paste-agent": "paste_agent",
    "OpenTelemetry": "opentelemetry.instrumentation.{}",
    "New Relic": "newrelic",
}


def pyramid():
    from pyramid.config import Configurator

    with Configurator() as config:
        config.add_route("item", "/items/{id}")
        config.add_view(lambda request: {"id": request.matchdict["id"]}, route_name="item", renderer="json")
        return config.make_wsgi_app()


def flask():
    import flask

    application = flask.Flask("bench")
    application.add_url_rule("/items/<id>", "item", lambda id: {"id": id})
    return application


FRAMEWORKS = {"pyramid": pyramid, "flask": flask}


def opentelemetry(framework):
    if framework == "pyramid":
        from opentelemetry.instrumentation.pyramid import PyramidInstrumentor as Instrumentor
    else:
        from opentelemetry.instrumentation.flask import FlaskInstrumentor as Instrumentor
    overhead.opentelemetry(1.0)  # sets its providers up; its middleware is the instrumentor's part here
    Instrumentor().instrument()
    return FRAMEWORKS[framework]()


def wrapped_by(subject, framework, directory):
    make = FRAMEWORKS[framework]
    if subject.startswith("bare"):
        return make()
    if subject == "floor":
        return overhead.Floor(make())
    if subject == "paste-agent":
        return overhead.paste_agent(directory, leads=False, make=make)
    if subject == "OpenTelemetry":
        return opentelemetry(framework)
    import newrelic.agent

    overhead.new_relic(directory)
    return newrelic.agent.WSGIApplicationWrapper(make())


def child(subject, framework):
    page.on_one_core()
    with tempfile.TemporaryDirectory(dir=overhead.MEMORY, ignore_cleanup_errors=True) as directory:
        environ = {**overhead.environ_of(False), "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
        page.answer(wrapped_by(subject, framework, directory), environ)


def measure(framework, starts, rounds, requests, only):
    """CPU time of a request by subject, ns: a figure a start. Subjects that are not installed are left out."""
    names = [name for name in SUBJECTS if name in ("bare", "floor") or not only or name in only]
    names = [name for name in names if overhead.installed(SUBJECTS[name].format(framework))]
    figures = {name: [] for name in names}
    for _ in range(starts):
        children = {name: page.Subject(__file__, name, framework) for name in names}
        for name, request_ns in page.in_turns(children, rounds, requests, warm_up=2000).items():
            figures[name].append(request_ns)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--only", nargs="+", choices=SUBJECTS, help="bare and floor are always measured")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    found = {}
    for framework in FRAMEWORKS:
        if overhead.installed(framework):
            found[framework] = measure(framework, options.starts, options.rounds, options.requests, options.only)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print("| framework | subject | CPU of a request, µs | of the bare one | added, µs | of the floor |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for framework, figures in found.items():
        for name, (bare_us, added_us, floors) in page.compared(figures).items():
            print(
                f"| {framework} | {name} | {bare_us + added_us:.1f} | {1 + added_us / bare_us:.2f} | {added_us:.1f} "
                f"| {floors:.1f} |"
            )


if __name__ == "__main__":
    main()
