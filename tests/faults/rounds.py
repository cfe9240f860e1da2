"""A round: actors work on a store, something is killed or stopped, and what must hold is checked.

Everything that is chosen follows from the round's seed. When a process is hit at random also
depends on the machine, so that a replay comes to the same moment only nearly.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from kernels import until
from layout import SCHEMAS

from faults.ledger import Job, Ledger
from faults.points import CANCEL, LAUNCHER, LAUNCHING, NO_ROOM, POINTS, Fault
from faults.world import Actor, Gone, Said, World, quietly
from ipytaskpersist.base.paths import StateDirectory
from ipytaskpersist.base.records import TaskState
from ipytaskpersist.runners import reconciling
from ipytaskpersist.store.file.database import sqlite3
from ipytaskpersist.store.task_store import TaskStore

SIGNALS = (*["SIGKILL"] * 16, *["SIGTERM"] * 3, "SIGSTOP")
"""What happens to a process at random."""
AT_POINTS = (*SIGNALS, *[NO_ROOM] * 4)
"""What happens to it at a point."""
INTERRUPTED = (*AT_POINTS, *["SIGINT"] * 4)
"""The same for those that a person sees, who presses the stop button or Ctrl-C."""
CANCELLED_OFTEN = 0.15
"""In what part of the rounds a task that launches others is cancelled."""
STRIKE_WITHIN_S = 1.5
SETTLE_S = 90
LEAVE_S = 60
FREE_PAGES_AT = 36
"""Where an SQLite file says how many free pages it has: a wrong number is damage without a loss."""
HOWS = ("thread", "shell", "process")
GROUP, WIDTH = "work", 2


@dataclass
class Round:
    """What one seed makes happen."""

    seed: str
    point: str = ""
    """The point to hit; chosen by the seed where none is asked for."""
    signal: str = ""
    """The signal to send; the same."""
    dice: random.Random = field(init=False)
    ledger: Ledger = field(init=False)
    world: World = field(init=False)
    story: list[str] = field(default_factory=list)
    """What was done, and when, for whoever has to understand a failure."""
    begun: float = 0.0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.begun = time.monotonic()

    def run(self) -> list[str]:
        """Play it and return the faults that happened. Raises `AssertionError`."""
        faults, play = self._plan()
        with World(faults) as self.world:
            self.ledger = Ledger(self.world.state_dir)
            self.ledger.may_lack_values = any(fault.signal == NO_ROOM for fault in faults)
            is_stopped = "SIGSTOP" in [self.signal, *(fault.signal for fault in faults)]
            # What was begun beside a restore is gone after it.
            if is_stopped and play is not Round.restore:
                self._beside(play)
            else:
                play(self)
            self.world.wait_for_the_stopped()
            self._settle()
            self.world.collect()
            return self.world.sprung

    def tell(self, what: str) -> None:
        self.story.append(f"{time.monotonic() - self.begun:6.2f} s  {what}")

    # What to do.

    def _plan(self) -> tuple[list[Fault], Play]:
        if self.signal == CANCEL or not (self.signal or self.dice.random() > CANCELLED_OFTEN):
            return self._plan_of_cancel(), Round.cancel_a_launcher
        at_a_point = self.dice.random() < 0.75 or self.signal == NO_ROOM
        point = self.point or (self.dice.choice([*POINTS]) if at_a_point else "")
        if not point:
            return [], Round.work_and_strike
        role = self.dice.choice(POINTS[point].roles)
        often = point.startswith(("transaction", "statement", "output"))
        most = 12 if often else 3 if point.startswith(("try", "run", "share")) else 1
        hit = 1 if role == "command" else self.dice.randint(1, most)
        choices = AT_POINTS if role in ("supervisor", "child", "fork server") else INTERRUPTED
        fault = Fault(role, point, hit, self._signal(choices))
        self.tell(fault.text)
        return [fault], self._play_for(point, role)

    def _plan_of_cancel(self) -> list[Fault]:
        """At a point of a launch, or at any moment."""
        if not self.point and self.dice.random() < 0.25:
            return []
        point = self.point or self.dice.choice(LAUNCHING)
        most = 1 if point.startswith(("supervisor", "key")) else 3
        role = "kernel" if self.dice.random() < 0.25 else "session"
        fault = Fault(role, point, self.dice.randint(1, most), CANCEL)
        self.tell(fault.text)
        return [fault]

    def _signal(self, choices: Sequence[str] = SIGNALS) -> str:
        return self.signal or self.dice.choice(choices)

    def _play_for(self, point: str, role: str) -> Play:
        """What makes a process of this role come to this point."""
        if point in PLAYS:
            return PLAYS[point]
        return self.dice.choice(COMMANDS) if role == "command" else Round.work

    def job(self, how: str = "", *, is_endless: bool = False) -> Job:
        """A job that no other has."""
        how = how or self.dice.choice(HOWS)
        pause_s = self.dice.choice([0, 0, 0.002, 0.01, 0.05])
        most = 3000 if pause_s == 0 else max(3, int(0.5 / pause_s))
        if how == "shell" and pause_s:
            most = min(most, 20)
        lines = self.dice.randint(1, most)
        job = Job(f"job{len(self.ledger.jobs)}", how, lines, pause_s, is_endless)
        self.ledger.jobs[job.name] = job
        return job

    def launch(self, actor: Actor, job: Job) -> None:
        """Launch a job. Raises `Gone`."""
        self.tell(f"{actor.role} {actor.pid} launches {job}")
        if actor.run(job.cell).is_done:
            self.ledger.acknowledged.add(job.name)

    def command(self, *arguments: str, armed: bool = True) -> Said:
        said = self.world.command(*arguments, armed=armed)
        self.tell(f"{' '.join(arguments)} → {said.is_done} {said.text[:300]!r}")
        return said

    def actor(self) -> Actor | None:
        """A session or, now and then, a kernel; None when it was killed before it was there."""
        kind = self.world.kernel if self._wants_a_kernel() else self.world.session
        return quietly(kind)

    def _wants_a_kernel(self) -> bool:
        roles = {fault.role for fault in self.world.faults}
        return "kernel" in roles or ("session" not in roles and self.dice.random() < 0.25)

    # Plays.

    def _beside(self, play: Play) -> None:
        """Play, and have another session work while one process is stopped."""
        with ThreadPoolExecutor(1) as pool:
            played = pool.submit(play, self)
            until(lambda: self.world.is_any_stopped or played.done(), SETTLE_S, "the stop")
            if not played.done():
                bystander = self.world.session(armed=False)
                for how in ("thread", "shell"):
                    self.launch(bystander, self.job(how))
                self.tell(f"beside it: {bystander.run('%bg_list').text[-300:]!r}")
            played.result()

    def work(self) -> None:
        """Launch jobs of every kind, look at them, cancel and run again."""
        actor = self.actor()
        for _turn in range(self.dice.randint(2, 5)):
            if actor is None:
                actor = quietly(self.world.session)
            if actor is None:
                continue
            try:
                self._work_of(actor)
            except Gone:
                self.tell(f"{actor.role} {actor.pid} has gone")
                actor = None
        if self.dice.random() < 0.3:
            self.ledger.look()

    def _work_of(self, actor: Actor) -> None:
        roll = self.dice.random()
        how = self.dice.choice(self._hows())
        if roll < 0.6 or not self.ledger.jobs:
            # What a supervisor leaves when it dies ends by itself only when it prints or is done.
            stays = "thread" not in self._hows() and self.dice.random() < 0.5
            self.launch(actor, self.job(how, is_endless=stays))
        elif roll < 0.75:
            self.launch(actor, self.job(how, is_endless=True))
            if self.dice.random() < 0.5:
                self._cancel(actor)
        elif roll < 0.85:
            actor.run("%bg_list")
            self.ledger.look()
        elif roll < 0.95:
            self._wait_for_the_ended(actor)
        else:
            actor.run("%bg_search line")

    def _hows(self) -> Sequence[str]:
        """The kinds of job that come to the point, if one is to be hit."""
        for fault in self.world.faults:
            if fault.role == "child":
                return ("process",)
            if fault.role == "supervisor" or fault.point.startswith(("supervisor", "environment")):
                return ("shell", "process")
            if fault.point.startswith(("task", "output", "log", "payload", "key")):
                return ("thread",)
        return HOWS

    def cancel(self) -> None:
        """Cancel what would go on for ever."""
        actor = self.actor()
        try:
            if actor is not None:
                self.launch(actor, self.job(is_endless=True))
                self._cancel(actor)
        except Gone:
            self.tell("the session has gone")

    def _cancel(self, actor: Actor) -> None:
        by_command = any(fault.role == "command" for fault in self.world.faults)
        if not by_command and self.dice.random() < 0.7:
            actor.run("%bg_cancel --all --yes")
        else:
            self.command("cancel", "--all", "--yes")

    def cancel_a_launcher(self) -> None:
        """Cancel a task that launches others. It alone ends by that."""
        actor = self.world.kernel() if self._wants_a_kernel() else self.world.session()
        # The launcher is the one that needs the first supervisor, or the first signature.
        needs_a_key = any(fault.point.startswith("key") for fault in self.world.faults)
        untouched = [self.job("shell" if needs_a_key else "thread") for _turn in range(2)]
        for job in untouched:
            self.launch(actor, job)
        launcher = self.launcher()
        self.launch(actor, launcher)
        if not self.world.faults:
            self._cancel_at_any_moment(actor, launcher)
        self._wait_for_all()
        self._can_write()
        self.ledger.launches_are_there()
        self._are_untouched(launcher, [*untouched, *launcher.launches])
        later = self.job("thread")
        self.launch(actor, later)
        self._wait_for_all()
        self._are_untouched(launcher, [later])

    def launcher(self) -> Job:
        """A job that launches others, in the thread of its own."""
        hows = [*["process", "thread"] * 2, "thread", "shell", self.dice.choice(HOWS)]
        self.dice.shuffle(hows)
        launches = tuple(self.job(how) for how in ("process", *hows))
        name = f"{LAUNCHER}{len(self.ledger.jobs)}"
        job = Job(name, "thread", len(launches), 0, launches=launches)
        self.ledger.jobs[name] = job
        return job

    def _cancel_at_any_moment(self, actor: Actor, launcher: Job) -> None:
        time.sleep(self.dice.uniform(0, 0.5))
        if self.dice.random() < 0.5:
            actor.run(f"%bg_cancel {launcher.name} --yes")
        else:
            self.command("cancel", launcher.name, "--yes")
        self.world.sprung.append(f"{actor.role}/at random/{CANCEL}")

    def _can_write(self) -> None:
        """Whether another process gets the lock of the store: the actors are still there."""
        store = TaskStore(StateDirectory(self.world.state_dir)).open()
        with closing(store), store.database.transaction():
            self.tell("the store can be written")

    def _are_untouched(self, launcher: Job, others: Sequence[Job]) -> None:
        states = {seen.name: seen.state for seen in self.ledger.read().values()}
        self.tell(f"{launcher.name} is {states[launcher.name].value}")
        assert states[launcher.name] in (TaskState.CANCELLED, TaskState.COMPLETED), states
        touched = {
            job.name: states[job.name].value
            for job in others
            if states.get(job.name, TaskState.COMPLETED) is not TaskState.COMPLETED
        }
        assert not touched, f"the cancellation of {launcher.name} has ended {touched}"

    def _wait_for_the_ended(self, actor: Actor) -> None:
        """Run one again that has ended."""
        ended = [seen.place[1] for seen in self.ledger.read().values() if seen.state.is_final]
        if ended:
            number = self.dice.choice(sorted(ended))
            self.tell(f"rerun {number} → {actor.run(f'%bg_rerun {number}').is_done}")

    def work_and_strike(self) -> None:
        """Hit one of the processes at any moment of the work."""
        role = self.dice.choice(["kernel", "session", "supervisor", "command", "task"])
        name, after_s = self._signal(), self.dice.uniform(0, STRIKE_WITHIN_S)
        self.tell(f"{name} to a {role} after {after_s:.2f} s")
        dice = random.Random(self.dice.random())

        def strike() -> None:
            time.sleep(after_s)
            self.world.strike(role, name, dice)

        thread = threading.Thread(target=strike)
        thread.start()
        try:
            self.dice.choice([Round.work, Round.work, Round.queue, *COMMANDS])(self)
        except Gone:
            self.tell("what was hit had more to do")
        finally:
            thread.join()

    def ended_tasks(self, count: int = 4) -> list[str]:
        """Tasks that have ended, in a store of their own; their ids."""
        actor = self.world.session(armed=False)
        for _turn in range(count):
            self.launch(actor, self.job(self.dice.choice(["thread", "shell"])))
        self._wait_for_all()
        self.world.leave(actor)
        self.ledger.look()
        return [task for task, seen in self.ledger.seen.items() if seen.state.is_final]

    def queue(self) -> None:
        """Launch jobs of two sessions into one group, some after others, and pause some."""
        self.world.session(armed=False)
        self.command("group", GROUP, "--width", str(WIDTH), armed=False)
        actors = [actor for _turn in range(2) if (actor := self.actor()) is not None]
        by_notebook: dict[Actor, str] = {}
        for _turn in range(self.dice.randint(4, 8)):
            if not actors:
                break
            actor = self.dice.choice(actors)
            job = replace(self.job(self.dice.choice(self._hows())), group=GROUP)
            if self.dice.random() < 0.5:
                job = replace(job, after=by_notebook.get(actor, ""))
            self.ledger.jobs[job.name] = job
            try:
                self.launch(actor, job)
                by_notebook[actor] = job.name
            except Gone:
                self.tell(f"{actor.role} {actor.pid} has gone")
                actors.remove(actor)
            if self.dice.random() < 0.4:
                self.command("pause", "--group", GROUP)
                self.command("continue", "--group", GROUP)
            self.ledger.queue_is_kept(GROUP, WIDTH)
        self.command("continue", "--group", GROUP, armed=False)
        self._wait_for_all()
        self.ledger.queue_is_kept(GROUP, WIDTH)

    def try_again(self) -> None:
        """Launch jobs that fail at first, and lose those who watch over them, now and then."""
        actor = self.actor()
        for _turn in range(self.dice.randint(1, 3)):
            job = self._noting(self.job(self.dice.choice(["shell", "process"])))
            job = replace(job, retries=5, fails=self.dice.randint(1, 3))
            if self._is_hit("command"):  # it is to find a task that was running
                job = replace(job, lines=20, pause_s=0.1)
            self.ledger.jobs[job.name] = job
            actor = self._launched_by(actor, job)
        if self.dice.random() < 0.3 or self._is_hit("command"):
            until(lambda: any(seen.stdout for seen in self.ledger.read().values()))
            self._lose_all_but_tasks()
            self.command("list", "--all")
        self._wait_for_all()
        self.ledger.tries_are_kept()
        self.ledger.all_ran_once()

    def repeat(self) -> None:
        """Have a job run every two seconds for a while, whatever becomes of its supervisor."""
        job = replace(self._noting(self.job("shell")), lines=3, pause_s=0, every="2s")
        self.ledger.jobs[job.name] = job
        self._launched_by(self.actor(), job)
        if self.dice.random() < 0.3:
            time.sleep(self.dice.uniform(0, 2))
            self._lose_all_but_tasks()
        until(lambda: self._has_run(job, 4), SETTLE_S, f"four runs of {job.name}")
        until(self._has_ended_all_runs, SETTLE_S, "the end of the schedule")
        self.ledger.runs_are_kept()
        self.ledger.all_ran_once()

    def share(self) -> None:
        """Launch jobs of two sessions that book so much memory that two do not fit."""
        share = f"{int(psutil.virtual_memory().available * 0.55 / 1e6)}M"
        actors = [self.actor(), self.actor()]
        for turn in range(self.dice.randint(3, 5)):
            job = replace(self.job(self.dice.choice(["shell", "process"])), memory=share)
            self.ledger.jobs[job.name] = job
            actors[turn % 2] = self._launched_by(actors[turn % 2], job)
            self.ledger.shares_are_kept()
        if self.dice.random() < 0.3:
            self._lose_all_but_tasks()
        until(self._all_have_ended_in_turn, SETTLE_S, "the end of all that book memory")
        last = replace(self.job("shell"), memory=share)
        self.ledger.jobs[last.name] = last
        self.launch(self.world.session(armed=False), last)
        self._wait_for_all()
        states = {seen.name: seen.state for seen in self.ledger.read().values()}
        assert states[last.name] is TaskState.COMPLETED, "what was booked is free again"

    def _noting(self, job: Job) -> Job:
        """The job, each run of which notes that it ran."""
        return replace(job, notes=str(self.world.folder / f"ran-{job.name}"))

    def _launched_by(self, actor: Actor | None, job: Job) -> Actor | None:
        """Launch a job. Returns the actor, or None if it has gone."""
        try:
            if actor is None:
                actor = self.world.session(armed=False)
            self.launch(actor, job)
        except Gone:
            self.tell("the session has gone")
            return None
        return actor

    def _is_hit(self, role: str) -> bool:
        return any(fault.role == role for fault in self.world.faults)

    def _has_run(self, job: Job, times: int) -> bool:
        self._look_for_the_dead()
        path = Path(job.notes)
        if job.name not in self.ledger.acknowledged and not self.ledger.live():
            return True  # its launch was not acknowledged
        return path.exists() and len(path.read_text().split()) >= times

    def _has_ended_all_runs(self) -> bool:
        live = self.ledger.live()
        for name in {task.name for task in live}:  # its latest run, which is the one that waits
            self.command("cancel", name, "--yes", armed=False)
        return not live

    def _all_have_ended_in_turn(self) -> bool:
        self.ledger.shares_are_kept()
        return self._all_have_ended()

    def _lose_all_but_tasks(self) -> None:
        """Kill kernels, sessions and supervisors with all that is theirs but the tasks."""
        self.tell("all are killed that watch over tasks")
        tasks = self.world.processes_of_tasks()
        for process in self.world.processes():
            if process.pid not in tasks:
                with suppress(psutil.Error):
                    process.kill()

    def archive(self) -> None:
        """Move ended tasks to the archive and back, several times."""
        ids = self.ended_tasks()
        self.command("archive", *self._some(ids))
        self.ledger.look()
        self.command("unarchive", *self._some(ids))
        self.ledger.look()
        self.command("archive", *ids)

    def delete(self) -> None:
        """Delete some of the ended tasks, archived ones too."""
        ids = self.ended_tasks()
        if self.dice.random() < 0.5:
            self.command("archive", *self._some(ids), armed=False)
        doomed = self._some(ids)
        self.ledger.may_be_missing.update(doomed)
        said = self.command("delete", "--yes", *doomed)
        if said.is_done:
            left = self.ledger.read().keys() & {*doomed}
            assert not left, f"deleted, and there: {left}"

    def restore(self) -> None:
        """Make a backup, do something else, and go back to it."""
        self.ended_tasks(2)
        file = self.world.folder / "backup.db"
        self.command("backup", str(file), armed=self.dice.random() < 0.5)
        if not file.exists():
            self.command("backup", str(file), armed=False)
        before = {*self.ledger.seen}
        self.ended_tasks(2)
        after = {*self.ledger.seen}
        self.ledger.may_be_either = [before, after]
        said = self.command("restore", "--yes", str(file))
        found = {*self.ledger.read()}
        assert found == before if said.is_done else found in (before, after), (
            f"{said.text}: {found} is neither {before} nor {after}"
        )

    def move(self) -> None:
        """Export everything, delete some, and import it again, twice."""
        ids = self.ended_tasks()
        file = self.world.folder / "tasks.jsonl"
        is_hit = "export written" in [fault.point for fault in self.world.faults]
        armed = is_hit or self.dice.random() < 0.3
        self.command("export", "--all", "--output", str(file), armed=armed)
        if not file.exists():
            self.command("export", "--all", "--output", str(file), armed=False)
        doomed = self._some(ids)
        self.command("delete", "--yes", *doomed, armed=False)
        self.ledger.may_be_missing.update(doomed)
        self.command("import", str(file))
        self.ledger.look()
        said = self.command("import", str(file), armed=False)
        assert said.is_done, said.text

    def migrate(self) -> None:
        """Open the store of an earlier version, by several processes at once."""
        self.world.state_dir.mkdir(mode=0o700)
        file = self.dice.choice(sorted(SCHEMAS.glob("schema-*.db")))
        shutil.copy(file, self.world.state_dir / "tasks.db")
        with closing(sqlite3.connect(file)) as old:
            ids = {task_id for (task_id,) in old.execute("SELECT id FROM tasks")}
        by_command = {fault.role for fault in self.world.faults} == {"command"}
        program = self.world.start("list", "--all", armed=by_command)
        if not by_command:
            self.actor()
        text, _ = program.communicate(timeout=SETTLE_S)
        self.tell(f"opened {file.name}: {text[:300]!r}")
        self.command("list", "--all")
        assert ids <= self.ledger.read().keys(), "a migration has lost tasks"

    def repair(self) -> None:
        """Have a store repaired of which everything can be read: all of it must come through."""
        self.ended_tasks()
        with (self.world.state_dir / "tasks.db").open("r+b") as file:
            file.seek(FREE_PAGES_AT)
            file.write((1000).to_bytes(4, "big"))
        (self.world.state_dir / "tasks.db.damaged").touch()
        self.command("list", "--all")
        self.command("list", "--all", armed=False)
        self.ledger.look()

    def lose_the_owner(self) -> None:
        """Kill a kernel with its work, so that a command has to say what became of it."""
        actor = self.world.session(armed=False)
        self.launch(actor, self.job("thread", is_endless=True))
        self.launch(actor, self.job(self.dice.choice(["shell", "process"]), is_endless=True))
        until(lambda: any(seen.stdout for seen in self.ledger.read().values()))
        self._lose_all_but_tasks()
        self.command("list", "--all")

    def leave(self) -> None:
        """End a session that leaves work, so that its supervisor has the last word."""
        actor = self.actor()
        try:
            if actor is not None:
                self.launch(actor, self.job(self.dice.choice(["shell", "process"])))
                self.world.leave(actor)
        except Gone:
            self.tell("the session has gone")

    def _some(self, ids: Sequence[str]) -> list[str]:
        return self.dice.sample(list(ids), self.dice.randint(1, len(ids)))

    # What must hold.

    def _settle(self) -> None:
        """Let all come to its end, and check after each step that nothing is lost."""
        self.tell("what must hold")
        self._owned_or_ended()
        self.ledger.look()
        # One that is stopped may hold the store's lock for longer than a command waits.
        until(self._is_all_cancelled, SETTLE_S, "a cancellation of what is left")
        self._wait_for_all()
        self.ledger.look()
        self.ledger.launches_are_there()
        until(lambda: not self._of_no_live_task(), LEAVE_S, "the end of all processes of tasks")
        if self.dice.random() < 0.2:
            self._life_goes_on()
        self._all_leave()
        self.tell("all have left")
        self.ledger.look()
        self.ledger.results_are_there()
        self.ledger.all_ran_once()
        self.ledger.is_sound()

    def _is_all_cancelled(self) -> bool:
        return (
            not self.ledger.live() or self.command("cancel", "--all", "--yes", armed=False).is_done
        )

    def _owned_or_ended(self) -> None:
        """After a look, no task runs whose owner is gone, and no process is nobody's."""
        self._look_for_the_dead()
        orphans = {*self.ledger.without_an_owner()}
        if orphans:
            # An owner that was just being hit may have died after that look.
            self._look_for_the_dead()
            orphans &= {*self.ledger.without_an_owner()}
        assert not orphans, f"running without an owner: {orphans}"
        until(lambda: not self._of_no_live_task(), LEAVE_S, "an owner for every process of a task")

    def _of_no_live_task(self) -> dict[int, str]:
        """Processes that belong to a task that has ended, or was never there."""
        processes = self.world.processes_of_tasks()
        live = {task.id for task in self.ledger.live()}
        return {pid: task for pid, task in processes.items() if task not in live}

    def _wait_for_all(self) -> None:
        """Until all tasks have ended, also those whose owner is hit meanwhile."""
        until(self._all_have_ended, SETTLE_S, "the end of all tasks")

    def _all_have_ended(self) -> bool:
        live = self.ledger.live()
        if live:
            self._look_for_the_dead()
        return not live

    def _look_for_the_dead(self) -> None:
        """What every reading verb does first: most often without the start of a terminal."""
        # What is left to be adopted is adopted by a process of this world.
        jobs = self.ledger.jobs.values()
        may_adopt = any(
            job.retries or job.every or job.group or job.after or job.memory for job in jobs
        )
        if may_adopt or self.dice.random() < 0.3:
            said = self.command("list", "--all", armed=False)
            if said.is_done:
                return
            assert said.was_killed, said.text  # it may be the very process that is hit at random
        with closing(TaskStore(StateDirectory(self.world.state_dir)).open()) as store:
            reconciling.reconcile(store, "")

    def _life_goes_on(self) -> None:
        """A new session finds everything, and its tasks run."""
        actor = self.world.session(armed=False)
        jobs = [self.job(how) for how in ("thread", "shell")]
        for job in jobs:
            self.launch(actor, job)
        self._wait_for_all()
        states = {seen.name: seen.state for seen in self.ledger.read().values()}
        assert all(states[job.name] is TaskState.COMPLETED for job in jobs), states

    def _all_leave(self) -> None:
        """The actors end, and then their supervisors, by themselves."""
        self.world.end_actors()
        try:
            until(lambda: not self.world.processes(), LEAVE_S, "the end of all processes")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.world.command_lines()}") from error


