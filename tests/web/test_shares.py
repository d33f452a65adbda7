"""Each address has its share of the connections, and loses first what it would not miss."""

import pytest

from relay.web.shares import Shares, share_of

ADDRESS = "198.51.100.7"


class Connection:
    """One that ends when it is asked to."""

    def __init__(self, shares: Shares, *, is_spare: bool = True) -> None:
        self.is_spare = is_spare
        self.is_there = True
        self._shares = shares
        shares.add(ADDRESS, self)

    def dismiss(self) -> None:
        self.is_there = False
        self._shares.remove(ADDRESS, self)


@pytest.mark.parametrize(
    ("address", "share"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("", ""),
    ],
)
def test_ipv6_network_of_one_client_is_one_address(address: str, share: str) -> None:
    assert share_of(address) == share


def test_connections_are_counted_until_they_are_gone() -> None:
    shares = Shares()
    shares.add("2001:db8::1")
    shares.add("2001:db8::2")

    assert shares.count("2001:db8::3") == 2
    shares.remove("2001:db8::1")
    shares.remove("2001:db8::2")
    assert shares.count("2001:db8::3") == 0


def test_address_that_is_exempt_has_none() -> None:
    shares = Shares()
    shares.is_exempt = lambda address: address == ADDRESS

    shares.add(ADDRESS)

    assert shares.count(ADDRESS) == 0
    shares.remove(ADDRESS)


def test_oldest_that_can_be_spared_goes_for_a_new_one() -> None:
    shares = Shares()
    busy = Connection(shares, is_spare=False)
    older, newer = Connection(shares), Connection(shares)
    asker = Connection(shares)

    shares.make_room(ADDRESS, 3, asker)

    stay = [one.is_there for one in (busy, older, newer, asker)]
    assert stay == [True, False, True, True]


def test_nothing_goes_while_there_is_room() -> None:
    shares = Shares()
    connections = [Connection(shares) for _ in range(3)]

    shares.make_room(ADDRESS, 3, connections[-1])

    assert all(one.is_there for one in connections)


def test_who_asks_stays_even_where_nobody_can_be_spared() -> None:
    shares = Shares()
    busy = [Connection(shares, is_spare=False) for _ in range(3)]
    asker = Connection(shares)

    shares.make_room(ADDRESS, 2, asker)

    assert asker.is_there
    assert all(one.is_there for one in busy)
    assert shares.count(ADDRESS) == 4
