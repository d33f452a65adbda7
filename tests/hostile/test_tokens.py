"""Token confusion: tokens that ask to be believed for the wrong reason, through every carrier.

The relay's key is a public RSA key, so that its bytes are known to everybody; what it believes are
tokens signed with the private one, for its audience, by its issuer, and nothing else.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.hostile.conftest import request
from tests.web.conftest import PATH, command, upgrade

if TYPE_CHECKING:
    from tests.hostile.conftest import Target

KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
_FOLDER = mkdtemp(prefix="relay-hostile-")
atexit.register(rmtree, _FOLDER)
_PEM_FILE = Path(_FOLDER) / "key.pem"
_PEM_FILE.write_bytes(PEM)
NOW = int(time.time())
CLAIMS: dict[str, Any] = {
    "sub": "mallory",
    "aud": "relay",
    "iss": "https://issuer.example",
    "exp": NOW + 3600,
    "jobs": ["*"],
    "queues": ["*"],
}
SETTINGS = {
    "auth": {
        "mode": "jwt",
        "jwt_public_key_file": str(_PEM_FILE),
        "audience": "relay",
        "issuer": "https://issuer.example",
        "cookie": "relay_token",
    },
    "limits": {"handshake_timeout_seconds": 1},
    "log": {"level": "debug"},
}


def part(document: object) -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def assembled(header: object, claims: object, signature: bytes = b"") -> str:
    """A token as no library would make it."""
    return f"{part(header)}.{part(claims)}.{part(signature)}"


def signed(key: Any = KEY, *, alg: str = "RS256", header: Any = None, **claims: object) -> str:
    """A token of ours with other claims; None leaves one out."""
    payload = {name: value for name, value in (CLAIMS | claims).items() if value is not None}
    return jwt.encode(payload, key, alg, headers=header)


def keyed_hash(secret: bytes, header: dict[str, Any] | None = None, alg: str = "HS256") -> str:
    """A token whose HMAC is keyed with what is public."""
    token = assembled({"alg": alg, "typ": "JWT"} | (header or {}), CLAIMS)
    signing_input = token.rpartition(".")[0]
    digest = hmac.new(secret, signing_input.encode(), hashlib.sha256).digest()
    return f"{signing_input}.{part(digest)}"


GOOD = signed()
BYSTANDER_HEADERS = {"Authorization": f"Bearer {signed(sub='bystander')}"}
_HEAD, _CLAIMS, _SIGNATURE = GOOD.split(".")

FORGED = {
    "no algorithm": assembled({"alg": "none"}, CLAIMS),
    "no algorithm, in capitals": assembled({"alg": "NONE"}, CLAIMS),
    "no algorithm, in mixed case": assembled({"alg": "nOnE"}, CLAIMS, b"x"),
    "no algorithm, good signature": f"{part({'alg': 'none'})}.{_CLAIMS}.{_SIGNATURE}",
    "algorithm missing": assembled({"typ": "JWT"}, CLAIMS),
    "algorithm null": assembled({"alg": None}, CLAIMS),
    "algorithm a list": assembled({"alg": ["RS256"]}, CLAIMS),
    "public key as HMAC secret": keyed_hash(PEM),
    "public key as HMAC secret, stripped": keyed_hash(PEM.strip()),
    "public key as DER": keyed_hash(
        KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ),
    "empty HMAC secret": keyed_hash(b""),
    "another RSA key": signed(OTHER_KEY),
    "another kind of key": signed(EC_KEY, alg="ES256"),
    "signature cut off": f"{_HEAD}.{_CLAIMS}.",
    "signature left out": f"{_HEAD}.{_CLAIMS}",
    "signature of another token": f"{_HEAD}.{part(CLAIMS | {'sub': 'root'})}.{_SIGNATURE}",
    "signature of zeros": f"{_HEAD}.{_CLAIMS}.{part(bytes(256))}",
    "key id that climbs": keyed_hash(b"", {"kid": "../../../../../../dev/null"}),
    "key id of SQL": keyed_hash(b"k", {"kid": "x' UNION SELECT 'k"}),
    "key id of a command": keyed_hash(b"k", {"kid": "|/bin/echo k"}),
    "key id that is an object": keyed_hash(b"k", {"kid": {"$ne": None}}),
    "key id of 5 KiB": keyed_hash(b"k", {"kid": "k" * 5000}),
    "key in the token": signed(
        OTHER_KEY,
        header={"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_KEY.public_key()))},
    ),
    "key at a URL": signed(OTHER_KEY, header={"jku": "http://127.0.0.1:9/keys"}),
    "certificate at a URL": signed(OTHER_KEY, header={"x5u": "http://127.0.0.1:9/cert"}),
    "certificate in the token": signed(OTHER_KEY, header={"x5c": ["AAAA"]}),
    "critical extension": signed(header={"crit": ["exp"], "exp": 0}),
    "unencoded payload": signed(header={"b64": False, "crit": ["b64"]}),
    "expired": signed(exp=NOW - 3600),
    "expired long ago": signed(exp=0),
    "without an end": signed(exp=None),
    "end in text": signed(exp=str(NOW + 3600)),
    "end without end": signed(exp=1e300),
    "end that is true": signed(exp=True),
    "not valid yet": signed(nbf=NOW + 3600),
    "made in the future": signed(iat=NOW + 3600),
    "for another audience": signed(aud="billing"),
    "for no audience": signed(aud=None),
    "for an audience that ours is part of": signed(aud="relay.evil.example"),
    "by another issuer": signed(iss="https://issuer.example.evil.example"),
    "by nobody": signed(iss=None),
    "subject that is an object": signed(sub={"admin": True}),
    "jobs that are text": signed(jobs="*"),
    "jobs that are an object": signed(jobs={"*": True}),
    "jobs of all types": signed(jobs=["a", 1, None]),
    "more globs than anybody needs": signed(jobs=["a"] * 1001),
    "a glob without end": signed(jobs=["a" * 4000 + "*"]),
    "claims that are a list": assembled({"alg": "RS256"}, ["*"], b"x"),
    "encrypted": "a.b.c.d.e",
    "only dots": "..",
    "not base64": "%.%.%",
    "spaces within": GOOD.replace(".", " ."),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED)
async def test_forged_token_opens_nothing(target: Target, token: str) -> None:
    """A client brings a token that a careless verifier believes, through each carrier there is."""
    authorization = f"Authorization: Bearer {token}"
    tokenless = await target.websocket()

    answers = [
        await target.ask(upgrade(Authorization=f"Bearer {token}")),
        await target.ask(upgrade(Cookie=f"relay_token={token}")),
        await target.ask(request("/jobs/x", authorization)),
        await target.ask(request("/jobs/x/events", authorization)),
        await target.ask(request("/events?queues=q", f"Cookie: relay_token={token}")),
    ]
    await tokenless.send(command("authenticate", {"token": token}))
    refused = (await tokenless.until_event("error"))["data"]
    await tokenless.send(command("subscribe-to-queue", {"queueName": "q"}))
    still = (await tokenless.until_event("error"))["data"]

    assert {answer.status for answer in answers} == {401}
    assert (refused["code"], still["code"]) == ("unauthorized", "unauthorized")
    log = target.daemon.log_text() + target.daemon.error_text()
    assert len(token) < 10 or token not in log
    assert not any(token.encode() in answer.body for answer in answers if len(token) > 10)


async def test_token_of_any_size_is_refused_unread(target: Target) -> None:
    """A client sends a token so large that only to decode it costs something."""
    client = await target.websocket()

    await client.send(command("authenticate", {"token": signed(more="a" * 40_000)}))

    assert (await client.until_event("error"))["data"]["code"] == "unauthorized"


async def test_good_token_opens_what_forged_ones_do_not(target: Target) -> None:
    """No attack: were nothing believed at all, the tests above would prove nothing."""
    answers = [
        await target.ask(upgrade(Authorization=f"Bearer {GOOD}")),
        await target.ask(upgrade(Cookie=f"relay_token={GOOD}")),
        await target.ask(upgrade(Sec_WebSocket_Protocol=f"bearer, {GOOD}")),
        await target.ask(request("/jobs/x", f"Authorization: Bearer {GOOD}")),
    ]

    assert [answer.status for answer in answers] == [101, 101, 101, 404]


@pytest.mark.parametrize(
    "data",
    [
        upgrade(f"{PATH}?token={GOOD}"),
        upgrade(Cookie=f"token={GOOD}; relay_token2={GOOD}"),
        upgrade(Sec_WebSocket_Protocol=f"token, {GOOD}"),
        upgrade(X_Access_Token=GOOD),
        upgrade(Authorization=f"Basic {GOOD}"),
        upgrade(X_Relay_Claims=part(CLAIMS)),
    ],
    ids=["query", "other cookies", "other subprotocol", "other header", "Basic", "proxy's header"],
)
async def test_good_token_in_the_wrong_place_is_none(target: Target, data: bytes) -> None:
    """A client (or a page, by a link with ?token=) brings a good token by a way that nobody opened."""
    client = await target.raw()
    await client.send(data)
    assert (await client.answer()).status == 101

    await client.send(command("subscribe-to-queue", {"queueName": "q"}))

    assert (await client.until_event("error"))["data"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    "data",
    [
        upgrade(Authorization=f"Bearer {GOOD}", Cookie=f"relay_token={signed(sub='victim')}"),
        upgrade(Authorization=f"Bearer {GOOD}", Sec_WebSocket_Protocol="bearer, other"),
        upgrade(Cookie=f"relay_token={GOOD}; relay_token={signed(sub='victim')}"),
        upgrade(Authorization=f"Bearer {GOOD}\r\nAuthorization: Bearer {signed(sub='victim')}"),
    ],
    ids=["header and cookie", "header and subprotocol", "two cookies", "two headers"],
)
async def test_two_tokens_that_differ_are_refused(target: Target, data: bytes) -> None:
    """Somebody slips a second token into a victim's request, to be one of them here and the other there."""
    assert (await target.ask(data)).status == 401


