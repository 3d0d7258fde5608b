"""A DBOS workflow whose step calls the page's tool: `python dbos_step.py DATABASE_URL SYSTEM_URL PAGE WORKFLOW_ID [die]`.

With `die` the process is killed behind the tool's COMMIT, before DBOS has recorded the step. The next process recovers it.
"""

import os
import sys
from pathlib import Path

from dbos import DBOS, SetWorkflowID
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from test_recipes import ORDER, Payment


def main(url: str, system_url: str, page: str, workflow_id: str, *how: str) -> None:
    names = {"SessionLocal": sessionmaker(create_engine(url)), "Payment": Payment}
    exec(compile(Path(page).read_text(), page, "exec"), names)
    DBOS(config={"name": "shop", "system_database_url": system_url, "log_level": "ERROR", "run_admin_server": False})

    @DBOS.step()
    def pay() -> str:
        answer = str(names["pay"](**ORDER))
        if how:
            os._exit(9)
        return answer

    @DBOS.workflow()
    def order() -> str:
        return pay()

    DBOS.launch()
    if how:
        with SetWorkflowID(workflow_id):
            DBOS.start_workflow(order)
    print(DBOS.retrieve_workflow(workflow_id).get_result())
    DBOS.destroy()


if __name__ == "__main__":
    main(*sys.argv[1:])
