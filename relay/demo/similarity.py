"""Which wallets are alike: each is a vector over a market's tokens, each pair gets its cosine or Jaccard index.

Pure: the clock is an argument, and whatever looks random is drawn from a generator seeded by the
address, so the same wallets give the same result on every machine. No chain is asked; the balances
are made up, the arithmetic on them is not. It works step by step, so that its caller can tell how
far it is, and refuses to know of jobs and Redis.
"""

import heapq
import math
import re
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import mul
from random import Random
from typing import Any

MIN_WALLETS = 2
MAX_WALLETS = 500
MAX_ADDRESS_CHARACTERS = 100
MAX_TIMEOUT_MINUTES = 60.0
TOKENS = 9_000

_STYLES = 6
_PAIRS_PER_STEP = 40
_TOP_PAIRS = 10
_ADDRESSES_NAMED = 10
# Generating a vector takes about as long as comparing ten pairs; the bar should not run at two speeds.
_PAIRS_PER_VECTOR = 10
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_ADDRESS = re.compile(rf"[{_BASE58}]{{32,44}}|0x[0-9a-fA-F]{{40}}")


class VectorType(StrEnum):
    """What a wallet is measured by."""

    CAPITAL = "capital"  # the value it holds of each token
    BEHAVIOR = "behavior"  # how often it trades each token
    BINARY = "binary"  # which tokens it holds at all


class RequestError(Exception):
    """What was asked for is no analysis; the text says what would be one."""


