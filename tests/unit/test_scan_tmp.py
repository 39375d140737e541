import pytest
from gpx.engines import state_space as engine
from gpx.linalg.scan import Scan
from tests.equivalence.test_laws import TEMPORAL
from gpx.testing import check_engine
@pytest.mark.parametrize("name", TEMPORAL)
def test_scan(name, monkeypatch):
    monkeypatch.setattr(engine, "chain_of", lambda device: Scan)
    build = TEMPORAL[name]
    check_engine(engine.StateSpace(), build and build())
