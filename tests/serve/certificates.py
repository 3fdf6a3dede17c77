"""Certificates for tests, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """PEM files of a certificate for 127.0.0.1 that signs itself, and of its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
             "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", str(key), "-out", str(cert), *(options or ("-nodes",))]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    return cert, key
