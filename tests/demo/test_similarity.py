"""The demo's analysis: deterministic, bounded, and failing with a reason."""

import math
from collections.abc import Generator
from typing import Any

import orjson
import pytest

from relay.demo import similarity
from relay.demo.similarity import (
    MAX_WALLETS,
    AnalysisError,
    Request,
    RequestError,
    Step,
    VectorType,
    analyse,
    example_wallets,
    parse_request,
)

WALLETS = example_wallets(12, seed="tests")
FEW_TOKENS = 50


def finish(steps: Generator[Step, None, dict[str, Any]]) -> tuple[list[Step], dict[str, Any]]:
    taken = []
    while True:
        try:
            taken.append(next(steps))
        except StopIteration as end:
            return taken, end.value


def standing_clock() -> float:
    return 0.0


def analysis_of(request: Request) -> tuple[list[Step], dict[str, Any]]:
    return finish(analyse(request, clock=standing_clock, tokens=FEW_TOKENS))


def test_same_wallets_give_the_same_result() -> None:
    request = Request(wallets=WALLETS)

    _, first = analysis_of(request)
    _, second = analysis_of(request)

    assert first == second


def test_a_wallets_vector_depends_on_its_address_alone() -> None:
    _, of_all = analysis_of(Request(wallets=WALLETS))
    _, of_two = analysis_of(Request(wallets=(WALLETS[0], WALLETS[3])))

    # The row of wallet 0 begins with wallet 1.
    assert of_two["matrix"][0][0] == of_all["matrix"][0][2]


def test_capital_and_behavior_differ() -> None:
    _, capital = analysis_of(Request(wallets=WALLETS, vector_type=VectorType.CAPITAL))
    _, behavior = analysis_of(Request(wallets=WALLETS, vector_type=VectorType.BEHAVIOR))

    assert capital["matrix"] != behavior["matrix"]


@pytest.mark.parametrize(
    ("left", "right", "share"),
    [
        ([1, 1, 0, 0], [0, 1, 1, 0], 1 / 3),
        ([1, 0], [0, 1], 0),
        ([1, 0], [1, 0], 1),
        ([0, 0], [0, 0], 0),
    ],
)
def test_jaccard_index_is_the_share_of_what_both_hold(
    left: list[float], right: list[float], share: float
) -> None:
    assert similarity._jaccard(left, right) == share


def test_binary_is_another_measure_than_the_cosines() -> None:
    _, capital = analysis_of(Request(wallets=WALLETS))
    _, binary = analysis_of(Request(wallets=WALLETS, vector_type=VectorType.BINARY))

    assert binary["matrix"] != capital["matrix"]
    assert binary["vectorType"] == "binary"


def test_matrix_is_the_upper_triangle_of_cosines() -> None:
    _, result = analysis_of(Request(wallets=WALLETS))

    assert [len(row) for row in result["matrix"]] == list(range(len(WALLETS) - 1, -1, -1))
    assert all(0 <= value <= 1 for row in result["matrix"] for value in row)
    assert result["pairs"] == math.comb(len(WALLETS), 2)


def test_top_pairs_are_the_most_alike_in_order() -> None:
    _, result = analysis_of(Request(wallets=WALLETS))

    shown = [pair["similarity"] for pair in result["topPairs"]]
    everything = sorted((value for row in result["matrix"] for value in row), reverse=True)
    assert shown == everything[: len(shown)]
    best = result["topPairs"][0]
    first, second = sorted((WALLETS.index(best["a"]), WALLETS.index(best["b"])))
    assert result["matrix"][first][second - first - 1] == best["similarity"]


def test_progress_rises_to_a_hundred_and_each_stage_to_its_total() -> None:
    steps, _ = analysis_of(Request(wallets=example_wallets(40, seed="progress")))

    progress = [step.progress for step in steps]
    assert progress == sorted(progress)
    assert progress[-1] == 100
    assert [step.done for step in steps if step.stage == "wallets"] == list(range(1, 41))
    assert steps[-1] == Step(stage="pairs", done=780, total=780, progress=100)
    assert len([step for step in steps if step.stage == "pairs"]) >= 10


