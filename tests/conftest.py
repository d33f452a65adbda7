"""Real servers for tests; `RELAY_TEST_REDIS_SERVER=/path/to/redis-server` runs them on another one."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from relay.build import is_compiled
from relay.demo.embedded import EmbeddedRedis

pytest_plugins = ["tests.tools"]

# What a machine under load takes longer for is no bug in what is tested.
settings.register_profile("relay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relay")

# `make test-compiled` sets it: nothing would show that the Python beside the extensions was tested.
if os.environ.get("RELAY_TEST_COMPILED") and not is_compiled():
    raise pytest.UsageError("RELAY_TEST_COMPILED is set, and the relay found is not compiled")

_BINARY = os.environ.get("RELAY_TEST_REDIS_SERVER")


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[EmbeddedRedis]:
    """One server for the whole run; whoever needs it empty flushes it."""
    with EmbeddedRedis(binary=_BINARY) as server:
        yield server


@pytest.fixture
def own_redis() -> Iterator[EmbeddedRedis]:
    """A server for one test, to kill, freeze and restart."""
    with EmbeddedRedis(binary=_BINARY) as server:
        yield server
