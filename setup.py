"""Where the packages lie; everything else is said in pyproject.toml.

The top-level directories `adapters` and `tools` install inside `bandana_kv`: other
distributions own those names.
"""

from setuptools import find_packages, setup

ROOMS = ("adapters", "tools")

packages = find_packages(include=["bandana_kv", "bandana_kv.*"])
for room in ROOMS:
    packages += [f"bandana_kv.{room}"]
    packages += [f"bandana_kv.{room}.{inner}" for inner in find_packages(room)]

setup(
    packages=packages,
    package_dir={
        "bandana_kv": "bandana_kv",
        **{f"bandana_kv.{room}": room for room in ROOMS},
    },
)
