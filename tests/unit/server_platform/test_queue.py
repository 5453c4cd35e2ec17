"""The build queue under a race, on both databases."""

from __future__ import annotations

import threading

from covey_contract.building import BuildReport, LeaseRequest, Outcome
from covey_server.db.engine import Database
from covey_server.db.tables import Build
from covey_server.errors import Conflict
from covey_server.registry import builds, versions
from covey_server.registry.versions import Upload

ANY = LeaseRequest(worker="w", targets=("*",), seconds=60)


def _queue(database: Database, count: int) -> None:
    with database.session() as session:
        versions.note_blob(session, "a" * 64, 5, 1)
        versions.note_blob(session, "a" * 64, 5, 2)
        for number in range(count):
            upload = Upload(model="digits", version=str(number), source="a" * 64, source_filename="m.onnx", metadata={})
            version, new = versions.push_version(session, upload, "anna", 1)
            assert new
            builds.queue(session, version.id, ["onnxruntime-fp32"], lambda _: True, 1)


def test_workers_finish_every_job_exactly_once(any_database: Database) -> None:
    _queue(any_database, 20)
    finished: list[int] = []

    def work() -> None:
        while True:
            with any_database.session() as session:
                job = builds.lease(session, ANY, 1000)
            if job is None:
                return
            report = BuildReport(target=job.target, outcome=Outcome.UNSUPPORTED, reason="no")
            with any_database.session() as session:
                builds.finish(session, job.id, job.lease, report, None, 2000)
            finished.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == list(range(1, 21))


def test_of_an_expired_lease_and_the_next_only_one_may_finish(any_database: Database) -> None:
    _queue(any_database, 1)
    with any_database.session() as session:
        first = builds.lease(session, ANY, 1000)
    with any_database.session() as session:
        assert builds.any_expired(session, 61_000)
        assert builds.release_expired(session, 3, 61_000) == [1]
        assert builds.release_expired(session, 3, 61_000) == []
        second = builds.lease(session, ANY, 61_000)
    assert first is not None
    assert second is not None
    refused: list[str] = []
    report = BuildReport(target="onnxruntime-fp32", outcome=Outcome.FAILED, reason="out of memory")

    def finish(lease: str) -> None:
        try:
            with any_database.session() as session:
                builds.finish(session, 1, lease, report, None, 62_000)
        except Conflict as error:
            refused.append(error.code)

    threads = [threading.Thread(target=finish, args=(job.lease,)) for job in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == ["stale_lease"]
    with any_database.reading() as session:
        assert session.get_one(Build, 1).state == "failed"
