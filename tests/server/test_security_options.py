"""Options and files of security: what is refused, in what words, and what is asked of tritonserver."""

import argparse
import re
import stat
from pathlib import Path

import pytest

from server import security_options
from server.errors import ServerError
from server.find import find
from server.security import ADMIN_GROUPS, ADMIN_HEADER, KNOWN_FLAGS, Security, Tls, known_flags, new_secret, read_secret
from support.common import ROOT, run_python
from support.container_machine import import_container
from support.throwaway_ca import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    security_options.add_arguments(parser)
    return parser.parse_args(words)


def test_by_default_nobody_administers_and_only_the_machine_has_http() -> None:
    security = security_options.security(options())
    flags = security.flags(frozenset({"allow-vertex-ai"}))
    assert security.inference_secret is None
    assert security.admin_secret is not None
    assert len(security.admin_secret) >= 43
    assert security_options.security(options()).admin_secret != security.admin_secret
    assert f"--grpc-restricted-protocol={','.join(ADMIN_GROUPS)}:{ADMIN_HEADER}={security.admin_secret}" in flags
    assert (security.http, security.metrics) == ("loopback", "loopback")
    assert security.address(security.http, "0.0.0.0") == "127.0.0.1"
    assert security.address(security.http, "127.0.0.2") == "127.0.0.2"
    assert "--allow-vertex-ai=false" in flags


def test_with_tls_http_is_off_unless_asked_for(authority: Authority) -> None:
    tls = authority.server()
    words = (f"--tls-cert={tls.certificate}", f"--tls-key={tls.key}")
    assert "--allow-http=false" in security_options.security(options(*words)).flags(frozenset())
    assert security_options.security(options(*words, "--http=loopback")).http == "loopback"
    with pytest.raises(ServerError, match="give both --tls-cert and --tls-key"):
        security_options.security(options(words[0]))
    with pytest.raises(ServerError, match="give both --tls-cert and --tls-key"):
        security_options.security(options(f"--tls-client-ca={authority.ca}"))


def test_what_is_open_is_said(authority: Authority) -> None:
    closed = Security(authority.server(client_ca=authority.ca))
    assert security_options.warnings(closed, "0.0.0.0", concealed=True) == []
    assert security_options.warnings(Security(), "127.0.0.1", concealed=True) == []
    open_to_all = "\n".join(security_options.warnings(Security(), "0.0.0.0", concealed=False))
    for words in ("not encrypted", "everybody who reaches 0.0.0.0", "`ps` shows the secrets"):
        assert words in open_to_all


def test_files_of_no_use_are_named_before_a_server_starts(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("good", "a.test")
    old, old_key = authority.issue("old", "a.test", days=-1)
    (tmp_path / "text.pem").write_text("hello")
    cases = [
        (Tls(certificate, tmp_path / "absent"), "no PEM file at .*absent"),
        (Tls(certificate, old_key), "no certificate and its key"),
        (Tls(tmp_path / "text.pem", key), "no certificate and its key"),
        (Tls(old, old_key), "old.crt: certificate has expired"),
        (Tls(certificate, key, tmp_path / "text.pem"), "text.pem holds no certificate to trust"),
        (Tls(certificate, key, tmp_path / "absent"), "absent holds no certificate to trust"),
    ]
    for tls, message in cases:
        with pytest.raises(ServerError, match=message):
            Security(tls).access()
    assert Security(Tls(certificate, key, authority.ca)).access().channel["ssl"]


@pytest.mark.parametrize(
    ("name", "asked"), [("a.test", "a.test"), ("*.a.test", "any.a.test"), ("10.0.0.1", "10.0.0.1")]
)
def test_the_name_that_the_launcher_asks_for_is_one_of_its_certificate(
    authority: Authority, name: str, asked: str
) -> None:
    channel = Security(Tls(*authority.issue("named", name))).access().channel
    assert channel["channel_args"] == [("grpc.ssl_target_name_override", asked)]


@pytest.mark.parametrize("content", ["", "short", "a b" * 10, "secret=with=equals" * 2, "line\n" * 8, "\x00" * 20])
def test_a_secret_that_would_not_do_is_refused_without_being_shown(tmp_path: Path, content: str) -> None:
    (tmp_path / "secret").write_text(content)
    with pytest.raises(ServerError, match="16 to 256 letters") as error:
        read_secret(tmp_path / "secret")
    assert not content.strip() or content.strip() not in str(error.value)
    good = new_secret()
    (tmp_path / "secret").write_text(f"{good}\n")
    assert read_secret(tmp_path / "secret") == good
    assert good not in repr(Security(admin_secret=good, inference_secret=good))


def test_newer_limits_are_asked_of_a_server_that_has_them(tmp_path: Path) -> None:
    """24.10 has no limit of its own; flags that it does not know would keep it from starting."""
    flags = known_flags(find().binary, {})
    assert {"http-port", "grpc-restricted-protocol", "model-control-mode"} <= flags
    given = Security().flags(flags)
    assert {name for name, value in KNOWN_FLAGS.items() if f"--{name}={value}" in given} == flags & KNOWN_FLAGS.keys()
    newer = tmp_path / "tritonserver"
    shown = "  --http-max-input-size <integer>\n\tBytes.\n  --allow-client-shm <boolean>"
    newer.write_text(f"#!/bin/sh\necho '{shown}' >&2; exit 1\n")
    newer.chmod(newer.stat().st_mode | stat.S_IXUSR)
    flags = Security().flags(known_flags(newer, {"PATH": "/bin"}))
    assert "--http-max-input-size=8388608" in flags
    assert "--allow-client-shm=false" in flags
    assert not [flag for flag in flags if "sagemaker" in flag or "vertex" in flag], "such a server would not start"


def test_triton_is_never_told_to_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    """Given to a server of 25.03 or newer, that flag lets one such client stop the sampling loop, and so all others."""
    newer = tmp_path / "tritonserver"
    newer.write_text("#!/bin/sh\necho '  --grpc-max-response-pool-size <integer>'\n")
    newer.chmod(newer.stat().st_mode | stat.S_IXUSR)
    known = known_flags(newer, {"PATH": "/bin"})
    assert known == {"grpc-max-response-pool-size"}
    assert not [flag for flag in Security().flags(known) if "response-pool" in flag]


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    for words, message in (
        (["--tls-cert=/absent"], "give both --tls-cert and --tls-key"),
        (["--inference-secret-file=/absent"], "/absent"),
    ):
        done = run_python("-m", "server", *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert message in done.stderr


def test_the_container_restricts_the_same() -> None:
    module = import_container()
    assert ",".join(ADMIN_GROUPS) == module.RESTRICTED
    flags = " ".join(module.server_command(Path("/models")))
    assert re.search(rf" --grpc-restricted-protocol={module.RESTRICTED}:{ADMIN_HEADER}=\w{{32}}$", flags)


def test_the_page_names_every_option_and_flag() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    parser = argparse.ArgumentParser(add_help=False)
    security_options.add_arguments(parser)
    for action in parser._actions:
        assert action.option_strings[0] in page
    for flag in (*KNOWN_FLAGS, "model-control-mode", "exit-on-error", "strict-readiness", "grpc-restricted-protocol"):
        assert f"--{flag}" in page
