"""The metrics API's own CA and serving certificate: when they are made anew, and from what. Pure
but for the random numbers in keys.

A new CA is trusted for a while before anything is signed with it: the API server hears of it
first. Certificates that are replaced stay good until they end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, CA_RENEWED_DAYS = 730, 365
CERTIFICATE_DAYS, CERTIFICATE_RENEWED_DAYS = 90, 60

TRUSTED_BEFORE_USE = timedelta(hours=1)
"""Between a CA's making and the first certificate of it: each pass keeps caBundle current."""

CLOCKS_DIFFER = timedelta(hours=1)
"""How far back certificates are valid."""

CA_CERTIFICATES, CA_KEY, NEXT_CA_KEY = "ca.crt", "ca.key", "next-ca.key"
CERTIFICATE, KEY = "tls.crt", "tls.key"


@dataclass(frozen=True, slots=True)
class Issued:
    """`authorities` are what clients are to trust, PEM, one after the other; `data` is the Secret's
    with all of it.
    """

    data: Mapping[str, bytes]

    @property
    def authorities(self) -> bytes:
        return self.data[CA_CERTIFICATES]

    @property
    def certificate(self) -> bytes:
        return self.data[CERTIFICATE]

    @property
    def key(self) -> bytes:
        return self.data[KEY]


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def renew(
    data: Mapping[str, bytes], host_names: Sequence[str], now: datetime
) -> tuple[Issued, str]:
    """What the Secret is to hold, and why that differs from `data`; "" where it does not.

    What is damaged, incomplete or for other host names is made anew, too.
    """
    try:
        found = _read(data)
    except (ValueError, TypeError, KeyError):
        found = None
    if found is None or _passed(found.signer, now, CA_DAYS):
        signer = _make_authority(now)
        issued = _issue(signer, None, [signer.certificate], host_names, now)
        return issued, "there was no CA" if not data else "the CA was damaged, or had ended"
    signer, following, trusted = found.signer, found.following, found.trusted
    if following is not None and now >= _begin(following) + TRUSTED_BEFORE_USE:
        return _issue(following, None, trusted, host_names, now), "the new CA is known by now"
    if following is None and _passed(signer, now, CA_RENEWED_DAYS):
        following = _make_authority(now)
        certificates = [following.certificate, *trusted]
        kept = {each: data[each] for each in (CA_KEY, CERTIFICATE, KEY)}
        return (
            Issued(
                {
                    **kept,
                    CA_CERTIFICATES: _pem(certificates),
                    NEXT_CA_KEY: _key_pem(following.key),
                }
            ),
            "the CA is replaced before it ends",
        )
    if why := _why_again(found.leaf, found.leaf_key, signer, host_names, now):
        return _issue(signer, following, trusted, host_names, now), why
    lasting = [each for each in trusted if each.not_valid_after_utc > now]
    if len(lasting) < len(trusted):
        return Issued({**data, CA_CERTIFICATES: _pem(lasting)}), "a former CA has ended"
    return Issued(dict(data)), ""


@dataclass(frozen=True, slots=True)
class _Found:
    signer: _Authority
    following: _Authority | None
    trusted: list[x509.Certificate]
    leaf: x509.Certificate | None
    leaf_key: ec.EllipticCurvePrivateKey | None


def _read(data: Mapping[str, bytes]) -> _Found:
    """ValueError, TypeError or KeyError where there is no CA that could sign."""
    trusted = x509.load_pem_x509_certificates(data[CA_CERTIFICATES])
    signer = _paired(trusted, data[CA_KEY])
    following = _paired(trusted, data[NEXT_CA_KEY]) if data.get(NEXT_CA_KEY) else None
    try:
        leaf = x509.load_pem_x509_certificate(data[CERTIFICATE])
        leaf_key = _load_key(data[KEY])
    except (ValueError, TypeError, KeyError):
        return _Found(signer, following, trusted, None, None)
    return _Found(signer, following, trusted, leaf, leaf_key)


def _paired(certificates: list[x509.Certificate], pem: bytes) -> _Authority:
    key = _load_key(pem)
    for each in certificates:
        if each.public_key() == key.public_key():
            return _Authority(each, key)
    raise ValueError("no certificate belongs to the key")


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("a key of another kind")
    return key


def _why_again(
    leaf: x509.Certificate | None,
    key: ec.EllipticCurvePrivateKey | None,
    signer: _Authority,
    host_names: Sequence[str],
    now: datetime,
) -> str:
    if leaf is None or key is None or leaf.public_key() != key.public_key():
        return "there was no serving certificate"
    try:
        leaf.verify_directly_issued_by(signer.certificate)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return "the serving certificate was not the CA's"
    if set(host_names) != set(names.get_values_for_type(x509.DNSName)):
        return "the Service has another name"
    if now >= leaf.not_valid_before_utc + CLOCKS_DIFFER + timedelta(days=CERTIFICATE_RENEWED_DAYS):
        return "the serving certificate is replaced before it ends"
    return ""


def _begin(authority: _Authority) -> datetime:
    return authority.certificate.not_valid_before_utc + CLOCKS_DIFFER


def _passed(authority: _Authority, now: datetime, days: int) -> bool:
    return now >= _begin(authority) + timedelta(days=days)


def _issue(
    signer: _Authority,
    following: _Authority | None,
    trusted: list[x509.Certificate],
    host_names: Sequence[str],
    now: datetime,
) -> Issued:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        _builder(host_names[0], signer.certificate.subject, key, signer.key, now, CERTIFICATE_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(each) for each in host_names]), critical=False
        )
        .sign(signer.key, hashes.SHA256())
    )
    data = {
        CA_CERTIFICATES: _pem(trusted),
        CA_KEY: _key_pem(signer.key),
        CERTIFICATE: _pem([leaf]),
        KEY: _key_pem(key),
    }
    if following is not None:
        data[NEXT_CA_KEY] = _key_pem(following.key)
    return Issued(data)


def _make_authority(now: datetime) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    # Of two CAs in one bundle a client must be able to tell which is which.
    name = f"octavo-metrics-api {now:%Y-%m-%d} {x509.random_serial_number():x}"[:64]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name, subject, key, key, now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Authority(certificate, key)


def _builder(
    name: str,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signing: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(identifier, critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
