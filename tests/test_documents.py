"""What the documents say is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from relay.config import effective, parse
from relay.settings import Config, Section

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
