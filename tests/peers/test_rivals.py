"""The servers that Penstock is measured against answer as the models' sources do, and leave nothing behind.

They are large: their environments take minutes to make and 900 MB, so these are tests of long campaigns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.benchmarks.cells import Kind, ask, drive
from penstock.benchmarks.processes import NotBuilt
from penstock.benchmarks.rivals import RIVALS
from penstock.benchmarks.seeded import publish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals")
    return folder, publish(folder, ("plain", "mlp"))


@pytest.mark.parametrize("key", ["cpp", "cpp1", "triton", "mlserver", "nghttp2"])
def test_a_rival_answers_every_row_as_the_source_does(key, published, capsys):
    folder, models = published
    rival = RIVALS[key]
    own = {name: model for name, model in models.items() if name in rival.models}
    try:
        server = rival.start(folder, own, "", print)
    except NotBuilt as error:
        pytest.skip(str(error))
    with server:
        family = server.family
        assert server.resident_bytes() > 1_000_000
        for name, model in own.items():
            for rows in (1, 64):
                question = ask(server.address, Kind(name, "vector", rows), model, echo=rival.echo)
                run = drive(server.address, question, 8, 0.2, [server.cpu_s])
                assert run.rate > 0
                assert run.cpu_us > 0
                assert 0 < run.p50_us <= run.p99_us
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