Play = Callable[[Round], None]
COMMANDS: tuple[Play, ...] = (Round.archive, Round.delete, Round.restore, Round.move)
PLAYS: dict[str, Play] = {
    "migration begun": Round.migrate,
    "migration step": Round.migrate,
    "migration written": Round.migrate,
    "backup written": Round.restore,
    "backup renamed": Round.restore,
    "tasks to restore": Round.restore,
    "tasks restored": Round.restore,
    "export written": Round.move,
    "archive copied": Round.archive,
    "archive moved": Round.archive,
    "copy chosen": Round.archive,
    "rows saved": Round.repair,
    "store set aside": Round.repair,
    "store exchanged": Round.repair,
    "tasks interrupted": Round.lose_the_owner,
    "processes interrupted": Round.lose_the_owner,
    "queue settled": Round.queue,
    "room looked for": Round.queue,
    "task set running": Round.queue,
    "pause asked": Round.queue,
    "task to pause": Round.queue,
    "task stopped": Round.queue,
    "pause recorded": Round.queue,
    "room to go on": Round.queue,
    "try to add": Round.try_again,
    "try added": Round.try_again,
    "try ended": Round.try_again,
    "try claimed": Round.try_again,
    "run to add": Round.repeat,
    "run added": Round.repeat,
    "run claimed": Round.repeat,
    "run ended": Round.repeat,
    "share decided": Round.share,
    "share booked": Round.share,
    "share used": Round.share,
    "share to free": Round.share,
    "cancel asked": Round.cancel,
    "session to end": Round.leave,
    "supervisor to leave": Round.leave,
    "supervisor left": Round.leave,
}
