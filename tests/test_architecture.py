"""The rows of docs/design.md hold, the core stays pure, and each module can be imported alone."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "relay"
FILES = {
    "relay." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
PACKAGES = {
    ".".join(path.parent.relative_to(ROOT).parts): path
    for path in sorted(PACKAGE.rglob("__init__.py"))
}
PURE = sorted(name for name in FILES if name.startswith(("relay.core.", "relay.sources.")))

# What the pure part may import beside itself. None of these waits, or looks at a clock, the environment
# or a file; a name that is missing here has to be as harmless before it is added.
HARMLESS = {
    "abc", "base64", "binascii", "bisect", "codecs", "collections", "contextlib", "dataclasses",
    "datetime", "enum", "fnmatch", "functools", "hashlib", "heapq", "itertools", "json", "math",
    "operator", "orjson", "re", "string", "struct", "types", "typing",
}  # fmt: skip
# What harmless modules and builtins hold all the same that looks at the world.
IMPURE_CALLS = {
    "now", "utcnow", "today", "open", "print", "input", "breakpoint", "exec", "eval", "__import__",
}  # fmt: skip


class Import(NamedTuple):
    """`module` imports `imported`; `at_runtime` is False for what only a type checker sees."""

    module: str
    imported: str
    at_runtime: bool = True


def imports_of(module: str, tree: ast.AST, *, at_runtime: bool = True) -> Iterator[Import]:
    """Every import in a file, those inside functions too, by the module that is really meant."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, at_runtime) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: write the import out: from relay… import …"
            assert node.module is not None
            for alias in node.names:
                yield Import(module, resolved(node.module, alias.name), at_runtime)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for part in node.body:
                yield from imports_of(module, ast.Module([part], []), at_runtime=False)
            for part in node.orelse:
                yield from imports_of(module, ast.Module([part], []), at_runtime=at_runtime)
        else:
            yield from imports_of(module, node, at_runtime=at_runtime)


def resolved(package: str, name: str) -> str:
    """`from package import name` means a module of it, where it has one of that name."""
    return f"{package}.{name}" if f"{package}.{name}" in FILES else package


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


ALL_IMPORTS = [entry for name, path in FILES.items() for entry in imports_of(name, parsed(path))]
# The package itself holds the version and nothing else that is loaded with it: see the last test.
INNER_IMPORTS = [entry for entry in ALL_IMPORTS if entry.imported.startswith("relay.")]


@dataclass(frozen=True)
class Place:
    """Where a module stands: a higher row may import it, so may what stands to its right."""

    row: int
    column: int
    group: int
    pattern: str


def places() -> list[Place]:
    """The table under "Who knows whom". A name without a slash lies in the folder of the one before."""
    chapter = (
        (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("## Who knows whom")[1]
    )
    found = []
    for row, text in re.findall(r"^ {4}(\d) {3}(.+)$", chapter.split("\n## ")[0], re.MULTILINE):
        column = 0
        for group, names in enumerate(text.split("│")):
            folder = ""
            for name in names.split():
                head, slash, tail = name.rpartition("/")
                folder = head + slash if slash else folder
                pattern = "relay." + (folder + tail).replace("/", ".")
                found.append(Place(int(row), column, group, pattern))
                column += 1
    return found


TABLE = places()


def place_of(module: str) -> Place:
    named = [place for place in TABLE if place.pattern == module]
    matching = named or [place for place in TABLE if fnmatchcase(module, place.pattern)]
    assert len(matching) == 1, (
        f"{module} stands {len(matching)} times in the table of docs/design.md"
    )
    return matching[0]


def is_allowed(entry: Import) -> bool:
    here, there = place_of(entry.module), place_of(entry.imported)
    if here.row != there.row:
        return here.row > there.row
    return here.group == there.group and (
        here.column > there.column or here.pattern == there.pattern
    )


# --- the table -------------------------------------------------------------------------------------


def test_table_is_read_as_it_is_meant() -> None:
    assert place_of("relay.core.errors").row == place_of("relay.config").row == 0
    assert place_of("relay.core.closing").column < place_of("relay.core.errors").column
    assert place_of("relay.web.anything").group != place_of("relay.upstream.anything").group
    assert place_of("relay.sources.template").column < place_of("relay.sources.channel").column


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("relay.core.session", "relay.core.wire", True),
        ("relay.core.wire", "relay.core.session", False),
        ("relay.core.event", "relay.core.payload", True),
        ("relay.core.payload", "relay.core.event", False),
        ("relay.web.jobs", "relay.web.routes", True),
        ("relay.web.jobs", "relay.upstream.lookup", False),
        ("relay.web.jobs", "relay.metrics", False),
        ("relay.sources.channel", "relay.core.router", True),
        ("relay.core.router", "relay.sources.channel", False),
        ("relay.web.gatekeeper", "relay.auth.tokens", True),
        ("relay.auth.tokens", "relay.web.gatekeeper", False),
        ("relay.auth.tokens", "relay.core.grants", True),
        ("relay.auth.tokens", "relay.core.router", False),
        ("relay.core.grants", "relay.auth.tokens", False),
    ],
)
def test_rule_tells_what_may_be_imported(module: str, imported: str, allowed: bool) -> None:
    assert is_allowed(Import(module, imported)) is allowed


