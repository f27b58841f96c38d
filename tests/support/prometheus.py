"""A Prometheus beside a server, with deploy/monitoring."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness.command import tool
from server.ports import free_port
from server.process import TritonServer
from support.common import ROOT

MONITORING = ROOT / "deploy" / "monitoring"


class Prometheus:
    """A real one, with the committed rules, that scrapes a server every half second; labels: more for its series."""

    def __init__(self, server: TritonServer, folder: Path, labels: Mapping[str, str] | None = None) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        config["rule_files"] = [str(MONITORING / "alerts.yml")]
        target = urllib.parse.urlsplit(server.metrics_url).netloc
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target], "labels": dict(labels or {})}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        port = free_port("127.0.0.1")
        self._url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def get(self, path: str, **values: str) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(values)}"
        return json.load(urllib.request.urlopen(url, timeout=30))["data"]

    def query(self, text: str) -> list[Any]:
        """The series of an instant query."""
        series: list[Any] = self.get("query", query=text)["result"]
        return series

    def wait_for(self, text: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.query(text):
                    return
            except urllib.error.URLError:
                pass  # not up yet
            assert time.monotonic() < deadline, text
            assert self._process.poll() is None, "Prometheus has ended"
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
