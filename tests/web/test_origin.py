"""Which origins and hosts are let in, and whose word about the client is believed."""

from ipaddress import ip_network
from typing import Any

import pytest

from relay.web.origin import OriginPolicy, Refused, is_loopback

PROXY, STRANGER, UNIX = "10.0.0.1", "203.0.113.9", ""


def policy(**changed: Any) -> OriginPolicy:
    """That of a public listener behind a proxy."""
    defaults: dict[str, Any] = {
        "allowed_origins": (),
        "allowed_hosts": (),
        "trusted_proxies": (ip_network("10.0.0.0/24"),),
        "loopback": False,
    }
    return OriginPolicy(**(defaults | changed))


def refusal(by: OriginPolicy, peer: str = STRANGER, **headers: str) -> str | None:
    """Which header is refused, if any; `_` in a header's name is written as `-`."""
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    refused = by.judge(peer, found.get)
    return None if refused is None else refused.what


def test_no_origin_is_no_browser_and_let_in() -> None:
    assert refusal(policy(), host="relay.example") is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://relay.example", "relay.example"),
        ("https://relay.example", "relay.example"),
        ("https://relay.example", "relay.example:443"),
        ("http://relay.example:80", "relay.example"),
        ("http://relay.example:3001", "relay.example:3001"),
        ("HTTPS://Relay.Example", "relay.EXAMPLE"),
        ("http://[2001:db8::1]:3001", "[2001:DB8::1]:3001"),
    ],
)
def test_same_origin_is_let_in(origin: str, host: str) -> None:
    assert refusal(policy(), origin=origin, host=host) is None


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "relay.example"),
        ("", "relay.example"),
        ("https://evil.example", "relay.example"),
        ("https://relay.example.evil.example", "relay.example"),
        ("https://evilrelay.example", "relay.example"),
        ("https://relay.example@evil.example", "relay.example"),
        ("https://user@relay.example", "relay.example"),
        ("https://relay.example/", "relay.example"),
        ("https://relay.example?x", "relay.example"),
        ("https://relay.example#x", "relay.example"),
        ("https://relay.example:8443", "relay.example"),
        ("http://relay.example", "relay.example:443"),
        ("https://relay.example:99999", "relay.example"),
        ("https://relay.example:x", "relay.example"),
        ("https://relay.example, https://evil.example", "relay.example"),
        ("https://", "relay.example"),
        ("relay.example", "relay.example"),
        ("https://[::1", "[::1"),
        ("https://relay.example", ""),
        ("http://localhost:5173", "relay.example"),
    ],
)
def test_other_origins_are_refused(origin: str, host: str) -> None:
    assert refusal(policy(), origin=origin, host=host) == "origin"


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        ("https://app.example", True),
        ("https://APP.example:443", True),
        ("http://app.example", False),
        ("https://app.example:8443", False),
        ("https://sub.app.example", False),
        ("https://app.example.evil.example", False),
        ("https://app.example@evil.example", False),
        ("null", False),
    ],
)
def test_allowed_origin_is_one_scheme_host_and_port(origin: str, is_let_in: bool) -> None:
    allowing = policy(allowed_origins=("https://app.example",))

    assert (refusal(allowing, origin=origin, host="relay.example") is None) == is_let_in


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "junk"])
def test_star_lets_any_origin_in(origin: str) -> None:
    assert refusal(policy(allowed_origins=("*",)), origin=origin, host="relay.example") is None


def test_allowed_origins_do_not_shut_the_same_origin_out() -> None:
    allowing = policy(allowed_origins=("https://app.example",))

    assert refusal(allowing, origin="https://relay.example", host="relay.example") is None


def test_refusal_shows_what_was_compared() -> None:
    headers = {"origin": "https://evil.example", "host": "relay.example"}

    refused = policy().judge(STRANGER, headers.get)

    assert refused == Refused("origin", "https://evil.example", "relay.example")


@pytest.mark.parametrize(
    ("peer", "forwarded", "is_let_in"),
    [
        (PROXY, {"x_forwarded_host": "relay.example"}, True),
        (PROXY, {"x_forwarded_host": "relay.example", "x_forwarded_proto": "https"}, True),
        (PROXY, {"x_forwarded_host": "relay.example", "x_forwarded_proto": "HTTPS"}, True),
        (PROXY, {"x_forwarded_host": "relay.example", "x_forwarded_proto": "http"}, False),
        (PROXY, {"x_forwarded_host": "relay.example:8443"}, False),
        (PROXY, {"x_forwarded_host": "other.example"}, False),
        (PROXY, {}, False),
        (STRANGER, {"x_forwarded_host": "relay.example"}, False),
        ("10.0.1.1", {"x_forwarded_host": "relay.example"}, False),
        ("not an address", {"x_forwarded_host": "relay.example"}, False),
        (UNIX, {"x_forwarded_host": "relay.example"}, False),
    ],
)
def test_forwarded_host_counts_only_from_a_trusted_proxy(
    peer: str, forwarded: dict[str, str], is_let_in: bool
) -> None:
    asked = {"origin": "https://relay.example", "host": "127.0.0.1:3001", **forwarded}

    assert (refusal(policy(), peer, **asked) is None) == is_let_in