def test_every_module_has_one_place_in_the_table() -> None:
    assert {place_of(module).row for module in FILES} == set(range(7))


def test_every_name_in_the_table_is_a_module() -> None:
    stale = [
        place.pattern
        for place in TABLE
        if not any(fnmatchcase(module, place.pattern) for module in FILES)
    ]

    assert stale == [], "take these out of the table of docs/design.md"


def test_imports_point_to_a_lower_row_or_to_the_left() -> None:
    against = [
        f"{entry.module} imports {entry.imported}"
        for entry in INNER_IMPORTS
        if not is_allowed(entry)
    ]

    assert against == [], "move what both need to a lower row, or hand a callable down from app.py"


def test_imports_make_no_circle() -> None:
    graph = {
        module: {
            entry.imported for entry in INNER_IMPORTS if entry.at_runtime and entry.module == module
        }
        for module in FILES
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_edges_are_given_their_settings_and_never_see_the_configuration() -> None:
    against = [
        entry.module
        for entry in INNER_IMPORTS
        if entry.imported == "relay.config" and place_of(entry.module).row <= 4
    ]

    assert against == [], "let app.py hand these their own section"


# --- purity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", PURE)
def test_pure_module_imports_nothing_that_waits_or_looks_at_the_world(module: str) -> None:
    imported = {entry.imported for entry in ALL_IMPORTS if entry.module == module}

    impure = {
        name
        for name in imported
        if not name.startswith(("relay.core.", "relay.sources."))
        and name.partition(".")[0] not in HARMLESS
    }

    assert impure == set()


@pytest.mark.parametrize("module", PURE)
def test_pure_module_calls_nothing_that_looks_at_the_world(module: str) -> None:
    calls = [node.func for node in ast.walk(parsed(FILES[module])) if isinstance(node, ast.Call)]

    names = {call.attr if isinstance(call, ast.Attribute) else ast.unparse(call) for call in calls}

    assert names & IMPURE_CALLS == set()


@pytest.mark.parametrize("module", PURE)
def test_pure_module_waits_for_nothing(module: str) -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)

    lines = [node.lineno for node in ast.walk(parsed(FILES[module])) if isinstance(node, waiting)]

    assert lines == []


# --- each module alone -----------------------------------------------------------------------------

# Third-party modules stay loaded from one to the next, which keeps it short; ours are loaded afresh.
# That a module of ours is missing is found by the type checker; what is looked for here is an order
# of imports that works only by luck.
_IMPORT_EACH = """
import importlib, json, sys, traceback
failed = {}
for name in json.load(sys.stdin):
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "relay"]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("relay."):
            failed[name] = traceback.format_exc()
    except Exception:
        failed[name] = traceback.format_exc()
json.dump(failed, sys.stdout)
"""
_IMPORT_PACKAGE = """
import json, sys
before = set(sys.modules)
import relay
json.dump(sorted(set(sys.modules) - before), sys.stdout)
"""


def run(script: str, given: object = None) -> object:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        input=json.dumps(given),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def test_each_module_imports_alone() -> None:
    assert run(_IMPORT_EACH, [*PACKAGES, *FILES]) == {}


def test_importing_the_package_loads_nothing_else_of_it() -> None:
    loaded = run(_IMPORT_PACKAGE)

    assert isinstance(loaded, list)
    assert [name for name in loaded if name.startswith("relay")] == ["relay"]
    assert "redis" not in loaded


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "relay"])
def test_package_inside_is_a_folder_and_no_more(package: str) -> None:
    assert list(imports_of(package, parsed(PACKAGES[package]))) == []