class AnalysisError(Exception):
    """The analysis has failed; the text is for whoever asked for it.

    Attributes:
        code: the same for a program.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One analysis as asked for."""

    wallets: tuple[str, ...]
    vector_type: VectorType = VectorType.CAPITAL
    failure_threshold: float = 0.0
    timeout_minutes: float = 10.0

    def as_json(self) -> dict[str, Any]:
        """The document that `parse_request` takes."""
        return {
            "walletAddresses": list(self.wallets),
            "vectorType": self.vector_type.value,
            "failureThreshold": self.failure_threshold,
            "timeoutMinutes": self.timeout_minutes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far an analysis is: `done` of `total` in this stage, `progress` of 100 over all."""

    stage: str  # what is counted: "wallets" get their vectors, then "pairs" are compared
    done: int
    total: int
    progress: int


def parse_request(document: object) -> Request:
    """The analysis that a JSON document asks for; a wallet named twice counts once.

    Whether the addresses are valid is not asked here: that is found, and may fail, in the analysis.

    Raises:
        RequestError: a field is missing, unknown, or out of its bounds.
    """
    if not isinstance(document, dict):
        raise RequestError("the body must be a JSON object with walletAddresses")
    fields = dict(document)
    wallets = fields.pop("walletAddresses", None)
    if not isinstance(wallets, list) or not all(
        isinstance(wallet, str) and 0 < len(wallet) <= MAX_ADDRESS_CHARACTERS for wallet in wallets
    ):
        raise RequestError(
            f"walletAddresses must be a list of strings of 1 to {MAX_ADDRESS_CHARACTERS} characters"
        )
    distinct = tuple(dict.fromkeys(wallets))
    if not MIN_WALLETS <= len(distinct) <= MAX_WALLETS:
        raise RequestError(
            f"walletAddresses must name {MIN_WALLETS} to {MAX_WALLETS} different wallets,"
            f" not {len(distinct)}"
        )
    vector_type = fields.pop("vectorType", VectorType.CAPITAL)
    if vector_type not in list(VectorType):
        names = ", ".join(f'"{each}"' for each in VectorType)
        raise RequestError(f"vectorType must be one of {names}")
    threshold = fields.pop("failureThreshold", 0.0)
    if not _is_number(threshold) or not 0 <= threshold <= 1:
        raise RequestError("failureThreshold must be a number from 0 to 1")
    timeout_minutes = fields.pop("timeoutMinutes", 10.0)
    if not _is_number(timeout_minutes) or not 0 < timeout_minutes <= MAX_TIMEOUT_MINUTES:
        raise RequestError(
            f"timeoutMinutes must be a number above 0, at most {MAX_TIMEOUT_MINUTES:g}"
        )
    if fields:
        raise RequestError(f"unknown field {min(fields)!r}: leave it out")
    return Request(
        wallets=distinct,
        vector_type=VectorType(vector_type),
        failure_threshold=float(threshold),
        timeout_minutes=float(timeout_minutes),
    )


def analyse(
    request: Request, *, clock: Callable[[], float], tokens: int = TOKENS
) -> Generator[Step, None, dict[str, Any]]:
    """Compare each wallet with each other one.

    Args:
        request: what to compare.
        clock: monotonic seconds.
        tokens: the size of the market, the length of every vector.

    Yields:
        how far it is, several times a second.

    Returns:
        the result as a JSON object. `matrix` is the upper triangle: row i holds the similarity of
        wallet i to the wallets i+1, i+2, …; the whole square of 500 wallets would be too large a message.

    Raises:
        AnalysisError: too many addresses are invalid, or the time is over.
    """
    started_at = clock()
    wallets, skipped = _valid_wallets(request)
    pairs_total = math.comb(len(wallets), 2)
    units_total = pairs_total + _PAIRS_PER_VECTOR * len(wallets)

    def step(stage: str, done: int, total: int, units: int) -> Step:
        if clock() - started_at > request.timeout_minutes * 60:
            raise AnalysisError(
                "timeout",
                f"not finished within {request.timeout_minutes:g} minutes:"
                " ask for fewer wallets or a longer timeoutMinutes",
            )
        return Step(stage=stage, done=done, total=total, progress=100 * units // units_total)

    vectors: list[array[float]] = []
    for wallet in wallets:
        vectors.append(_vector(wallet, request.vector_type, tokens))
        done = len(vectors)
        yield step("wallets", done, len(wallets), _PAIRS_PER_VECTOR * done)
    vectors_at = clock()

    compare = _jaccard if request.vector_type is VectorType.BINARY else _dot
    matrix: list[list[float]] = []
    pairs_done = 0
    units_before = _PAIRS_PER_VECTOR * len(wallets)
    for index, vector in enumerate(vectors):
        row: list[float] = []
        for other in vectors[index + 1 :]:
            row.append(compare(vector, other))
            pairs_done += 1
            if pairs_done % _PAIRS_PER_STEP == 0 or pairs_done == pairs_total:
                yield step("pairs", pairs_done, pairs_total, units_before + pairs_done)
        matrix.append(row)
    ended_at = clock()
    return {
        "vectorType": request.vector_type.value,
        "pairs": pairs_total,
        "topPairs": _top_pairs(wallets, matrix),
        "wallets": list(wallets),
        "skipped": list(skipped),
        "matrix": [[round(value, 3) for value in row] for row in matrix],
        "timing": {
            "vectorsMs": round((vectors_at - started_at) * 1000),
            "pairsMs": round((ended_at - vectors_at) * 1000),
        },
    }


def example_wallets(count: int, *, seed: str) -> tuple[str, ...]:
    """`count` made-up addresses in Solana's form, always the same for one seed."""
    random = Random(seed)
    return tuple("".join(random.choices(_BASE58, k=44)) for _ in range(count))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _valid_wallets(request: Request) -> tuple[tuple[str, ...], tuple[str, ...]]:
    valid = tuple(wallet for wallet in request.wallets if _ADDRESS.fullmatch(wallet))
    invalid = tuple(wallet for wallet in request.wallets if not _ADDRESS.fullmatch(wallet))
    share = len(invalid) / len(request.wallets)
    if share > request.failure_threshold or len(valid) < MIN_WALLETS:
        named = ", ".join(invalid[:_ADDRESSES_NAMED])
        more = len(invalid) - _ADDRESSES_NAMED
        raise AnalysisError(
            "invalid-addresses",
            f"{len(invalid)} of {len(request.wallets)} wallet addresses are invalid"
            f" ({share:.1%}, allowed {request.failure_threshold:.1%}): {named}"
            + (f" and {more} more" if more > 0 else ""),
        )
    return valid, invalid


def _vector(wallet: str, vector_type: VectorType, tokens: int) -> "array[float]":
    """The wallet's vector: ones and zeros, or scaled to length one, so that a cosine is a dot product."""
    is_binary = vector_type is VectorType.BINARY
    # Both look at one and the same portfolio: what is held at all, and what it is worth.
    random = Random(f"{VectorType.CAPITAL if is_binary else vector_type}:{wallet}")
    # Wallets of one style like the same tokens; without that all pairs would be equally unlike.
    style = Random(f"style:{random.randrange(_STYLES)}")
    market = Random("market")
    vector = array("d", bytes(8 * tokens))
    for token in range(tokens):
        price = math.exp(6 * market.random() - 3)
        liked = style.random() < 0.1
        if random.random() < (0.8 if liked else 0.05):
            amount = math.exp(3 * random.random()) * (4 if liked else 1)
            match vector_type:
                case VectorType.CAPITAL:
                    vector[token] = amount * price
                case VectorType.BEHAVIOR:
                    vector[token] = int(amount)
                case VectorType.BINARY:
                    vector[token] = 1.0
    if is_binary:
        return vector
    # A wallet that holds nothing is like no other: its vector stays zero.
    length = math.sqrt(_dot(vector, vector)) or 1.0
    return array("d", (value / length for value in vector))


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    # fsum rounds once, at the end: the result does not depend on the Python version, as sum() does.
    return math.fsum(map(mul, left, right))


def _jaccard(left: Sequence[float], right: Sequence[float]) -> float:
    """Of all that one of two wallets holds, the share that both hold."""
    both = _dot(left, right)
    either = sum(left) + sum(right) - both
    return both / either if either else 0.0


def _top_pairs(wallets: Sequence[str], matrix: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    pairs = (
        (similarity, wallets[first], wallets[first + 1 + offset])
        for first, row in enumerate(matrix)
        for offset, similarity in enumerate(row)
    )
    best = heapq.nlargest(_TOP_PAIRS, pairs, key=lambda pair: pair[0])
    return [{"a": a, "b": b, "similarity": round(similarity, 3)} for similarity, a, b in best]
