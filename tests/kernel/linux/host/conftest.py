import pytest

from kernel.linux.host import unavailable


@pytest.fixture(scope="session", autouse=True)
def _needs_the_host():
    if reason := unavailable():
        pytest.skip(f"no host to compare with: {reason}")


@pytest.fixture
def host():
    from kernel.linux.host.process import HostProcess

    with HostProcess() as process:
        yield process


@pytest.fixture
def observer(host):
    from kernel.linux.host.observe import Observer

    with Observer(host.pid) as observer:
        yield observer