async def test_client_that_never_authenticates_is_closed(target: Target) -> None:
    """A client without a token keeps its connection open all the same."""
    client = await target.websocket()

    await client.send(command("ping", 1))

    assert await client.close_code() == 3000


async def test_token_of_somebody_else_takes_no_connection_over(target: Target) -> None:
    """A client authenticates anew as somebody else on a connection whose subscriptions are the first one's."""
    client = await target.websocket()
    await client.send(command("authenticate", {"token": GOOD}))
    await client.until_event("authenticated")

    await client.send(command("authenticate", {"token": signed(sub="victim")}))

    assert (await client.until_event("error"))["data"]["code"] == "unauthorized"


BOMBS = {
    "stars and letters": ["a*" * 30 + "b"],
    "stars alone": ["*" * 3000 + "b"],
    "question marks and stars": ["?*" * 100 + "b"],
    "many of them": ["*".join("a" * 10) + "b" + str(number) for number in range(80)],
    "words between stars": ["*aaaaaaaa" * 20 + "*b"],
}


@pytest.mark.parametrize("globs", BOMBS.values(), ids=BOMBS)
async def test_glob_bomb_of_a_good_token_matches_in_no_time(
    target: Target, globs: list[str]
) -> None:
    """An issuer lets its users name globs, and one names some that send a backtracking matcher round for years."""
    client = await target.websocket()
    token = signed(jobs=globs, queues=None)
    ids = [f"{'a' * (200 + number % 50)}{number}c" for number in range(200)]

    await client.send(command("authenticate", {"token": token}))
    answer = await client.until_event("authenticated")
    began_at = time.monotonic()
    await client.send(command("subscribe-to-jobs", {"jobIds": ids}))
    answer = await client.until_event("subscribed")

    assert {job["error"] for job in answer["data"]["jobs"].values()} == {"forbidden"}
    assert time.monotonic() - began_at < 5  # a hundred times what it takes
