"""What every test shares: one thread, no hub, no network, no accelerator search, steady hypothesis, tiny models."""

import os

# Before torch or transformers are imported by any test module.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import atexit
import ipaddress
import logging
import shutil
import socket
import tempfile
import warnings

import pytest
from hypothesis import settings

# What programs keep between two starts is not the user's, and not an earlier test run's.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="vlm_mhpo-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# Derandomised: a red test is a changed program, never a new draw.
settings.register_profile("steady", derandomize=True, deadline=None, database=None)
# The long lane looks for new ones; what fails is printed with the line that repeats it.
settings.register_profile("long", max_examples=1000, derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile("long" if os.environ.get("LANE") == "long" else "steady")


def is_local(host: str | bytes | None) -> bool:
    """Whether a connection to `host` stays on this machine."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@pytest.fixture(scope="session", autouse=True)
def network_attempts():
    """Every host that this process tried to reach beyond itself; each try fails. Child processes are not covered."""
    attempts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:

        def refuse_others(owner, name: str, host_of) -> None:
            original = getattr(owner, name)

            def guarded(*args, **kwargs):
                host = host_of(*args, **kwargs)
                if not is_local(host):
                    attempts.append(f"{name} {host}")
                    raise ConnectionRefusedError(f"a test must not reach the network: {attempts[-1]}")
                return original(*args, **kwargs)

            patch.setattr(owner, name, guarded)

        def host_of_address(_, address, *__):
            # Unix sockets have a path for an address.
            return address[0] if isinstance(address, tuple) else None

        refuse_others(socket.socket, "connect", host_of_address)
        refuse_others(socket.socket, "connect_ex", host_of_address)
        for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
            refuse_others(socket, name, lambda host, *_, **__: host)
        yield attempts


class Announcements(logging.Handler):
    """What transformers logs of a removal to come, as the warning that other places give; pytest makes it an error."""

    def emit(self, record: logging.LogRecord) -> None:
        if "will be removed in" in record.getMessage():
            warnings.warn(record.getMessage(), FutureWarning, stacklevel=2)


logging.getLogger("transformers").addHandler(Announcements())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(family)`: the tiny model of a family, built on first use and shared. Tests must not change its weights."""
    from tests.builders import build_and_load

    built = {}

    def get(family: str):
        if family not in built:
            built[family] = build_and_load(tmp_path_factory.mktemp("tiny") / family, family)
        return built[family]

    return get
