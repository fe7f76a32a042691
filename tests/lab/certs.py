"""A certificate authority for the time of a test run, and certificates of servers on this machine."""

import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from lab.env import clean_env, program


@dataclass(frozen=True)
class Certificate:
    """A server's certificate and its private key, both PEM files."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """A context for the server that has it."""
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self.cert, self.key)
        return tls


class Authority:
    """A certificate authority in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        """Make the authority's key and certificate there; raises UnavailableError without openssl."""
        self._directory = directory
        self._openssl = program("openssl")
        self.ca = directory / "ca.pem"
        """The certificate to trust: what AWS_CA_BUNDLE names."""
        self._key = directory / "ca.key"
        extensions = ("basicConstraints=critical,CA:true", "keyUsage=critical,keyCertSign,cRLSign")
        self._request(self.ca, self._key, "/CN=s3daemon test authority", extensions)

    def issue(self, name: str, *subjects: str) -> Certificate:
        """A certificate for the subjects given as openssl writes them; by default for this machine's loopback."""
        names = subjects or ("DNS:localhost", "IP:127.0.0.1")
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        extensions = ("basicConstraints=critical,CA:false", f"subjectAltName={','.join(names)}")
        signer = ("-CA", str(self.ca), "-CAkey", str(self._key))
        self._request(made.cert, made.key, f"/CN={name}", extensions, signer)
        return made

    def expired(self, name: str) -> Certificate:
        """A certificate for this machine's loopback that has just expired."""
        made, asked = self.issue(name), self._directory / f"{name}.csr"
        # `req -x509` issues nothing that is over already; `x509 -req` does.
        request: list[str | Path] = ["req", "-new", "-config", "/dev/null", "-key", made.key, "-out", asked]
        request += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        answer: list[str | Path] = ["x509", "-req", "-in", asked, "-CA", self.ca, "-CAkey", self._key]
        answer += ["-CAcreateserial", "-copy_extensions", "copyall", "-days", "0", "-out", made.cert]
        for command in (request, answer):
            subprocess.run([self._openssl, *command], env=clean_env(), check=True, capture_output=True, text=True)
        time.sleep(1.1)  # newer versions of OpenSSL take no day in the past, and times in it have whole seconds
        return made

    def _request(
        self, cert: Path, key: Path, subject: str, extensions: tuple[str, ...], signer: tuple[str, ...] = ()
    ) -> None:
        # The configuration file is empty so that the system's own adds no extension of its own.
        command = [self._openssl, "req", "-x509", "-config", "/dev/null", "-subj", subject, "-days", "30"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", str(key), "-out", str(cert), *signer]
        for extension in extensions:
            command += ["-addext", extension]
        subprocess.run(command, env=clean_env(), check=True, capture_output=True, text=True)