@pytest.mark.parametrize(
    "address", ["0OIl" * 10, "1" * 31, "1" * 45, "0x" + "g" * 40, "0x" + "a" * 39, "ä" * 40]
)
def test_one_invalid_address_fails_the_analysis_by_default(address: str) -> None:
    request = Request(wallets=(*WALLETS, address))

    with pytest.raises(AnalysisError, match=f"1 of 13 .*{address}") as failure:
        next(analyse(request, clock=standing_clock))

    assert failure.value.code == "invalid-addresses"


def test_invalid_addresses_up_to_the_threshold_are_left_out() -> None:
    request = Request(wallets=(*WALLETS[:9], "not-a-wallet"), failure_threshold=0.1)

    _, result = analysis_of(request)

    assert result["skipped"] == ["not-a-wallet"]
    assert result["wallets"] == list(WALLETS[:9])


def test_fewer_than_two_valid_wallets_fail_whatever_the_threshold() -> None:
    request = Request(wallets=(WALLETS[0], "not-a-wallet"), failure_threshold=1.0)

    with pytest.raises(AnalysisError, match="1 of 2"):
        next(analyse(request, clock=standing_clock))


def test_long_list_of_invalid_addresses_is_cut() -> None:
    request = Request(wallets=(*WALLETS, *(f"bad-{n}" for n in range(25))))

    with pytest.raises(AnalysisError, match=r"bad-9 and 15 more$"):
        next(analyse(request, clock=standing_clock))


def test_ethereum_addresses_are_valid() -> None:
    _, result = analysis_of(Request(wallets=("0x" + "aB" * 20, "0x" + "12" * 20)))

    assert result["skipped"] == []


def test_analysis_ends_when_its_time_is_over() -> None:
    ticks = iter(range(0, 10_000, 10))
    request = Request(wallets=WALLETS, timeout_minutes=0.5)
    steps = analyse(request, clock=lambda: next(ticks), tokens=FEW_TOKENS)

    with pytest.raises(AnalysisError, match=r"0\.5 minutes") as failure:
        finish(steps)

    assert failure.value.code == "timeout"


def test_result_of_the_most_wallets_stays_below_the_default_payload_limit() -> None:
    request = Request(wallets=example_wallets(MAX_WALLETS, seed="most"))

    _, result = finish(analyse(request, clock=standing_clock, tokens=1))

    assert len(orjson.dumps(result)) < 1_000_000


def test_request_survives_the_way_through_json() -> None:
    request = Request(
        wallets=WALLETS,
        vector_type=VectorType.BEHAVIOR,
        failure_threshold=0.25,
        timeout_minutes=1.5,
    )

    assert parse_request(orjson.loads(orjson.dumps(request.as_json()))) == request


def test_wallet_named_twice_counts_once() -> None:
    request = parse_request({"walletAddresses": ["a", "b", "a"]})

    assert request == Request(wallets=("a", "b"))


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"walletAddresses": None}, "walletAddresses"),
        ({"walletAddresses": "abc"}, "walletAddresses"),
        ({"walletAddresses": ["a", 1]}, "walletAddresses"),
        ({"walletAddresses": ["a", ""]}, "walletAddresses"),
        ({"walletAddresses": ["a", "b" * 101]}, "walletAddresses"),
        ({"walletAddresses": ["a", "a"]}, "2 to 500 different wallets, not 1"),
        ({"walletAddresses": [str(n) for n in range(501)]}, "not 501"),
        ({"vectorType": "size"}, "vectorType"),
        ({"vectorType": ["capital"]}, "vectorType"),
        ({"failureThreshold": 1.01}, "failureThreshold"),
        ({"failureThreshold": -0.1}, "failureThreshold"),
        ({"failureThreshold": "0"}, "failureThreshold"),
        ({"failureThreshold": True}, "failureThreshold"),
        ({"timeoutMinutes": 0}, "timeoutMinutes"),
        ({"timeoutMinutes": 61}, "timeoutMinutes"),
        ({"timeoutMinutes": None}, "timeoutMinutes"),
        ({"wallets": []}, "'wallets'"),
    ],
)
def test_faulty_field_is_named(fields: dict[str, object], at_fault: str) -> None:
    document = {"walletAddresses": ["a", "b"], **fields}

    with pytest.raises(RequestError, match=at_fault):
        parse_request(document)


@pytest.mark.parametrize("document", [None, [], "text", 1])
def test_request_that_is_no_object_is_refused(document: object) -> None:
    with pytest.raises(RequestError, match="JSON object"):
        parse_request(document)
