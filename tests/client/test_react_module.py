"""The module for React by itself: its size, its types, and what a server without a window makes of it."""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING

import pytest

from relay.web.assets import CLIENT
from tests.client.packages import esbuild, make_project, node, run, tsc

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.tool

MOST_BYTES = 3 * 1024


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    return make_project(folder, "react_widgets.mjs", "react_server.mjs", "example_react.tsx")


def test_hooks_and_components_are_small() -> None:
    # The client's own modules are there anyway.
    options = ["--bundle", "--minify", "--format=esm", "--external:react", "--external:./*.js"]

    size = len(gzip.compress(run(esbuild(), CLIENT / "react.js", *options)))

    print(f"react.js minified and gzipped: {size} bytes")  # noqa: T201
    assert size <= MOST_BYTES


def test_types_fit_how_the_hooks_are_used(project: Path) -> None:
    options = "--noEmit --strict --jsx react-jsx --target es2022 --lib es2022,dom --module nodenext"

    run(tsc(), *options.split(), "example_react.tsx", cwd=project)


def test_types_name_all_that_is_exported(project: Path) -> None:
    script = "console.log(JSON.stringify(Object.keys(await import('relay-client/react'))))"

    exported = json.loads(run(node(), "--input-type=module", "--eval", script, cwd=project))

    types = (CLIENT / "react.d.ts").read_text()
    assert sorted(exported) == sorted(re.findall(r"export function (\w+)", types))


def test_module_says_first_that_it_is_for_the_browser() -> None:
    assert (CLIENT / "react.js").read_text().startswith('"use client";\n')


def test_components_are_rendered_without_a_window_and_without_style(project: Path) -> None:
    html = run(node(), "react_server.mjs", cwd=project).decode()

    assert html.count('role="status"') == 7
    assert html.count('role="alert"') == 3
    assert '<progress max="100" aria-label="Similarity" aria-valuetext="Waiting">' in html
    assert "style=" not in html
