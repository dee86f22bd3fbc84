"""The signature of an appliance: who vouches for its manifest.

Source: DMTF DSP0243 1.1.0, section 5.1: a .cert file holds the manifest's name and its signature in hexadecimal
digits, made with the private key that belongs to the X.509 certificate that follows, in PEM.
"""

from __future__ import annotations

import os

from pydantic import Field

from imagesmith.errors import BuildError, ToolFailed
from imagesmith.host import Host
from imagesmith.kinds import Options, RecipeFile


class Signing(Options):
    """A certificate, and its private key."""

    certificate: RecipeFile = Field(description="An X.509 certificate, in PEM")
    key: str = Field(description="Its private RSA key, in PEM: a secret")


def certificate(signing: Signing, name: str, manifest: bytes, host: Host) -> bytes:
    """Return what goes into the .cert file for a manifest called ``name``.

    The same every time: RSA signatures of this form (RFC 8017, PKCS #1 v1.5) hold nothing random. The key is in no
    file system and no command line. Raises BuildError where the key does not belong to the certificate.
    """
    key = os.memfd_create("key")
    try:
        os.write(key, signing.key.encode() + b"\n")
        path = f"/proc/{os.getpid()}/fd/{key}"
        purpose = "sign the appliance's manifest"
        signature = host.run(["openssl", "dgst", "-sha256", "-sign", path], purpose=purpose, input=manifest).stdout
        own = host.run(["openssl", "pkey", "-in", path, "-pubout"], purpose=purpose).stdout
        shown = host.run(["openssl", "x509", "-in", signing.certificate, "-noout", "-pubkey"], purpose=purpose).stdout
        text = host.run(["openssl", "x509", "-in", signing.certificate], purpose=purpose).stdout
    except ToolFailed as error:
        why = error.tail.splitlines()[0] if error.tail else error.message
        raise BuildError(f"the appliance cannot be signed: {why}",
                         hint="'key' is the text of a private RSA key in PEM, 'certificate' a file in PEM") from None
    finally:
        os.close(key)
    if own != shown:
        raise BuildError(f"the private key does not belong to the certificate {signing.certificate.name}")
    return f"SHA256({name})= {signature.hex()}\n".encode() + text
