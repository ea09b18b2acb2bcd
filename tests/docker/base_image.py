"""Makes a stand-in for ``python:X.Y-slim`` offline, from what this Debian machine already has.

``python base_image.py`` packs the interpreter that runs it (so its version is the kernel's) into
/usr/local, as the official image does, with the host's own Debian packages below: the essential
ones, apt, certificates and the libraries that the interpreter loads. The same host gives the same
image. For tests only: it trusts the certificates that this host trusts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MINOR = "{}.{}".format(*sys.version_info)
VERSION = platform.python_version()
STDLIB = f"{sys.base_prefix}/lib/python{MINOR}"
SITE = f"usr/local/lib/python{MINOR}/site-packages"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
LABEL = "fal-notebook.base"
EPOCH = 1_700_000_000
WANTED = (
    *("apt", "adduser", "ca-certificates", "netbase", "tzdata", "mawk", "passwd", "login"),
    *("mount", "debian-archive-keyring"),
)
NOT_PACKED = {
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3"),
    *("site-packages", "dist-packages", os.path.basename(sysconfig.get_config_var("LIBPL") or "")),
}
DOCUMENTATION = re.compile(
    r"^/usr/share/(man|locale|info|lintian|bash-completion|zsh)/"
    r"|^/usr/share/doc/(?!.*copyright$)|^(/usr)?/lib/(systemd|udev)/"
)
CONTROL = (
    *("list", "md5sums", "postinst", "prerm", "preinst", "postrm", "conffiles", "triggers"),
    *("shlibs", "symbols", "templates"),
)
INFO = "/var/lib/dpkg/info/"
PIP = """#!/usr/local/bin/python3
import sys
from pip._internal.cli.main import main
sys.exit(main())
"""
PIP_CONF = f"""[global]
cert = {CERTIFICATES}
disable-pip-version-check = true
root-user-action = ignore
"""
APT_CONF = 'Acquire::Languages "none";\nAPT::Install-Recommends "false";\n'

# What lies at a path of the image: a file of this host, or its content.
files: dict[str, str | bytes] = {}
links: dict[str, str] = {}
folders: dict[str, int] = {
    "tmp": 0o1777,
    "var/tmp": 0o1777,
    "root": 0o700,
    "proc": 0o555,
    "sys": 0o555,
    **dict.fromkeys(("dev", "run", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"), 0o755),
    **dict.fromkeys(("var/cache/apt/archives/partial", "var/lib/apt/lists/partial"), 0o755),
    **dict.fromkeys(("var/log/apt", "etc/apt/preferences.d", "etc/apt/trusted.gpg.d"), 0o755),
}


def run(*command: str) -> str:
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.stdout


def add_tree(source: str, place: str, without: Iterable[str] = ()) -> None:
    for folder, below, names in os.walk(source):
        below[:] = sorted(name for name in below if name not in set(without))
        for name in names:
            if not name.endswith((".opt-1.pyc", ".opt-2.pyc")) and not name.startswith("_test"):
                relative = os.path.relpath(os.path.join(folder, name), source)
                files[os.path.join(place, relative)] = os.path.join(folder, name)


def add_interpreter() -> set[str]:
    """Add Python and pip; return the shared libraries that Python loads."""
    add_tree(STDLIB, f"usr/local/lib/python{MINOR}", NOT_PACKED)
    add_tree(f"{sys.base_prefix}/include", "usr/local/include")
    binary = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    files[f"usr/local/bin/python{MINOR}"] = binary
    links.update({"usr/local/bin/python3": f"python{MINOR}", "usr/local/bin/python": "python3"})
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        name = sysconfig.get_config_var("INSTSONAME")
        place = f"usr/lib/{sysconfig.get_config_var('MULTIARCH')}/{name}"
        files[place] = f"{sysconfig.get_config_var('LIBDIR')}/{name}"
    for wheel in sorted(Path(STDLIB, "ensurepip/_bundled").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            files.update({f"{SITE}/{name}": archive.read(name) for name in names})
    files.update(dict.fromkeys(("usr/local/bin/pip", "usr/local/bin/pip3"), PIP.encode()))
    modules = [str(v) for k, v in files.items() if "/lib-dynload/" in k and k.endswith(".so")]
    loaded = set(re.findall(r"=> (/\S+)", run("ldd", binary, *modules)))
    return {library for library in loaded if not library.startswith(sys.base_prefix)}


def packages(libraries: set[str]) -> list[str]:
    """Return the host's packages that the image holds, dependencies too."""
    paths = sorted(libraries | {"/usr" + library for library in libraries})
    owners = set(re.findall(r"^([^\s:]+)[^\n]*: ", run("dpkg", "-S", *paths), re.MULTILINE))
    listed = run("dpkg-query", "-W", "-f", "${Package} ${Essential}\n").splitlines()
    essential = {line.split()[0] for line in listed if line.endswith(" yes")}
    seeds = sorted(owners | essential | set(WANTED))
    needed = run("apt-cache", "depends", "--recurse", "--installed", "--important", *seeds)
    return sorted({*re.findall(r"^(\w\S*)$", needed, re.MULTILINE), *seeds} & set(STATUS))


def _status() -> dict[str, str]:
    text = Path("/var/lib/dpkg/status").read_text(encoding="utf-8")
    parts = [part for part in text.split("\n\n") if "\nStatus: install ok installed\n" in part]
    return {part.partition("\n")[0].removeprefix("Package: "): part for part in parts}


