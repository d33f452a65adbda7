"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from relay.auth.revocations import Revocations
from relay.config import effective, parse
from relay.core.closing import CloseReason
from relay.core.stats import Stats
from relay.metrics import RelayCollector
from relay.settings import Config, Section
from relay.web.admin import Admin, Readiness
from relay.web.dashboard import Dashboard
from relay.web.operators import Operators
from relay.web.routes import admin_app
from tests import fakes

if TYPE_CHECKING:
    from relay.web.gateway import Gateway
    from relay.web.jobs import Jobs
    from relay.web.overview import Overview

ROOT = Path(__file__).parent.parent
CONFIG_TOML = (ROOT / "config.toml").read_text()


def test_config_toml_holds_the_defaults() -> None:
    assert parse(CONFIG_TOML, {}, read_file=str) == Config()


def test_config_toml_writes_every_setting_in_the_order_of_the_sections() -> None:
    lines = [re.sub(r"^# (mode = )", r"\1", line) for line in CONFIG_TOML.splitlines()]

    written = [line for line in lines if re.match(r"[a-z_]+ = |\[", line)]

    assert written == [line for line in effective(Config()).splitlines() if line]


def test_config_toml_does_not_set_auth_mode_so_that_a_copy_is_not_open_by_accident() -> None:
    assert "mode" not in parse(CONFIG_TOML, {}, read_file=str).auth.model_fields_set


@pytest.mark.parametrize("block", re.split(r"\n\n+", CONFIG_TOML)[1:])
def test_config_toml_explains_each_setting(block: str) -> None:
    lines = [line for line in block.strip().splitlines() if not line.startswith("[")]

    assert not lines or lines[0].startswith("# ")


def bounds() -> list[tuple[str, str, float]]:
    """Section, key and bound of every setting that has one."""
    return [
        (section, key, limit)
        for section, model in Config()
        if isinstance(model, Section)
        for key, field in type(model).model_fields.items()
        for bound in field.metadata
        for limit in (getattr(bound, name, None) for name in ("ge", "gt", "le"))
        if limit is not None
    ]


@pytest.mark.parametrize(("section", "key", "bound"), bounds())
def test_config_toml_tells_the_bounds(section: str, key: str, bound: float) -> None:
    table = CONFIG_TOML.partition(f"\n[{section}]\n")[2]
    (explanation, *_) = (block for block in table.split("\n\n") if f"\n{key} = " in block)

    assert re.search(rf"\b{bound}\b", explanation.partition(f"\n{key} = ")[0])


OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
PROBE = re.compile(r"/(?:livez|readyz|healthz|metrics)\b|^\s*metrics_path: *(\S+)", re.MULTILINE)


def rows(text: str, first_cell: str) -> list[list[str]]:
    """The cells of the table rows whose first cell fits, without the backticks of code."""
    lines = [line for line in text.splitlines() if re.match(rf"\| {first_cell} \|", line)]
    return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]


def registered_metrics() -> dict[str, str]:
    """The kind of each of the relay's own metrics by the name that a query uses."""
    collector = RelayCollector(Stats(), fakes.Relay().history, dict)
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name: metric.type
        for metric in collector.collect()
    }


def test_documented_metrics_are_the_registered_ones() -> None:
    documented = [(name, kind) for name, kind, *_ in rows(OPERATIONS, "`relay_[a-z_]+`")]

    assert len(documented) == len(registered_metrics())
    assert dict(documented) == registered_metrics()


def test_documented_close_codes_are_those_that_sessions_end_with() -> None:
    documented = rows(PROTOCOL, r"(?:[0-9]{4}|–) \| `[a-z0-9_]+`")

    assert [(code, label) for code, label, *_ in documented] == [
        ("–" if reason.code is None else str(reason.code), reason.label) for reason in CloseReason
    ]


def test_documents_advise_to_come_back_as_the_close_reasons_do() -> None:
    documented = rows(PROTOCOL, r"[0-9]{4} \| `[a-z0-9_]+`")

    advised = {label: advice.startswith("yes") for _, label, advice in documented}
    assert advised == {reason.label: reason.may_return for reason in CloseReason if reason.code}


async def served_paths() -> set[str]:
    """What the admin listener serves."""
    admin = Admin(lambda: Readiness(redis_up=True, draining=False), lambda _: (b"", ""))
    operators = Operators(cast("Gateway", None), Revocations(), lambda: 0)
    dashboard = Dashboard(cast("Overview", None), cast("Jobs", None))
    app = admin_app(admin, operators, dashboard, (), token="", loopback=True)
    return {resource.canonical for resource in app.router.resources()}


def shipped_files() -> list[Path]:
    files = (path for folder in ("deploy", "systemd") for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in files if path.is_file())


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.name)
async def test_probes_in_shipped_files_are_paths_that_are_served(path: Path) -> None:
    asked = {match[1] or match[0] for match in PROBE.finditer(path.read_text())}

    assert asked <= await served_paths()


async def test_what_the_admin_listener_serves_is_documented() -> None:
    documented = set(
        re.findall(
            r"`(?:GET |POST )?(/(?:[a-z]+z|metrics|admin/[a-z]+|dashboard/{name})?)`", OPERATIONS
        )
    )

    assert documented == await served_paths()