def test_whoever_reaches_a_unix_socket_is_a_trusted_proxy() -> None:
    on_unix = policy(loopback=True, unix=True)
    asked = {"origin": "https://relay.example", "x_forwarded_host": "relay.example"}

    assert refusal(on_unix, UNIX, host="anything", **asked) is None


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        ("http://localhost:5173", True),
        ("http://app.localhost:5173", True),
        ("http://127.0.0.1:8000", True),
        ("http://127.8.8.8", True),
        ("https://[::1]:8443", True),
        ("http://localhost.evil.example", False),
        ("http://evillocalhost", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost@evil.example", False),
        ("http://0.0.0.0:3001", False),
        ("http://192.168.1.2", False),
        ("null", False),
    ],
)
def test_loopback_listener_accepts_loopback_origins_of_any_port(
    origin: str, is_let_in: bool
) -> None:
    asked = {"origin": origin, "host": "localhost:3001"}

    assert (refusal(policy(loopback=True), "127.0.0.1", **asked) is None) == is_let_in


def test_allowed_origins_take_the_place_of_loopback_origins() -> None:
    allowing = policy(loopback=True, allowed_origins=("https://app.example",))

    assert refusal(allowing, origin="http://localhost:5173", host="localhost:3001") == "origin"


@pytest.mark.parametrize(
    ("host", "is_let_in"),
    [
        ("localhost", True),
        ("localhost:3001", True),
        ("LOCALHOST.:3001", True),
        ("relay.localhost:3001", True),
        ("127.0.0.1:3001", True),
        ("[::1]:3001", True),
        ("named.example", True),
        ("Named.Example:3001", True),
        ("evil.example", False),
        ("evil.example:3001", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("named.example.evil.example", False),
        ("192.168.1.2:3001", False),
        ("", False),
        ("localhost:port", False),
        ("[::1", False),
    ],
)
def test_loopback_listener_refuses_a_host_that_dns_rebinding_could_have_named(
    host: str, is_let_in: bool
) -> None:
    guarded = policy(loopback=True, allowed_hosts=("named.example",), allowed_origins=("*",))

    assert refusal(guarded, "127.0.0.1", host=host) == (None if is_let_in else "host")


def test_absent_host_is_refused_on_loopback() -> None:
    assert refusal(policy(loopback=True), "127.0.0.1") == "host"


@pytest.mark.parametrize(
    "where",
    [
        {"loopback": False},
        {"loopback": True, "check_host": False},
        {"loopback": True, "unix": True},
    ],
)
def test_host_is_not_looked_at_elsewhere(where: dict[str, bool]) -> None:
    assert refusal(policy(**where), host="evil.example") is None


@pytest.mark.parametrize(("peer", "refused"), [(PROXY, None), (STRANGER, "host")])
def test_trusted_proxy_may_name_any_host(peer: str, refused: str | None) -> None:
    asked = {"host": "relay.internal", "x_forwarded_host": "relay.example"}

    assert refusal(policy(loopback=True), peer, **asked) == refused


@pytest.mark.parametrize(
    ("host", "port", "is_let_in"),
    [
        # What a browser that was led to this port cannot but say, whatever its page adds.
        ("evil.example:3001", 3001, False),
        ("EVIL.example.:3001", 3001, False),
        ("192.0.2.7:3001", 3001, False),
        ("evil.example", 80, False),
        # Who asked a proxy named the proxy's port; or the proxy names us by its own configuration.
        ("relay.example", 3001, True),
        ("relay.example:8443", 3001, True),
        ("127.0.0.1:3001", 3001, True),
        ("localhost:3001", 3001, True),
        ("named.example:3001", 3001, True),
        ("upstream", 3001, True),
    ],
)
def test_page_that_dns_rebinding_led_here_is_no_proxy(
    host: str, port: int, is_let_in: bool
) -> None:
    guarded = policy(
        loopback=True,
        port=port,
        allowed_hosts=("named.example",),
        trusted_proxies=(ip_network("127.0.0.1/32"),),
    )

    refused = refusal(guarded, "127.0.0.1", host=host, x_forwarded_host="localhost")

    assert refused == (None if is_let_in else "host")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "address"),
    [
        (STRANGER, [], STRANGER),
        (STRANGER, ["198.51.100.7"], STRANGER),
        (PROXY, [], PROXY),
        (PROXY, ["198.51.100.7"], "198.51.100.7"),
        (PROXY, ["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
        (PROXY, ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
        (PROXY, ["198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        (PROXY, ["198.51.100.7, 10.0.0.2 ,10.0.0.3"], "198.51.100.7"),
        (PROXY, ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (PROXY, ["2001:DB8::0007"], "2001:db8::7"),
        (PROXY, ["198.51.100.7, unknown"], PROXY),
        (PROXY, [""], PROXY),
    ],
)
def test_client_address_is_the_first_that_no_trusted_proxy_has(
    peer: str, forwarded_for: list[str], address: str
) -> None:
    assert policy().client_address(peer, forwarded_for) == address


def test_client_behind_a_unix_socket_has_the_address_its_proxy_tells() -> None:
    on_unix = policy(loopback=True, unix=True)

    assert on_unix.client_address(UNIX, ["1.1.1.1, 198.51.100.7"]) == "198.51.100.7"
    assert on_unix.client_address(UNIX, []) == UNIX


def test_scope_of_a_link_local_peer_is_not_compared() -> None:
    linked = policy(trusted_proxies=(ip_network("fe80::/10"),))

    assert linked.trusts("fe80::1%eth0")


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("localhost", True),
        ("Localhost.", True),
        ("a.b.localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("[::1]", True),
        ("::", False),
        ("0.0.0.0", False),
        ("128.0.0.1", False),
        ("localhost.example", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_loopback_names(host: str, is_one: bool) -> None:
    assert is_loopback(host) == is_one
