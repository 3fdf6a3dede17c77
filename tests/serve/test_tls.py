"""Encrypted connections: who is answered, who isn't, and files that can't be used."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from certificates import certificate
from running import Running, closed, parsed, serving

from subsecond.errors import InputError
from subsecond.serve.limits import RequestLimits
from subsecond.serve.run import load_tls, tls_of
from subsecond.serve.settings import ServeSettings

QUICK = RequestLimits(headers_s=0.4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), "one")


def trusting(cert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cert))


async def get(running: Running, context: ssl.SSLContext) -> tuple[int, str | None]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, ssl=context)
    try:
        version = writer.get_extra_info("ssl_object").version()
        writer.write(running.request("/v1/models"))
        return parsed(await reader.read()).status, version
    finally:
        await closed(writer)


def test_https_is_answered_and_plain_text_is_not(artifact: Path, files: tuple[Path, Path]) -> None:
    cert, key = files

    async def main() -> None:
        async with serving(artifact, tls_cert=cert, tls_key=key, limits=QUICK) as running:
            status, version = await get(running, trusting(cert))
            assert (status, version) == (200, "TLSv1.3")
            with pytest.raises(ssl.SSLCertVerificationError):
                await get(running, ssl.create_default_context())
            own = tls_of(running.server.settings)
            assert own is not None and own.minimum_version == ssl.TLSVersion.TLSv1_2
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(running.request("/v1/models"))
            async with asyncio.timeout(10):
                assert b"HTTP/1.1 200" not in await reader.read()
            await closed(writer)

    asyncio.run(main())


def test_whoever_never_greets_is_cut_off_and_delays_nobody(
    artifact: Path, files: tuple[Path, Path]
) -> None:
    cert, key = files

    async def main() -> None:
        async with serving(artifact, tls_cert=cert, tls_key=key, limits=QUICK) as running:
            mute = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(20)]
            for _, writer in mute[:10]:
                writer.write(b"\x16\x03\x01\x02\x00")  # the beginning of a greeting
            assert (await get(running, trusting(cert)))[0] == 200
            async with asyncio.timeout(10):
                for reader, writer in mute:
                    assert await reader.read() == b""
                    await closed(writer)

    asyncio.run(main())


def test_a_renewed_certificate_is_taken_while_it_runs(
    artifact: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    cert.write_bytes(files[0].read_bytes())
    key.write_bytes(files[1].read_bytes())
    settings = ServeSettings(models=(("m", "x"),), tls_cert=cert, tls_key=key)
    context = tls_of(settings)
    assert context is not None
    new_cert, new_key = certificate(tmp_path, "two")
    cert.write_bytes(new_cert.read_bytes())
    with pytest.raises(InputError, match="can't be used"):
        load_tls(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), settings)
    key.write_bytes(new_key.read_bytes())
    load_tls(context, settings)

    async def main() -> None:
        async with serving(artifact, tls_cert=cert, tls_key=key) as running:
            assert (await get(running, trusting(new_cert)))[0] == 200

    asyncio.run(main())


def test_files_that_cannot_be_used_are_refused_before_anything_starts(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    cert, key = files
    locked = certificate(tmp_path, "locked", "-passout", "pass:x")[1]
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    other = certificate(tmp_path, "other")[1]
    for own_cert, own_key, said in (
        (tmp_path / "none", key, "can't read"),
        (cert, tmp_path / "none", "can't read"),
        (junk, key, "can't be used"),
        (cert, other, "can't be used"),
        (cert, locked, "can't be used"),
    ):
        settings = ServeSettings(models=(("m", "x"),), tls_cert=own_cert, tls_key=own_key)
        with pytest.raises(InputError, match=said):
            tls_of(settings)
    with pytest.raises(InputError, match="give both"):
        ServeSettings(models=(("m", "x"),), tls_cert=cert)
