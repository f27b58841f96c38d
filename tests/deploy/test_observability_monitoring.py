"""deploy/monitoring and docs/operations.md, held to each other, to promtool, to a real server and a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
import yaml

from benchmarks.harness.command import tool
from server.process import TritonServer
from support.common import ROOT
from support.faulty_networks import order, write_faulty
from support.prometheus import MONITORING, Prometheus
from support.serving import PATIENCE, metrics_text, start, tensors, wait_for_rows, wait_until_idle

CASES = ROOT / "tests" / "data" / "alerts_test.yml"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
METRIC = re.compile(r"\b(?:mri_ldm|nv)_[a-z_]+")


def promtool(*arguments: str | Path, text: str | None = None) -> str:
    command = [tool("promtool"), *map(str, arguments)]
    run = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def filled_in(query: str) -> str:
    """As Grafana sends it, with all servers and models chosen."""
    for variable, value in {"$__rate_interval": "10s", "$instance": ".*", "$model": ".*"}.items():
        query = query.replace(variable, value)
    assert "$" not in query, query
    return query


# --- without a server


def test_promtool_accepts_the_alerts_and_the_configuration() -> None:
    promtool("check", "config", MONITORING / "prometheus.yml")
    promtool("check", "rules", "--lint=all", "--lint-fatal", MONITORING / "alerts.yml")


def test_each_alert_fires_and_stays_quiet_on_made_up_series() -> None:
    promtool("test", "rules", CASES)
    outcomes = {
        (case["alertname"], bool(case["exp_alerts"]))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    assert outcomes == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_the_made_up_series_notice_alerts_that_never_fire(tmp_path) -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = f"({rule['expr']}) and vector(1) < 0"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    cases = yaml.safe_load(CASES.read_text()) | {"rule_files": ["alerts.yml"]}
    (tmp_path / "cases.yml").write_text(yaml.safe_dump(cases))
    with pytest.raises(AssertionError) as noticed:
        promtool("test", "rules", tmp_path / "cases.yml")
    assert all(f"alertname: {rule['alert']}," in str(noticed.value) for rule in RULES)


def test_each_alert_says_what_is_wrong_and_where_it_is_written_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^#)", OPERATIONS, re.M | re.S))
    assert list(sections) == [rule["alert"] for rule in RULES]
    assert all(re.search(r"\bDo:\s\S", text) for text in sections.values())


def test_promtool_accepts_the_queries_of_the_dashboard(tmp_path) -> None:
    rules = [{"record": f"panel:{i}", "expr": filled_in(query)} for i, (_, query) in enumerate(QUERIES)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", tmp_path / "queries.yml")


def test_panels_are_complete_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        grid = panel["gridPos"]
        cells = {(grid["x"] + dx, grid["y"] + dy) for dx in range(grid["w"]) for dy in range(grid["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


# --- with a server that has been under load


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[TritonServer]:
    repository = write_faulty(tmp_path_factory.mktemp("monitored"))
    with TritonServer(repository) as server, triton.InferenceServerClient(server.grpc_url) as raw:
        server.probe()
        work(raw, server)
        yield server


def work(raw: triton.InferenceServerClient, server: TritonServer) -> None:
    """A bit of everything: images, a refusal, one who leaves."""
    for seed in range(4):
        raw.infer("mri_ldm", tensors(seed=[seed, seed + 1], steps=[5, 3]))
    with pytest.raises(triton.InferenceServerException):
        raw.infer("mri_ldm", tensors(seed=[1], steps=[0]))
    order(server.repository, "unet", seconds=0.01)
    call, done, _ = start(raw, seed=[1], steps=[1000])
    wait_for_rows(server, 1)
    call.cancel()
    assert done.wait(PATIENCE)
    order(server.repository, "unet")
    wait_until_idle(server)


@pytest.fixture(scope="module")
def scraped(server) -> str:
    return metrics_text(server)


def ours(scraped: str) -> str:
    return "\n".join(line for line in scraped.splitlines() if re.match(r"(# \w+ )?mri_ldm_", line)) + "\n"


def table(scraped: str) -> str:
    """The metrics of the sampling models as docs/operations.md lists them."""
    rows = ["| metric | kind | label | meaning |", "|---|---|---|---|"]
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", ours(scraped), re.M))
    for name, meaning in re.findall(r"^# HELP (\S+) (.*)$", ours(scraped), re.M):
        labels = re.findall(rf'^{name}\{{model="mri_ldm"(?:,(\w+)="([^"]*)")?\}}', scraped, re.M)
        ordered = sorted(
            (value for _, value in labels), key=lambda value: (int(re.match(r"\d*", value)[0] or 0), value)
        )
        values = ", ".join(f"`{value}`" for value in ordered)
        label = f"`{labels[0][0]}`: {values}" if labels[0][0] else ""
        rows.append(f"| `{name}` | {kinds[name]} | {label} | {meaning} |")
    return "\n".join(rows)


@pytest.mark.slow
def test_the_documented_table_is_what_the_server_says(scraped) -> None:
    assert table(scraped) in OPERATIONS, f"the table must be:\n{table(scraped)}"


@pytest.mark.slow
def test_promtool_finds_nothing_to_say_about_the_metrics(scraped) -> None:
    assert promtool("check", "metrics", text=ours(scraped)) == ""


@pytest.mark.slow
def test_dashboard_alerts_and_docs_name_metrics_that_exist(scraped) -> None:
    exist = set(re.findall(r"^# TYPE (\S+)", scraped, re.M))
    sampling_metrics = {name for name in exist if name.startswith("mri_ldm_")}
    shown = {name for _, query in QUERIES for name in METRIC.findall(query)}
    watched = {name for rule in RULES for name in METRIC.findall(rule["expr"])}
    assert shown == sampling_metrics
    assert watched <= sampling_metrics
    assert set(re.findall(r"`((?:mri_ldm|nv)_\w+)`", OPERATIONS)) - {"mri_ldm_stream"} <= exist
    tested = {name for name in METRIC.findall(CASES.read_text()) if name != "mri_ldm_stream"}
    assert watched <= tested <= sampling_metrics


# --- with a Prometheus beside it


@pytest.fixture(scope="module")
def prometheus(server, tmp_path_factory) -> Iterator[Prometheus]:
    prometheus = Prometheus(server, tmp_path_factory.mktemp("prometheus"))
    try:
        prometheus.wait_for('up{job="brats-ldm"} == 1')
        with triton.InferenceServerClient(server.grpc_url) as raw:
            work(raw, server)
        prometheus.wait_for("rate(mri_ldm_cancelled_rows_total[10s]) > 0")
        yield prometheus
    finally:
        prometheus.stop()


@pytest.mark.slow
def test_every_panel_shows_something(prometheus) -> None:
    for title, query in QUERIES:
        assert prometheus.query(filled_in(query)), (title, query)


@pytest.mark.slow
def test_prometheus_evaluates_every_alert(prometheus) -> None:
    deadline = time.monotonic() + 20
    while any(rule["health"] == "unknown" for rule in rules(prometheus)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert [(rule["name"], rule["health"]) for rule in rules(prometheus)] == [(rule["alert"], "ok") for rule in RULES]
    assert all(rule["state"] != "firing" for rule in rules(prometheus))


def rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
