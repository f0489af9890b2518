"""Prometheus' own parser of OpenMetrics, which is strict, reads all of `/metrics`; and the numbers are those of use.

Run: python -m unittest test_metrics (in this folder).
"""

import http.client
import time
import unittest

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from websockets.sync.client import connect

from test_websockets import DEADLINE_S, Server

TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Metrics(unittest.TestCase):
    def setUp(self):
        self.server = Server(**{"admin__listen": "127.0.0.1:0"})
        self.addCleanup(self.server.close)

    def scrape(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.admin_port(), timeout=DEADLINE_S)
        self.addCleanup(connection.close)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        self.assertEqual((answer.status, answer.headers["Content-Type"]), (200, TYPE))
        families = list(text_string_to_metric_families(answer.read().decode()))
        self.assertEqual(len({family.name for family in families}), len(families), "each family is told once")
        return {family.name: family for family in families}

    def total(self, families, family, **labels):
        samples = families[family].samples
        return sum(s.value for s in samples if all(s.labels.get(name) == value for name, value in labels.items()))

    def test_every_family_is_read_and_has_its_unit_and_help(self):
        families = self.scrape()
        self.assertGreater(len(families), 35)
        for name, family in families.items():
            self.assertTrue(family.documentation, name)
            self.assertTrue(family.samples, name)
            self.assertTrue(name.startswith(("pushline_", "process_")), name)
            if family.unit:
                self.assertTrue(name.endswith("_" + family.unit), name)
            if name.endswith(("_seconds", "_bytes")):
                self.assertEqual(family.unit, name.rsplit("_", 1)[1])
        self.assertEqual(families["pushline_connections_closed"].type, "counter")
        self.assertEqual(families["pushline_fanout_pass_seconds"].type, "histogram")
        self.assertEqual(families["pushline_build"].type, "info")

    def test_numbers_of_use(self):
        with connect(f"ws://127.0.0.1:{self.server.port}/channels/news") as socket:
            for text in ["a", "b", "c"]:
                self.server.publish("news", text)
                self.assertEqual(socket.recv(timeout=DEADLINE_S), text)
            end = time.monotonic() + DEADLINE_S
            while True:
                families = self.scrape()
                delivered = self.total(families, "pushline_deliveries", transport="websocket")
                if delivered == 3 or time.monotonic() > end:
                    break
            self.assertEqual(delivered, 3)
            self.assertEqual(self.total(families, "pushline_messages_published"), 3)
            self.assertEqual(self.total(families, "pushline_connections", transport="websocket"), 1)


if __name__ == "__main__":
    unittest.main()
