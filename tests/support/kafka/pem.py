"""Authorities, certificates and keys for tests, as PEM files, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def make_authority(folder: Path) -> Path:
    """Makes ca.pem and ca.key in a folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(folder, "req", "-x509", *KEY, "-nodes", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key",
             "-out", "ca.pem")  # fmt: skip
    return folder


def sign(folder: Path, name: str, *, hosts: str = "IP:127.0.0.1", password: str | None = None) -> None:
    """Makes NAME.crt and NAME.key, signed by the authority of the folder, and NAME.pem with both.

    hosts     names that the certificate is for, as openssl writes them
    password  NAME.key is encrypted with it
    """
    _openssl(folder, "req", *KEY, "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (folder / f"{name}.ext").write_text(f"subjectAltName={hosts}\n")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
             "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip
    key = (folder / f"{name}.key").read_text()
    (folder / f"{name}.pem").write_text(key + (folder / f"{name}.crt").read_text())
    if password is not None:
        _openssl(folder, "pkcs8", "-topk8", "-in", f"{name}.pem", "-passout", f"pass:{password}", "-out", f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
