"""What survives what, gone through by one kernel: `python survival_in_container.py STATE NAME`.

It is run in several containers at once that share a store, and asserts that each event does to its
own tasks what it does on a machine alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from kernels import NotebookKernel, until


class Events:
    """The events of the table, and what they do to a kernel's tasks."""

    def __init__(self, kernel: NotebookKernel) -> None:
        self._kernel = kernel
        self._gate = kernel.cwd / "gate"

    def states(self) -> dict[str, str]:
        """The state, and the reason of an interrupted one, of each task of the notebook."""
        tasks = json.loads(self._kernel.run("%bg_list --json").text)["tasks"]
        return {task["name"]: f"{task['state']} {task['reason'] or ''}".strip() for task in tasks}

    def expect(self, **wanted: str) -> None:
        """Wait until the tasks are so, and none has another state than now or then."""
        before = self.states()
        until(lambda: self.states() == wanted, message=f"{wanted} after {before}, {self.states()}")

    def launch(self, *names: str) -> None:
        """Launch tasks that print "begun", and end once there is the gate."""
        waiting = (
            f"import pathlib, time\nprint('begun', flush=True)\n"
            f"while not pathlib.Path({str(self._gate)!r}).exists(): time.sleep(0.05)\n"
            f"value = 40 + 2\nvalue"
        )
        bodies = {
            "thread": f"%%background thread\n{waiting}",
            "python": f"%%background --process python\n{waiting}",
            "shell": f"%%background --shell shell\necho begun; "
            f"until [ -e {self._gate} ]; do sleep 0.1; done; exit 3",
            "doomed": "%%background --shell doomed\necho begun; exec sleep 200",
        }
        for name in names:
            self._kernel.run(bodies[name])
        for name in names:
            output = f"%bg_output {name}"
            until(lambda output=output: "begun" in self._kernel.run(output).text, message=output)

    def run(self) -> None:
        """All of them."""
        kernel = self._kernel
        self.launch("thread", "python", "shell")
        running = {"thread": "running", "python": "running", "shell": "running"}
        kernel.interrupt()
        self.expect(**running)
        kernel.restart()
        kernel.run("%load_ext ipytaskpersist")
        gone = running | {"thread": "interrupted kernel restarted or shut down"}
        until(lambda: self.states()["thread"].startswith("interrupted"))
        gone["thread"] = self.states()["thread"]
        self.expect(**gone)
        kernel.kill()
        kernel.revive()
        kernel.run("%load_ext ipytaskpersist")
        self.expect(**gone)
        self.launch("doomed")
        kernel.run("%bg_cancel doomed")
        self.expect(**gone, doomed="cancelled cancelled")
        self._gate.touch()
        kernel.run("%bg_wait python shell", check=False)
        done = {"python": "completed", "shell": "failed exit status 3"}
        self.expect(**gone | done, doomed="cancelled cancelled")
        assert kernel.run("%bg_result python").text.strip() == "42"


def main(state_dir: str, name: str) -> None:
    with NotebookKernel(Path(state_dir), notebook=f"/shared/{name}.ipynb") as kernel:
        kernel.run("%load_ext ipytaskpersist")
        Events(kernel).run()
    print("all as promised")


if __name__ == "__main__":
    main(*sys.argv[1:])
