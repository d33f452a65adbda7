"""Every close reason has the code of the protocol, a text that fits its frame, and an advice."""

import pytest

from relay.core.closing import CloseReason
from relay.core.framing import Opcode, close_code, close_frame

# RFC 6455 §7.4.1 and the IANA registry.
KNOWN_CODES = {None, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 3008}
COME_BACK_AFTER = {None, 1011, 1012, 1013, 3008}


@pytest.mark.parametrize("reason", CloseReason)
def test_code_is_one_that_the_protocol_knows_and_says_whether_to_come_back(
    reason: CloseReason,
) -> None:
    assert reason.code in KNOWN_CODES
    assert reason.may_return == (reason.code in COME_BACK_AFTER)


@pytest.mark.parametrize("reason", CloseReason)
def test_text_fits_the_close_frame_whole(reason: CloseReason) -> None:
    frame = close_frame(reason.code or 1000, reason.text)

    assert frame[0] == 0x80 | Opcode.CLOSE
    assert close_code(frame[2:]) == (reason.code or 1000)
    assert frame[4:].decode() == reason.text


def test_labels_are_distinct_and_lower_case() -> None:
    labels = [reason.label for reason in CloseReason]

    assert len(set(labels)) == len(labels)
    assert CloseReason.SLOW_CONSUMER.label == "slow_consumer"
    assert [label.lower() for label in labels] == labels
