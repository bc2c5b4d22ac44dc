import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from clip_train import lease
from clip_train.lease import Holder, InUseError, Lease

HOLD = "import sys, time; from clip_train.lease import Lease; held = Lease(sys.argv[1]); print('held', flush=True); "


def start(place):
    command = [sys.executable, "-c", HOLD + "time.sleep(600)", place]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def quick(monkeypatch):
    """Another machine's sign of life is waited for no longer than a moment."""
    for name, seconds in (("BEAT", 0.05), ("SILENT", 0.5), ("PATIENCE", 2.0)):
        monkeypatch.setattr(lease, name, seconds)


def test_one_at_a_time_and_the_dead_hold_nothing(tmp_path):
    place = str(tmp_path / "run")
    process = start(place)
    try:
        with pytest.raises(InUseError, match=f"is in use by process {process.pid} on .* since "):
            Lease(place)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "run" / "lock").exists()
    with Lease(place, pytest.fail), pytest.raises(InUseError):  # and nothing was waited for
        Lease(place)
    assert not (tmp_path / "run" / "lock").exists()
    with Lease(place):
        pass


def test_what_is_in_a_bucket_is_the_same(bucket):
    place = f"{bucket}/held"
    process = start(place)
    with pytest.raises(InUseError, match=f"is in use by process {process.pid} on"):
        Lease(place)
    process.kill()
    process.communicate()
    with Lease(place, pytest.fail) as held:
        held.check()
    with Lease(place, pytest.fail):
        pass


def elsewhere(place, **changes):
    """A sign of life from another machine, and what renews it."""
    holder = dataclasses.replace(Holder.me(), host="elsewhere", boot="another", pid=7, **changes)

    def beat(number=0):
        (place / "lock").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(holder, beat=number))))

    place.mkdir()
    beat()
    return beat


def test_another_machine_is_watched_and_gone_when_it_is_silent(tmp_path, quick):
    beat, said, ended = elsewhere(tmp_path / "run"), [], threading.Event()

    def live():
        number = 0
        while not ended.wait(0.1):
            beat(number := number + 1)

    living = threading.Thread(target=live)
    living.start()
    with pytest.raises(InUseError, match="in use by process 7 on elsewhere"):
        Lease(str(tmp_path / "run"), said.append)
    ended.set()
    living.join()
    assert "seems to be in use by process 7 on elsewhere; waiting up to" in said[0]
    with Lease(str(tmp_path / "run"), said.append):
        assert len(said) == 2
    elsewhere(tmp_path / "old", since=time.time() - 86400)
    with Lease(str(tmp_path / "old"), pytest.fail):
        pass


def test_who_was_silent_too_long_hears_that_another_goes_on(tmp_path, quick):
    with Lease(str(tmp_path)) as held:
        held.check()
        (tmp_path / "lock").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(Holder.me(), pid=7))))
        held._beats.join(30)
        with pytest.raises(InUseError, match="in use by process 7"):
            held.check()
    assert (tmp_path / "lock").exists()  # the other's