def in_image(path: str) -> str:
    """Return where a path of the host lies without links in its folders."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)).lstrip("/")


def add_package(name: str) -> None:
    named = next(
        n for n in (name, f"{name}:amd64", f"{name}:arm64") if os.path.exists(f"{INFO}{n}.list")
    )
    for kind in CONTROL:
        if os.path.exists(path := f"{INFO}{named}.{kind}"):
            files[path[1:]] = path
    for path in Path(f"{INFO}{named}.list").read_text(encoding="utf-8").splitlines():
        if path in ("/.", "") or DOCUMENTATION.match(path) or not os.path.lexists(path):
            continue
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            folders[in_image(path)] = mode & 0o7777
        elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            files[in_image(path)] = path


def add_system(chosen: list[str]) -> None:
    for name in chosen:
        add_package(name)
    for path in ("/bin", "/sbin", "/lib", "/lib64", "/lib32", "/libx32"):
        if os.path.islink(path):
            files[path[1:]] = path
            folders.pop(path[1:], None)
    for name in filter(os.path.islink, Path("/etc/alternatives").iterdir()):
        target = os.readlink(name)
        if target.lstrip("/") in files or in_image(target) in files:
            files[str(name)[1:]] = str(name)
    for path in filter(os.path.islink, ("/usr/bin/awk", "/usr/bin/which")):
        files[in_image(path)] = path
    add_tree("/usr/share/ca-certificates", "usr/share/ca-certificates")
    add_tree("/etc/ssl/certs", "etc/ssl/certs")
    for source in ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"):
        if os.path.exists(source):
            files[source[1:]] = source
    text = {
        "etc/passwd": _accounts("passwd").replace("/root:/bin/sh", "/root:/bin/bash"),
        "etc/group": _accounts("group"),
        "etc/shadow": "root:*:19000:0:99999:7:::\n",
        "etc/gshadow": "root:*::\n",
        "etc/pip.conf": PIP_CONF,
        "etc/apt/apt.conf.d/small": APT_CONF,
        "var/lib/dpkg/status": "\n\n".join(STATUS[name] for name in chosen) + "\n",
        "var/lib/dpkg/info/format": "1\n",
        **dict.fromkeys(("etc/hostname", "etc/hosts", "etc/resolv.conf"), ""),
        **{f"var/lib/dpkg/{n}": "" for n in ("available", "diversions", "statoverride")},
    }
    files.update({path: content.encode() for path, content in text.items()})


def _accounts(kind: str) -> str:
    lines = Path(f"/usr/share/base-passwd/{kind}.master").read_text().splitlines(True)
    kept = [x for x in lines if int(x.split(":")[2]) < 100 or x.startswith(("nobody", "nogroup"))]
    return "".join(kept).replace(":*:", ":x:")


def layer(path: Path) -> str:
    """Write the one layer, sorted and with fixed owners; return its digest."""
    for name in [*files, *links]:
        for parent in map(str, Path(name).parents):
            if parent != "." and parent not in files:
                folders.setdefault(parent, 0o755)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted({*folders, *files, *links}):
            _add(archive, name)
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def _add(archive: tarfile.TarFile, name: str) -> None:
    entry, source = tarfile.TarInfo(name), files.get(name)
    entry.mtime = EPOCH
    if name in links:
        entry.type, entry.linkname = tarfile.SYMTYPE, links[name]
    elif source is None:
        entry.type, entry.mode = tarfile.DIRTYPE, folders[name]
    elif isinstance(source, bytes):
        entry.size, entry.mode = len(source), 0o755 if "/bin/" in name else 0o644
        return archive.addfile(entry, io.BytesIO(source))
    elif os.path.islink(source):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(source)
    else:
        found = os.stat(source)
        entry.size, entry.mode = found.st_size, found.st_mode & 0o7777
        entry.mtime = int(found.st_mtime)  # a .pyc is compared with that of its .py
        with open(source, "rb") as content:
            return archive.addfile(entry, content)
    return archive.addfile(entry)


def configuration(digest: str, identity: str) -> bytes:
    path = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    value = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": {
            "Env": [f"PATH={path}", "LANG=C.UTF-8", f"SSL_CERT_FILE={CERTIFICATES}"],
            "Cmd": ["python3"],
            "Labels": {LABEL: identity},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest]},
    }
    return json.dumps(value, sort_keys=True).encode()


def image(path: Path, tags: list[str], identity: str) -> None:
    """Write the image as ``docker load`` takes it."""
    add_system(packages(add_interpreter()))
    config = configuration(layer(path.with_suffix(".layer")), identity)
    name = hashlib.sha256(config).hexdigest() + ".json"
    manifest: list[Any] = [{"Config": name, "RepoTags": tags, "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for file, content in (("manifest.json", json.dumps(manifest).encode()), (name, config)):
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        archive.add(path.with_suffix(".layer"), "layer.tar")


def main() -> None:
    tags = [f"python:{MINOR}-slim", f"python:{MINOR}", f"python:{VERSION}-slim"]
    recipe = zlib.crc32(Path(__file__).read_bytes() + Path(CERTIFICATES).read_bytes())
    identity = f"{VERSION}-{recipe}"
    label = '{{index .Config.Labels "%s"}}' % LABEL  # noqa: UP031
    found = run("docker", "image", "inspect", "-f", label, tags[0])
    if found.strip() == identity:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.tar")
        image(path, tags, identity)
        subprocess.run(["docker", "load", "-qi", str(path)], check=True)


STATUS = _status()
if __name__ == "__main__":
    main()
