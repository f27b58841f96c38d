"""What the client shows to be let in, and that it shows it to nobody else."""

from pathlib import Path

import pytest

from brats_ldm_client import TLS, Client, InvalidRequest


def test_files_of_tls_are_checked_and_headers_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "pem").touch()
    with pytest.raises(InvalidRequest, match=r"no PEM file .*absent\.pem \(ca\)"):
        Client(tls=tmp_path / "absent.pem")
    with pytest.raises(InvalidRequest, match="both cert and key"):
        Client(tls=TLS(cert=tmp_path / "pem"))
    for headers, secret in (({"authorization": "Bearer hidden\n"}, None), (None, "hidden\r\nx: y")):
        with pytest.raises(InvalidRequest, match="one line of printable ASCII") as error:
            Client(headers=headers, secret=secret)
        assert "hidden" not in str(error.value)
    with pytest.raises(InvalidRequest, match="no name of a header"):
        Client(headers={"a b": "c"})
    client = Client(secret="hidden", headers={"X-Token": "hidden"})
    assert "hidden" not in repr(client) + repr(vars(client))


def test_a_header_file_that_cannot_be_read_is_one_line_without_its_content(tmp_path: Path) -> None:
    from brats_ldm_client._access import read_headers

    (tmp_path / "headers").write_text("# for the proxy\n\nAuthorization: Bearer a:b\n")
    assert read_headers(tmp_path / "headers") == {"Authorization": "Bearer a:b"}
    (tmp_path / "headers").write_text("x: y\nhidden\n")
    with pytest.raises(InvalidRequest, match="line 2: a header is `name: value`") as error:
        read_headers(tmp_path / "headers")
    assert "hidden" not in str(error.value)
