"""The broker's parts on both kinds of server."""

from __future__ import annotations

from tests.harness.broker import appender, cluster_node, log, patient, redis, settings

__all__ = ["appender", "cluster_node", "log", "patient", "redis", "settings"]
