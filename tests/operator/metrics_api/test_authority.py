"""When the CA and the certificate are made anew, and that clients trust both before and after."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from octavo_operator.metrics_api import authority as module
from octavo_operator.metrics_api.authority import Issued, renew

START = datetime(2026, 1, 1, tzinfo=UTC)
HOSTS = ("octavo-metrics-api.octavo-system.svc",)


def made(now: datetime = START) -> Issued:
    issued, why = renew({}, HOSTS, now)
    assert why == "there was no CA"
    return issued


def trusts(bundle: bytes, issued: Issued, now: datetime) -> bool:
    """What a client does that knows the bundle."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(HOSTS[0]))
    try:
        verifier.verify(x509.load_pem_x509_certificate(issued.certificate), [])
    except x509.verification.VerificationError:
        return False
    return True


def test_it_is_good_for_the_service_and_kept() -> None:
    issued = made()
    assert trusts(issued.authorities, issued, START)
    assert renew(issued.data, HOSTS, START + timedelta(days=59)) == (issued, "")


def test_years_go_by() -> None:
    """Looked at each hour: what the API server knows since the last look is always trusted."""
    issued, now = made(), START
    authorities, certificates = {issued.authorities}, {issued.certificate}
    while now < START + timedelta(days=5 * 365):
        now += timedelta(hours=6)
        known = issued.authorities
        for _ in range(4):
            issued, why = renew(issued.data, HOSTS, now)
            assert trusts(known, issued, now), why
            if not why:
                break
        else:
            raise AssertionError(f"it never rests: {why}")
        authorities.add(issued.authorities)
        certificates.add(issued.certificate)
        assert len(x509.load_pem_x509_certificates(issued.authorities)) <= 3
    assert 20 < len(certificates) < 40
    assert 4 <= len(authorities) <= 15


def test_a_new_ca_signs_nothing_before_it_is_known() -> None:
    issued = made()
    later = START + timedelta(days=module.CA_RENEWED_DAYS)
    both, why = renew(issued.data, HOSTS, later)
    assert why == "the CA is replaced before it ends"
    assert both.certificate == issued.certificate
    assert len(x509.load_pem_x509_certificates(both.authorities)) == 2
    soon = later + timedelta(minutes=59)
    again, why = renew(both.data, HOSTS, soon)  # the certificate is old by now
    assert trusts(issued.authorities, again, soon)
    switched, why = renew(again.data, HOSTS, later + timedelta(hours=1))
    assert why == "the new CA is known by now"
    assert trusts(both.authorities, switched, soon + timedelta(minutes=2))
    assert not trusts(issued.authorities, switched, soon + timedelta(minutes=2))


@pytest.mark.parametrize("broken", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
@pytest.mark.parametrize("how", ["missing", "garbage", "another's"])
def test_what_is_damaged_is_made_anew(broken: str, how: str) -> None:
    issued = made()
    data = dict(issued.data)
    if how == "missing":
        del data[broken]
    else:
        data[broken] = b"what?" if how == "garbage" else made().data[broken]
    mended, why = renew(data, HOSTS, START)
    assert why
    assert trusts(mended.authorities, mended, START)
    if broken.startswith("tls"):
        assert mended.authorities == issued.authorities


def test_a_service_of_another_name() -> None:
    issued = made()
    other, why = renew(issued.data, ("other.ns.svc",), START)
    assert why == "the Service has another name"
    assert other.authorities == issued.authorities


def test_one_that_nobody_looked_at_for_years() -> None:
    issued = made()
    late = START + timedelta(days=900)
    fresh, why = renew(issued.data, HOSTS, late)
    assert why == "the CA was damaged, or had ended"
    assert trusts(fresh.authorities, fresh, late)


def test_python_takes_it(tmp_path: object) -> None:
    issued = made(datetime.now(UTC))
    ssl.create_default_context(cadata=issued.authorities.decode())
