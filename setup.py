"""The build of the compiled hot path. Everything else about the build is in pyproject.toml.

`RELAY_COMPILE=1 pip install .` has mypyc make C extensions of the modules below; it needs a C compiler and
Python's headers, and a minute or two. Without it nothing is compiled, and the same sources are run as they are. See
"Compiled" in docs/design.md.
"""

import os
import sys

from setuptools import Extension, setup

# Installed by pip for such a build alone. One version, as another one makes other C code of these files.
MYPYC = "mypy==2.4.1"
HOT_PATH = [
    "relay/clock.py",
    "relay/intake.py",
    "relay/core/backfill.py",
    "relay/core/event.py",
    "relay/core/framing.py",
    "relay/core/heartbeat.py",
    "relay/core/history.py",
    "relay/core/index.py",
    "relay/core/outbox.py",
    "relay/core/payload.py",
    "relay/core/record.py",
    "relay/core/remembered.py",
    "relay/core/router.py",
    "relay/core/session.py",
    "relay/core/standing.py",
    "relay/core/stats.py",
    "relay/core/wire.py",
    "relay/sources/channel.py",
    "relay/sources/template.py",
    "relay/upstream/reader.py",
    "relay/web/flusher.py",
    "relay/web/websocket.py",
]
# What the modules import is not there while they are compiled; their types are checked by `make test`.
MYPY_OPTIONS = ["--config-file=", "--ignore-missing-imports", "--python-version=3.11"]


def _compiled() -> list[Extension]:
    from mypyc.build import mypycify  # not there before pip has installed it

    return mypycify([*MYPY_OPTIONS, *HOT_PATH], opt_level="3", debug_level="0")


is_wanted = os.environ.get("RELAY_COMPILE", "0") not in ("", "0")
if is_wanted and "editable_wheel" in sys.argv:
    sys.exit(
        "RELAY_COMPILE=1 does not go with an editable install, in which changes would then have no"
        " effect: unset it, or install without --editable."
    )
is_building = not {"build_ext", "bdist_wheel"}.isdisjoint(sys.argv)
setup(
    setup_requires=[MYPYC] if is_wanted else [],
    ext_modules=_compiled() if is_wanted and is_building else [],
)
