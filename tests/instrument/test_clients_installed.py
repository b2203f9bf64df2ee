"""Whatever is imported first, the application's clients or the agent: they are instrumented once."""

from __future__ import annotations

import pytest

from tests.recorders import run_script

SCRIPT = """
import sys
from paste_agent import instrument, lifecycle

faults = []
lifecycle.on_fault = lambda where, fault: faults.append((where, fault))
if sys.argv[1] == "agent":
    instrument.install()
import celery.signals, httpx, kombu, redis, redis.cluster, requests, urllib.request
from celery import Celery
from http.client import HTTPConnection
from pymemcache.client.base import Client
from urllib3.connectionpool import HTTPConnectionPool
if sys.argv[1] == "clients":
    instrument.install()
instrument.install()
methods = [
    HTTPConnection.putrequest, HTTPConnection.getresponse, HTTPConnectionPool._make_request,
    httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request,
    redis.Redis.execute_command, redis.client.Pipeline.execute, redis.cluster.RedisCluster.execute_command,
    Client.get, Client.get_multi, kombu.Producer.publish,
]
for method in methods:
    assert hasattr(method, "_paste_agent"), method
    assert not hasattr(method._paste_agent, "_paste_agent"), method
    assert method.__name__ == method._paste_agent.__name__
assert len(celery.signals.task_prerun.receivers) == 1
assert len(celery.signals.task_postrun.receivers) == 1
assert faults == [], faults
print("done")
"""


@pytest.mark.parametrize("first", ["agent", "clients"])
def test_they_are_instrumented_once(first: str) -> None:
    assert run_script(SCRIPT, first) == "done\n"


def test_what_is_disabled_is_left_alone() -> None:
    script = """
from paste_agent import instrument
instrument.install(["http_client", "redis"])
import requests, redis, kombu
from http.client import HTTPConnection
print([hasattr(one, "_paste_agent")
       for one in (HTTPConnection.send, redis.Redis.execute_command, kombu.Producer.publish)])
"""
    assert run_script(script) == "[False, False, True]\n"
