"""DBOS Transact, as docs.dbos.dev says in "Transactions & Datasources" and "Workflows" (workflow IDs and idempotency)."""

from __future__ import annotations

from typing import Any, ClassVar

from dbos import DBOS, SetWorkflowID, SQLAlchemyDatasource

from benchmarks.field.adapter import Adapter, Function


class Dbos(Adapter):
    """A datasource transaction in a workflow, whose ID is the request's."""

    name = "dbos"
    distribution = "dbos"
    documentation = "docs.dbos.dev/python/tutorials/transaction-tutorial, workflow-tutorial"
    not_applicable: ClassVar[dict[str, str]] = {
        "rolled back": "the datasource owns the transaction, so the caller cannot roll it back; see failure replayed",
    }

    def start(self) -> None:
        DBOS(config={"name": "field", "system_database_url": self._url(self.url), "log_level": "CRITICAL"})
        datasource = SQLAlchemyDatasource.create(self._url(self.engine.url), engine=self.engine)

        @datasource.transaction()
        def pay(request_id: str, amount: int) -> Any:
            return self.work(datasource.sql_session(), request_id, amount)

        @DBOS.workflow()
        def order(request_id: str, amount: int) -> Any:
            return pay(request_id, amount)

        self.order = order
        DBOS.launch()

    def stop(self) -> None:
        DBOS.destroy(destroy_registry=True)

    def deliver(self, request_id: str, amount: int) -> Any:
        with SetWorkflowID(request_id):
            return self.order(request_id, amount)

    def guard(self, function: Function, request_id: str, amount: int) -> Any:
        raise NotImplementedError

    @staticmethod
    def _url(url: Any) -> str:
        return url.render_as_string(hide_password=False)
