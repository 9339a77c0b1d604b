"""Writes into wheels what they carry besides fastloop: a software bill of materials in CycloneDX's JSON (PEP 770).

    python tools/add_sbom.py WHEEL...

Run after auditwheel or delocate has put libuv into the wheel, on the system that the wheel is for: the version is what
the library itself says. The same wheel gives the same document.
"""

import base64
import ctypes
import hashlib
import json
import re
import sys
import tempfile
import zipfile
from pathlib import Path

LIBRARY = re.compile(r"(fastloop\.libs|fastloop/\.dylibs)/libuv[^/]*")
RECORD = re.compile(r"[^/]+\.dist-info/RECORD")


def libuv_version(content):
    """The version that the shared library with this content says it has."""
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()
        version = ctypes.CDLL(file.name).uv_version_string
        version.restype = ctypes.c_char_p
        return version().decode()


def document(name, version, library, content):
    """The bill of a wheel of this version, which has the library of this name and content, or None."""
    package = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{version}",
        "name": name,
        "version": version,
        "licenses": [{"license": {"id": "MIT"}}],
        "purl": f"pkg:pypi/{name}@{version}",
    }
    components = []
    if library is not None:
        uv = libuv_version(content)
        components.append(
            {
                "type": "library",
                "bom-ref": f"pkg:generic/libuv@{uv}",
                "name": "libuv",
                "version": uv,
                "licenses": [{"license": {"id": "MIT"}}],
                "purl": f"pkg:generic/libuv@{uv}?download_url=https://dist.libuv.org/dist/v{uv}/libuv-v{uv}.tar.gz",
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
                "properties": [{"name": "fastloop:file", "value": library}],
            }
        )
    parts = [component["bom-ref"] for component in components]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": package},
        "components": components,
        "dependencies": [{"ref": package["bom-ref"], "dependsOn": parts}, *({"ref": part} for part in parts)],
    }


def add(path):
    """Add the bill to the wheel at this path, in place of one that it has."""
    with zipfile.ZipFile(path) as wheel:
        files = {info: wheel.read(info) for info in wheel.infolist()}
    (record,) = (info for info in files if RECORD.fullmatch(info.filename))
    library = next((info for info in files if LIBRARY.fullmatch(info.filename)), None)
    name, version = path.name.split("-")[:2]
    bill = document(name, version, library and library.filename, library and files[library])
    text = (json.dumps(bill, indent=2) + "\n").encode()
    target = record.filename.replace("RECORD", "sboms/fastloop.cdx.json")
    digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
    lines = [line for line in files[record].decode().splitlines() if not line.startswith(target + ",")]
    files[record] = "\n".join([*lines, f"{target},sha256={digest},{len(text)}", ""]).encode()
    added = zipfile.ZipInfo(target, record.date_time)
    added.external_attr = record.external_attr
    files = {info: content for info, content in files.items() if info.filename != target}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for info, content in {added: text, **files}.items():
            wheel.writestr(info, content, zipfile.ZIP_DEFLATED)


for argument in sys.argv[1:]:
    add(Path(argument))
