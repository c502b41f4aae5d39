"""An authority, and certificates signed by it, made with the openssl of the machine."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
SETTINGS = """\
[ca]
default_ca = toy
[toy]
dir = {folder}
database = {folder}/index.txt
serial = {folder}/serial
new_certs_dir = {folder}
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
default_crl_days = 30
policy = any
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[root]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
"""


@dataclass(frozen=True)
class Authority:
    """Signs certificates; everything lies in one folder, as PEM."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> Authority:
        folder.mkdir()
        one = cls(folder)
        (folder / "ca.cnf").write_text(SETTINGS.format(folder=folder))
        (folder / "index.txt").touch()
        (folder / "serial").write_text("1000\n")
        one._key("ca")
        one._openssl(
            "req", "-x509", "-config", "ca.cnf", "-extensions", "root", "-days", "30", "-key", "ca.key",
            "-subj", "/CN=toy authority", "-out", "ca.pem",
        )  # fmt: skip
        return one

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def sign(self, name: str, hosts: str = "IP:127.0.0.1,DNS:localhost", days: int = 30) -> tuple[Path, Path]:
        """Certificate and private key.

        Args:
            hosts: whom it is for.
            days: it is valid from today; less than 0: it was, until so many days ago.
        """
        now = datetime.now(UTC)
        begins, ends = sorted((now - timedelta(days=1 if days > 0 else 90), now + timedelta(days=days)))
        self._key(name)
        self._openssl(
            "req", "-new", "-config", "ca.cnf", "-key", f"{name}.key", "-subj", f"/CN={name}",
            "-out", f"{name}.csr",
        )  # fmt: skip
        (self.folder / f"{name}.ext").write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={hosts}\n")
        self._openssl(
            "ca", "-batch", "-notext", "-config", "ca.cnf", "-in", f"{name}.csr", "-out", f"{name}.pem",
            "-extfile", f"{name}.ext", "-startdate", f"{begins:%Y%m%d%H%M%SZ}",
            "-enddate", f"{ends:%Y%m%d%H%M%SZ}",
        )  # fmt: skip
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def locked(self, name: str, password: str) -> Path:
        """The private key of a name once more, under a password."""
        self._openssl(
            "pkcs8", "-topk8", "-in", f"{name}.key", "-out", f"{name}.locked", "-passout", f"pass:{password}"
        )
        return self.folder / f"{name}.locked"

    def revoked(self, *names: str) -> Path:
        """The list of what is revoked, with these on it."""
        for name in names:
            self._openssl("ca", "-config", "ca.cnf", "-revoke", f"{name}.pem")
        self._openssl("ca", "-config", "ca.cnf", "-gencrl", "-out", "crl.pem")
        return self.folder / "crl.pem"

    def store(self, name: str) -> Path:
        """Key and certificate in one file, as a broker takes them."""
        both = (self.folder / f"{name}.key").read_text() + (self.folder / f"{name}.pem").read_text()
        path = self.folder / f"{name}.store.pem"
        path.write_text(both)
        return path

    def _key(self, name: str) -> None:
        self._openssl(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", f"{name}.key"
        )

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(
            ["openssl", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
