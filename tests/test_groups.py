"""Tests that run in several processes stay in their groups, so that what a module or the session makes is made once."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="runs in one process")
def test_a_test_knows_its_group(request):
    assert request.node.nodeid.endswith("@test_groups")
