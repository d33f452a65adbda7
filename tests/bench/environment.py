"""What the numbers were measured on: the machine and the versions, without names or paths of either."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import relay
from relay.demo.embedded import find_binary
from tests.bench.subjects import CACHE, ROOT, Subject

_LIBRARIES = ("aiohttp", "hiredis", "orjson", "redis", "uvloop")
_NODE_LIBRARIES = ("@nestjs/core", "@nestjs/platform-ws", "ioredis", "socket.io", "ws")


def machine() -> dict[str, Any]:
    """CPU, cores, memory, kernel, and how busy it was before the run."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory_kib = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(int(memory_kib[1]) / 1024**2) if memory_kib else 0,
        "kernel": platform.release().split("-")[0],
        "virtual": "hypervisor" in Path("/proc/cpuinfo").read_text(),
        "load_before": os.getloadavg()[0],
    }


def versions(subjects: Sequence[Subject]) -> dict[str, str]:
    """The versions of what was measured and of what it stands on."""
    names = {subject.name for subject in subjects}
    found = {
        "relay": f"{relay.__version__} ({said(['git', 'rev-parse', '--short', 'HEAD'], r'.+')})",
        "Python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        "Redis or Valkey": said([find_binary(), "--version"], r"v=([\d.]+)"),
        "cc": said(["cc", "-dumpfullversion"], r".+"),
    }
    if "nchan" in names:
        found["nginx"] = said(["/usr/sbin/nginx", "-v"], r"nginx/([\d.]+)")
        package = ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"]
        found["nchan"] = said(package, r"(?:\d+:)?([\d.]+)")
    if names & {"nest", "socketio"}:
        found["Node.js"] = said(["node", "--version"], r"v(.+)")
        for name in _NODE_LIBRARIES:
            package_json = CACHE / "node/node_modules" / name / "package.json"
            found[name] = json.loads(package_json.read_text())["version"]
    if "centrifugo" in names:
        modules = (CACHE / "centrifugo-build/go.mod").read_text()
        required = re.search(r"centrifugo/v\d+ v([\d.]+)", modules)
        found["Centrifugo"] = required[1] if required else "?"
    if "pysocketio" in names:
        (installed,) = (CACHE / "python").glob("python_socketio-*.dist-info")
        found["python-socketio"] = installed.name.split("-")[1].removesuffix(".dist")
    return found


def said(command: list[str], pattern: str) -> str:
    """The part of a command's output that fits `pattern`, or its first group; "?" where there is none."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "?"
    found = re.search(pattern, done.stdout + done.stderr)
    return (found[1] if found.re.groups else found[0]) if found else "?"
