"""What the tests use of trustme, by the command openssl.

For Pythons where trustme cannot be installed: what it is built on (cffi) refuses the free-threaded 3.13.
"""

import ipaddress
import pathlib
import subprocess
import tempfile

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/stdout")


class Blob:
    """A certificate or key in PEM."""

    def __init__(self, pem):
        self.pem = pem

    def bytes(self):
        return self.pem

    def write_to_path(self, path):
        pathlib.Path(path).write_bytes(self.pem)


def make(subject, *options):
    """Make a key and a certificate; return both."""
    command = ["openssl", "req", "-x509", *KEY, "-subj", f"/CN={subject}", "-days", "10", *options]
    output = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True).stdout
    middle = output.index(b"-----BEGIN CERTIFICATE-----")
    return Blob(output[:middle]), Blob(output[middle:])


class Leaf:
    """A certificate with its key."""

    def __init__(self, key, certificate):
        self.private_key_pem = key
        self.cert_chain_pems = [certificate]
        self.private_key_and_cert_chain_pem = Blob(key.bytes() + certificate.bytes())

    def configure_cert(self, context):
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.private_key_and_cert_chain_pem.bytes())
            file.flush()
            context.load_cert_chain(file.name)


class CA:
    """A certificate authority."""

    def __init__(self):
        self.key, self.cert_pem = make("authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature")

    def issue_cert(self, *names):
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = pathlib.Path(folder, "certificate"), pathlib.Path(folder, "key")
            self.cert_pem.write_to_path(certificate)
            self.key.write_to_path(key)
            alternatives = ",".join(map(alternative, names))
            extensions = ("basicConstraints=critical,CA:FALSE", f"subjectAltName={alternatives}")
            options = [part for extension in extensions for part in ("-addext", extension)]
            return Leaf(*make(names[0], "-CA", certificate, "-CAkey", key, *options))


def alternative(name):
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"email:{name}" if "@" in name else f"DNS:{name}"
