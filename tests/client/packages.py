"""A project that uses the client with React, as npm and a bundler would have it: only where npm's packages are there.

They are looked for beside esbuild, wherever that was installed; nothing is downloaded here.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from relay.web.assets import CLIENT
from tests.tools import require_tool

HERE = Path(__file__).parent


def run(*command: object, cwd: Path = HERE) -> bytes:
    """What a program prints; the test fails with it if the program does."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout


def esbuild() -> Path:
    return require_tool(
        "esbuild", hint="npm install esbuild, and its node_modules/.bin on the PATH"
    )


def tsc() -> Path:
    return require_tool("tsc", hint="npm install typescript, and its node_modules/.bin on the PATH")


def node() -> Path:
    return require_tool("node", hint="https://nodejs.org, 20 or newer")


def require_package(name: str) -> Path:
    """The folder of one of npm's packages; without it the test ends as without a program of that name."""
    program = esbuild().resolve()
    folders = [folder for folder in program.parents if folder.name == "node_modules"]
    modules = folders[0] if folders else program.parent
    if not (modules / name / "package.json").is_file():
        hint = f"npm install {name}, beside esbuild"
        require_tool(name, hint=hint, folder=modules / name)
    return modules / name


def make_project(folder: Path, *sources: str) -> Path:
    """Install React, its types and the client in `folder`, and copy these of our sources there."""
    installed = folder / "node_modules"
    (installed / "@types").mkdir(parents=True)
    for name in ("react", "react-dom", "@types/react", "@types/react-dom", "csstype", "scheduler"):
        (installed / name).symlink_to(require_package(name))
    shutil.copytree(CLIENT, installed / "relay-client")
    for source in sources:
        shutil.copy(HERE / source, folder)
    return folder
