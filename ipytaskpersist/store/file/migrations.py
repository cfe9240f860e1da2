"""The store's schema, a function for each step. Steps are only ever added.

Two versions of the package may use a store at once: a kernel goes on with the one that it has
loaded, while the next one has been upgraded. Each step says whether the version before may write
what the later one has brought up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlite_utils.db import Database

STEPS: list[Any] = []
"""The steps in their order. ``PRAGMA user_version`` is how many of them a store has had."""


ADDITIVE: set[Any] = set()
"""The steps after which earlier versions may go on writing."""
VERSION_BITS = 16


def step(function: Any) -> Any:
    """Register a step under its own name. Earlier versions write nothing more after it."""
    STEPS.append(function)
    return function


def additive_step(function: Any) -> Any:
    """Register a step after which earlier versions may go on writing.

    It adds tables, indexes, triggers and views, and columns that may be left out. Rows of a task
    in a new table go with the task (``ON DELETE CASCADE``), and all that there was means what it
    meant.
    """
    ADDITIVE.add(function)
    return step(function)


def writable_since() -> int:
    """The earliest version that may write a store of this one."""
    version = len(STEPS)
    while version and STEPS[version - 1] in ADDITIVE:
        version -= 1
    return version


def declaration() -> int:
    """What ``PRAGMA application_id`` says in a store: of which version, and `writable_since`."""
    return len(STEPS) << VERSION_BITS | writable_since()


def may_write(version: int, declared: int) -> bool:
    """Whether this version may write a store of another one, which has declared this of itself."""
    since = declared & (1 << VERSION_BITS) - 1
    return version <= len(STEPS) or (declared >> VERSION_BITS == version and since <= len(STEPS))


@step
def m001_tasks(db: Database) -> None:
    """Notebooks, sessions, tasks and their state history."""
    for statement in (*M001_TABLES, *M001_TRIGGERS):
        db.conn.execute(statement)


M001_TABLES = (
    """
    CREATE TABLE notebooks (
        key INTEGER PRIMARY KEY,
        path TEXT NOT NULL,
        last_number INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        notebook_key INTEGER NOT NULL REFERENCES notebooks (key),
        path TEXT NOT NULL,
        has_path INTEGER NOT NULL,
        kernel_uuid TEXT,
        front_end TEXT NOT NULL,
        host TEXT NOT NULL,
        pid INTEGER NOT NULL,
        process_start TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        started_at REAL NOT NULL,
        heartbeat_at REAL NOT NULL,
        ended_at REAL,
        end_reason TEXT,
        CHECK ((ended_at IS NULL) = (end_reason IS NULL))
    ) STRICT
    """,
    "CREATE INDEX sessions_kernel_uuid ON sessions (kernel_uuid, started_at)",
    "CREATE INDEX sessions_path ON sessions (path, started_at)",
    "CREATE INDEX sessions_unfinished ON sessions (id) WHERE ended_at IS NULL",
    "CREATE INDEX sessions_started_at ON sessions (started_at)",
    """
    CREATE TABLE tasks (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        notebook_key INTEGER NOT NULL REFERENCES notebooks (key),
        number INTEGER NOT NULL CHECK (number > 0),
        session_id TEXT NOT NULL REFERENCES sessions (id),
        name TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('python', 'shell')),
        runner TEXT NOT NULL,
        state TEXT NOT NULL CHECK (
            state IN ('pending', 'running', 'completed', 'failed', 'cancelled', 'interrupted')),
        reason TEXT,
        exit_code INTEGER,
        created_at REAL NOT NULL,
        started_at REAL,
        ended_at REAL,
        cancel_requested_at REAL,
        cleared_at REAL,
        cell_id TEXT,
        execution_count INTEGER,
        source TEXT NOT NULL,
        UNIQUE (notebook_key, number),
        CHECK ((ended_at IS NULL) = (state IN ('pending', 'running'))),
        CHECK (state <> 'pending' OR started_at IS NULL),
        CHECK (state NOT IN ('running', 'completed') OR started_at IS NOT NULL),
        CHECK (state <> 'completed' OR exit_code IS 0),
        CHECK (exit_code IS NULL OR state IN ('completed', 'failed', 'cancelled'))
    ) STRICT
    """,
    "CREATE INDEX tasks_session ON tasks (session_id)",
    "CREATE INDEX tasks_created_at ON tasks (created_at)",
    "CREATE INDEX tasks_live ON tasks (session_id) WHERE state IN ('pending', 'running')",
    """
    CREATE TABLE events (
        key INTEGER PRIMARY KEY,
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        state TEXT NOT NULL,
        reason TEXT,
        at REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX events_task ON events (task_key)",
)

NOW = "(julianday('now') - 2440587.5) * 86400.0"

M001_TRIGGERS = (
    """
    CREATE TRIGGER tasks_begin_pending BEFORE INSERT ON tasks WHEN NEW.state <> 'pending'
    BEGIN
        SELECT RAISE(ABORT, 'a task begins as pending');
    END
    """,
    """
    CREATE TRIGGER tasks_legal_transition BEFORE UPDATE OF state ON tasks WHEN NOT (
        (OLD.state = 'pending'
         AND NEW.state IN ('running', 'failed', 'cancelled', 'interrupted'))
        OR (OLD.state = 'running'
            AND NEW.state IN ('completed', 'failed', 'cancelled', 'interrupted')))
    BEGIN
        SELECT RAISE(ABORT, 'illegal transition of a task''s state');
    END
    """,
    """
    CREATE TRIGGER tasks_history_begins AFTER INSERT ON tasks
    BEGIN
        INSERT INTO events (task_key, state, reason, at)
        VALUES (NEW.key, NEW.state, NEW.reason, NEW.created_at);
    END
    """,
    f"""
    CREATE TRIGGER tasks_history AFTER UPDATE OF state ON tasks
    BEGIN
        INSERT INTO events (task_key, state, reason, at)
        VALUES (NEW.key, NEW.state, NEW.reason, coalesce(NEW.ended_at, NEW.started_at, {NOW}));
    END
    """,
)


@step
def m002_outputs(db: Database) -> None:
    """What tasks print, display and return."""
    for statement in M002_TABLES:
        db.conn.execute(statement)


M002_TABLES = (
    """
    CREATE TABLE outputs (
        sequence INTEGER PRIMARY KEY,
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        at REAL NOT NULL,
        first_byte INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL,
        first_line INTEGER NOT NULL,
        lines INTEGER NOT NULL,
        last_line TEXT,
        compression TEXT,
        data BLOB NOT NULL
    ) STRICT
    """,
    "CREATE INDEX outputs_task ON outputs (task_key, kind)",
    "CREATE INDEX outputs_task_order ON outputs (task_key, sequence)",
    """
    CREATE TABLE results (
        key INTEGER PRIMARY KEY,
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        name TEXT NOT NULL,
        path TEXT,
        size_bytes INTEGER,
        digest TEXT,
        signature TEXT,
        text TEXT NOT NULL,
        problem TEXT,
        UNIQUE (task_key, name),
        CHECK ((path IS NULL) = (problem IS NOT NULL))
    ) STRICT
    """,
)


@step
def m003_processes(db: Database) -> None:
    """Processes of tasks, the supervisors that own them, and which task runs which again."""
    for statement in M003_TABLES:
        db.conn.execute(statement)


M003_TABLES = (
    "ALTER TABLE tasks ADD COLUMN is_call INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN rerun_of INTEGER REFERENCES tasks (key) ON DELETE SET NULL",
    "CREATE INDEX tasks_rerun_of ON tasks (rerun_of) WHERE rerun_of IS NOT NULL",
    "CREATE INDEX tasks_pending ON tasks (session_id) WHERE state = 'pending'",
    """
    CREATE INDEX tasks_to_cancel ON tasks (session_id)
    WHERE cancel_requested_at IS NOT NULL AND state IN ('pending', 'running')
    """,
    """
    CREATE TABLE supervisors (
        key INTEGER PRIMARY KEY,
        session_id TEXT NOT NULL REFERENCES sessions (id),
        host TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        pid INTEGER NOT NULL,
        process_start TEXT NOT NULL,
        started_at REAL NOT NULL,
        heartbeat_at REAL NOT NULL,
        ended_at REAL,
        end_reason TEXT,
        CHECK ((ended_at IS NULL) = (end_reason IS NULL))
    ) STRICT
    """,
    "CREATE INDEX supervisors_unfinished ON supervisors (session_id) WHERE ended_at IS NULL",
    """
    CREATE TABLE processes (
        task_key INTEGER PRIMARY KEY REFERENCES tasks (key) ON DELETE CASCADE,
        command TEXT NOT NULL,
        script TEXT,
        script_as TEXT CHECK (script_as IN ('stdin', 'file')),
        directory TEXT NOT NULL,
        environment TEXT NOT NULL,
        pty INTEGER NOT NULL,
        timeout_s REAL,
        grace_s REAL NOT NULL,
        options TEXT NOT NULL,
        supervisor_key INTEGER REFERENCES supervisors (key),
        pid INTEGER,
        process_start TEXT,
        cpu_s REAL,
        peak_memory_bytes INTEGER,
        CHECK ((script IS NULL) = (script_as IS NULL))
    ) STRICT
    """,
    "CREATE INDEX processes_supervisor ON processes (supervisor_key)",
)


@step
def m004_history(db: Database) -> None:
    """What a long history needs: totals, tags, provenance, and notebooks known everywhere."""
    for statement in (*M004_TABLES, *M004_TRIGGERS, *M004_FILL):
        db.conn.execute(statement)


def output_bytes_of(task_key: str) -> str:
    """SQL for how many bytes a task has printed and displayed.

    Of a stream the last piece tells; so this is quick however much there is.
    """
    stream = f"""coalesce((SELECT first_byte + size_bytes FROM outputs
        WHERE task_key = {task_key} AND kind = '%s' ORDER BY sequence DESC LIMIT 1), 0)"""
    kinds = "'display_data', 'update_display_data', 'clear_output', 'execute_result', 'error'"
    return f"""{stream % "stdout"} + {stream % "stderr"}
        + coalesce((SELECT sum(size_bytes) FROM outputs
            WHERE task_key = {task_key} AND kind IN ({kinds})), 0)"""


FILL_UIDS = "UPDATE notebooks SET uid = lower(hex(randomblob(16))) WHERE uid IS NULL"

M004_TABLES = (
    # What makes a notebook the same in another file: an archive, a backup, another machine's store.
    "ALTER TABLE notebooks ADD COLUMN uid TEXT",
    FILL_UIDS,
    "CREATE UNIQUE INDEX notebooks_uid ON notebooks (uid)",
    "ALTER TABLE tasks ADD COLUMN output_bytes INTEGER",
    "ALTER TABLE tasks ADD COLUMN max_output_bytes INTEGER",
    "ALTER TABLE tasks ADD COLUMN dropped_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN provenance TEXT NOT NULL DEFAULT '{}'",
    "CREATE INDEX tasks_overview ON tasks (state, created_at, output_bytes)",
    "CREATE INDEX results_sizes ON results (size_bytes)",
    """
    CREATE TABLE tags (
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        tag TEXT NOT NULL,
        PRIMARY KEY (task_key, tag)
    ) STRICT
    """,
    "CREATE INDEX tags_tag ON tags (tag)",
    # What was printed by removed tasks goes little by little.
    """
    CREATE TABLE removed_tasks (
        task_key INTEGER PRIMARY KEY
    ) STRICT
    """,
    """
    CREATE TABLE upkeep (
        name TEXT PRIMARY KEY,
        at REAL NOT NULL
    ) STRICT
    """,
)

M004_TRIGGERS = (
    f"""
    CREATE TRIGGER tasks_output_bytes AFTER UPDATE OF state ON tasks
    WHEN NEW.state NOT IN ('pending', 'running')
    BEGIN
        UPDATE tasks SET output_bytes = {output_bytes_of("NEW.key")} WHERE key = NEW.key;
    END
    """,
)

M004_FILL = (
    f"""
    UPDATE tasks SET output_bytes = {output_bytes_of("tasks.key")}
    WHERE state NOT IN ('pending', 'running')
    """,
    """
    UPDATE tasks SET provenance = json_object('rerun_of',
        (SELECT earlier.id FROM tasks AS earlier WHERE earlier.key = tasks.rerun_of))
    WHERE rerun_of IS NOT NULL
    """,
    """
    UPDATE tasks SET provenance = json_set(tasks.provenance, '$.rerun_as', later.id)
    FROM tasks AS later WHERE later.rerun_of = tasks.key
    """,
    """
    UPDATE tasks SET provenance = json_set(provenance, '$.host',
        (SELECT host FROM sessions WHERE id = tasks.session_id))
    """,
    """
    UPDATE tasks SET provenance = json_set(provenance, '$.directory',
        (SELECT directory FROM processes WHERE task_key = tasks.key))
    WHERE key IN (SELECT task_key FROM processes)
    """,
)


@step
def m005_progress(db: Database) -> None:
    """How far tasks have come, whom their end is told, and the variables where they failed."""
    for statement in M005_TABLES:
        db.conn.execute(statement)


# NULL is named: for SQLite before 3.45 it is no valid JSON.
M005_TABLES = (
    "ALTER TABLE tasks ADD COLUMN progress TEXT CHECK (progress IS NULL OR json_valid(progress))",
    "ALTER TABLE tasks ADD COLUMN notify TEXT CHECK (notify IS NULL OR json_valid(notify))",
    """ALTER TABLE tasks ADD COLUMN post_mortem TEXT
        CHECK (post_mortem IS NULL OR json_valid(post_mortem))""",
    "CREATE INDEX tasks_to_notify ON tasks (key) WHERE notify IS NOT NULL",
)


@step
def m006_keys(db: Database) -> None:
    """Never reuse a key of the state history or of the outputs.

    A follower of the store remembers the last key that it has seen. SQLite reuses the highest key
    once its row is deleted, unless the table says AUTOINCREMENT. Only that is changed. Rows are
    stored alike in both, so nothing has to be copied: outputs may be gigabytes
    (https://sqlite.org/lang_altertable.html#otheralter).
    """
    connection = db.conn
    definitions = {table: f"{key} INTEGER PRIMARY KEY" for table, key in M006_KEYS}
    with _definitions_changing(connection) as change:
        for table, definition in definitions.items():
            change(table, definition, f"{definition} AUTOINCREMENT")
    for table, key in M006_KEYS:
        connection.execute(
            f"""INSERT INTO sqlite_sequence (name, seq)
            SELECT ?, coalesce(max({key}), 0) FROM {table}""",
            (table,),
        )


@contextmanager
def _definitions_changing(connection: Any) -> Iterator[Callable[[str, str, str], None]]:
    """Give what replaces a part of a table's definition: table, old part, new part.

    For changes that leave the rows as they are (https://sqlite.org/lang_altertable.html#otheralter).
    """
    (version,) = connection.execute("PRAGMA schema_version").fetchone()
    connection.execute("PRAGMA writable_schema = ON")
    yield lambda table, old, new: connection.execute(
        """UPDATE sqlite_master SET sql = replace(sql, ?, ?)
        WHERE type = 'table' AND name = ?""",
        (old, new, table),
    )
    version += 1
    connection.execute(f"PRAGMA schema_version = {version}")
    connection.execute("PRAGMA writable_schema = RESET")


M006_KEYS = (("events", "key"), ("outputs", "sequence"))


@step
def m007_namespaces(db: Database) -> None:
    """In which PID namespace pids are, and how an owner takes back what another declared dead."""
    for statement in (*M007_TABLES, *M007_DROPPED, *M007_TRIGGERS):
        db.conn.execute(statement)


M007_TABLES = (
    "ALTER TABLE sessions ADD COLUMN pid_namespace INTEGER",
    "ALTER TABLE supervisors ADD COLUMN pid_namespace INTEGER",
    "ALTER TABLE processes ADD COLUMN pid_namespace INTEGER",
    # Who took it for interrupted: its owner (NULL), or another process, by proof or presumption.
    """
    ALTER TABLE tasks ADD COLUMN declared_dead TEXT CHECK (declared_dead IS NULL
        OR (declared_dead IN ('proven', 'presumed') AND state = 'interrupted'))
    """,
    """
    UPDATE tasks SET declared_dead = 'presumed'
    WHERE state = 'interrupted' AND reason LIKE 'no sign of life%'
    """,
)

M007_DROPPED = ("DROP TRIGGER tasks_legal_transition", "DROP TRIGGER tasks_history")

M007_TRIGGERS = (
    # Back to running only from a death that another process has declared: the owner, which does so,
    # is the proof that it was none.
    """
    CREATE TRIGGER tasks_legal_transition BEFORE UPDATE OF state ON tasks WHEN NOT (
        (OLD.state = 'pending'
         AND NEW.state IN ('running', 'failed', 'cancelled', 'interrupted'))
        OR (OLD.state = 'running'
            AND NEW.state IN ('completed', 'failed', 'cancelled', 'interrupted'))
        OR (OLD.state = 'interrupted' AND OLD.declared_dead IS NOT NULL
            AND NEW.state = 'running' AND NEW.declared_dead IS NULL))
    BEGIN
        SELECT RAISE(ABORT, 'illegal transition of a task''s state');
    END
    """,
    f"""
    CREATE TRIGGER tasks_history AFTER UPDATE OF state ON tasks
    BEGIN
        INSERT INTO events (task_key, state, reason, at)
        VALUES (
            NEW.key, NEW.state,
            iif(OLD.state = 'interrupted', 'its owner was alive all the same', NEW.reason),
            iif(OLD.state = 'interrupted', {NOW},
                coalesce(NEW.ended_at, NEW.started_at, {NOW})));
    END
    """,
)


@additive_step
def m008_views(db: Database) -> None:
    """Tasks and their outputs as text, for other tools that open the store.

    And for SQLite before 3.45, where `json_valid(NULL)` is 0, the checks name NULL: a store that a
    newer SQLite had made refused every task there.

    A later step that changes what a view reads drops the view and creates it again.

    SQLite's integrity check leaves pages unlooked at when a view heads its list of tables, which
    is in an order of hashes: a test holds that neither name comes first.
    """
    with _definitions_changing(db.conn) as change:
        for column in M008_JSON:
            valid = f"json_valid({column})"
            change("tasks", f"CHECK ({valid})", f"CHECK ({column} IS NULL OR {valid})")
    for statement in M008_VIEWS:
        db.conn.execute(statement)


M008_JSON = ("progress", "notify", "post_mortem")


def iso_time(seconds: str) -> str:
    """SQL for a time as ISO 8601 text in UTC."""
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', {seconds}, 'unixepoch')"


def readable(name: str) -> str:
    """SQL for a few bytes in a column as text, with U+FFFD for what is not UTF-8.

    A command may print any bytes, and a piece may end within a character; Python's sqlite3 refuses
    a whole query for one such text. SQLite reads a character from any bytes, so each is compared
    with what it should be made of. Text of ASCII alone need not be walked through.
    """
    return f"""CASE
            WHEN CAST({name} AS TEXT) NOT GLOB '*[^' || char(1) || '-' || char(127) || ']*'
                AND instr({name}, x'00') = 0
            THEN CAST({name} AS TEXT)
            ELSE (
                WITH RECURSIVE walk (rest) AS (
                    SELECT {name}
                    UNION ALL
                    SELECT substr(rest, 1 + max(1,
                        length(CAST(substr(CAST(rest AS TEXT), 1, 1) AS BLOB))))
                    FROM walk WHERE length(rest) > 1
                )
                SELECT group_concat(
                    iif(char(unicode(character)) = character, character, char(65533)), '')
                FROM (SELECT substr(CAST(rest AS TEXT), 1, 1) AS character
                    FROM walk WHERE length(rest) > 0))
        END"""


# A person's own view of the same name stays.
M008_VIEWS = (
    f"""
    CREATE VIEW IF NOT EXISTS task_list AS
    SELECT
        tasks.id AS id,
        notebooks.path AS notebook,
        tasks.number AS number,
        nullif(tasks.name, '') AS name,
        tasks.state AS state,
        tasks.reason AS reason,
        tasks.exit_code AS exit_code,
        {iso_time("tasks.created_at")} AS created_at,
        {iso_time("tasks.started_at")} AS started_at,
        {iso_time("tasks.ended_at")} AS ended_at,
        round(max(0.0, coalesce(tasks.ended_at, {NOW}) - tasks.started_at), 3) AS elapsed_s,
        round(max(0.0, min(100.0, 100.0 * json_extract(tasks.progress, '$.done')
            / nullif(json_extract(tasks.progress, '$.total'), 0))), 1) AS percent_done,
        (SELECT last_line FROM outputs WHERE task_key = tasks.key AND last_line IS NOT NULL
            ORDER BY sequence DESC LIMIT 1) AS last_line,
        (SELECT text FROM results WHERE task_key = tasks.key AND name = '') AS result,
        (SELECT group_concat(tag, ', ') FROM
            (SELECT tag FROM tags WHERE task_key = tasks.key ORDER BY tag)) AS tags,
        sessions.host AS host,
        tasks.kind AS kind,
        tasks.runner AS runner,
        tasks.session_id AS session,
        tasks.output_bytes AS output_bytes,
        {iso_time("tasks.cleared_at")} AS cleared_at,
        tasks.source AS source
    FROM tasks
    JOIN notebooks ON notebooks.key = tasks.notebook_key
    JOIN sessions ON sessions.id = tasks.session_id
    ORDER BY tasks.created_at DESC, tasks.key DESC
    """,
    # SQLite cannot read what is compressed: each piece of 512 bytes or more for which that pays.
    # It pays for all text, so a longer piece that is not compressed is none.
    f"""
    CREATE VIEW IF NOT EXISTS task_text_output AS
    SELECT
        tasks.id AS id,
        notebooks.path AS notebook,
        tasks.number AS number,
        nullif(tasks.name, '') AS name,
        {iso_time("piece.at")} AS at,
        piece.kind AS kind,
        {readable("piece.said")} AS text,
        piece.last_line AS last_line,
        piece.lines AS lines,
        piece.size_bytes AS size_bytes,
        piece.compression AS compression
    FROM (
        SELECT sequence, task_key, at, kind, last_line, lines, size_bytes, compression, CASE
            WHEN compression IS NOT NULL OR size_bytes >= 512 THEN NULL
            WHEN kind IN ('stdout', 'stderr') THEN data
            WHEN NOT json_valid(CAST(data AS TEXT)) THEN NULL
            WHEN kind = 'error' THEN CAST(json_extract(CAST(data AS TEXT), '$.ename') || ': '
                || json_extract(CAST(data AS TEXT), '$.evalue') AS BLOB)
            ELSE CAST(json_extract(CAST(data AS TEXT), '$.data."text/plain"') AS BLOB)
        END AS said
        FROM outputs
    ) AS piece
    JOIN tasks ON tasks.key = piece.task_key
    JOIN notebooks ON notebooks.key = tasks.notebook_key
    ORDER BY piece.sequence
    """,
)


@additive_step
def m009_interpreters(db: Database) -> None:
    """In which interpreter a Python task began, and which modules its kernel has imported."""
    for statement in M009_COLUMNS:
        db.conn.execute(statement)


M009_COLUMNS = (
    "ALTER TABLE processes ADD COLUMN interpreter TEXT",
    "ALTER TABLE supervisors ADD COLUMN modules TEXT",
)


@step
def m010_queue(db: Database) -> None:
    """What pending tasks wait for: their group's width, other tasks, a time.

    Not additive: an earlier version starts every pending task at once.
    """
    for statement in (*M010_TABLES, *M010_TRIGGERS):
        db.conn.execute(statement)


READY = "state = 'pending' AND waits_for = 0 AND cancel_requested_at IS NULL"
"""SQL for a task that waits for room in its group alone."""

IN_SLOT = "state = 'running' AND (paused_at IS NULL OR keeps_slot = 1)"
"""SQL for a task that takes part of its group's width."""
TO_PAUSE = "state = 'running' AND pause_requested <> (paused_at IS NOT NULL)"
"""SQL for a task that is to be paused or continued, and is not yet."""

M010_TABLES = (
    "ALTER TABLE tasks ADD COLUMN group_name TEXT NOT NULL DEFAULT 'default'",
    "ALTER TABLE tasks ADD COLUMN priority INTEGER NOT NULL DEFAULT 0",
    # Its place among those of the same priority; NULL for the order of the launches.
    "ALTER TABLE tasks ADD COLUMN place REAL",
    # How many tasks and times it still waits for.
    "ALTER TABLE tasks ADD COLUMN waits_for INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN due_at REAL",
    # The task whose end keeps this one from ever starting.
    "ALTER TABLE tasks ADD COLUMN doomed_by INTEGER",
    f"""
    CREATE INDEX tasks_queue ON tasks
        (group_name, session_id, runner, priority DESC, coalesce(place, key)) WHERE {READY}
    """,
    # Whether it is to be paused; the owner of its processes does so, and says when it has.
    "ALTER TABLE tasks ADD COLUMN pause_requested INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN keeps_slot INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN paused_at REAL",
    # How long it has been paused before.
    "ALTER TABLE tasks ADD COLUMN paused_s REAL NOT NULL DEFAULT 0",
    f"CREATE INDEX tasks_slots ON tasks (group_name) WHERE {IN_SLOT}",
    f"CREATE INDEX tasks_to_pause ON tasks (session_id) WHERE {TO_PAUSE}",
    "CREATE INDEX tasks_due ON tasks (due_at) WHERE due_at IS NOT NULL AND state = 'pending'",
    "CREATE INDEX tasks_doomed ON tasks (key) WHERE doomed_by IS NOT NULL AND state = 'pending'",
    """
    CREATE TABLE groups (
        name TEXT PRIMARY KEY,
        width INTEGER CHECK (width > 0),
        paused_at REAL
    ) STRICT
    """,
    """
    CREATE TABLE dependencies (
        key INTEGER PRIMARY KEY,
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        on_key INTEGER NOT NULL,
        condition TEXT NOT NULL CHECK (condition IN ('ok', 'failed', 'any')),
        UNIQUE (task_key, on_key)
    ) STRICT
    """,
    "CREATE INDEX dependencies_on ON dependencies (on_key)",
)

MET = "condition IN ('any', iif(NEW.state = 'completed', 'ok', 'failed'))"

M010_TRIGGERS = (
    # A task that is only presumed dead may go on, and others wait for its true end.
    f"""
    CREATE TRIGGER tasks_let_go AFTER UPDATE OF state ON tasks
    WHEN NEW.state NOT IN ('pending', 'running') AND NEW.declared_dead IS NOT 'presumed'
    BEGIN
        UPDATE tasks SET paused_s = paused_s + NEW.ended_at - paused_at, paused_at = NULL
            WHERE key = NEW.key AND paused_at IS NOT NULL;
        UPDATE tasks SET waits_for = waits_for - 1 WHERE state = 'pending'
            AND key IN (SELECT task_key FROM dependencies WHERE on_key = NEW.key AND {MET});
        UPDATE tasks SET doomed_by = NEW.key WHERE state = 'pending' AND doomed_by IS NULL
            AND key IN (SELECT task_key FROM dependencies WHERE on_key = NEW.key AND NOT {MET});
        DELETE FROM dependencies WHERE on_key = NEW.key OR task_key = NEW.key;
    END
    """,
)


@step
def m011_tries(db: Database) -> None:
    """What tasks need of the machine, their tries, their schedules, and their checkpoints.

    Not additive: an earlier version starts tasks for which the machine has no room.
    """
    for statement in M011_COLUMNS:
        db.conn.execute(statement)


DEMANDS_SOMETHING = "(cpus IS NOT NULL OR memory_bytes IS NOT NULL OR gpus IS NOT NULL)"
DEMANDING = f"{READY} AND {DEMANDS_SOMETHING}"
"""SQL for a task that waits for the machine and for room in its group alone."""
BOOKED = f"state = 'running' AND {DEMANDS_SOMETHING}"
"""SQL for a task that has booked a part of its machine."""
M011_COLUMNS = (
    # What it asks of the machine; NULL for nothing.
    "ALTER TABLE tasks ADD COLUMN cpus REAL",
    "ALTER TABLE tasks ADD COLUMN memory_bytes INTEGER",
    "ALTER TABLE tasks ADD COLUMN gpus INTEGER",
    "ALTER TABLE tasks ADD COLUMN gpu_memory_bytes INTEGER",
    # The GPUs that it has, as JSON: a list of UUIDs. NULL for none.
    "ALTER TABLE tasks ADD COLUMN gpu_ids TEXT",
    # What the machine lacks for it to start, in words, and since when it has lacked anything.
    "ALTER TABLE tasks ADD COLUMN lacks TEXT",
    "ALTER TABLE tasks ADD COLUMN lacks_since REAL",
    f"CREATE INDEX tasks_booked ON tasks (key) WHERE {BOOKED}",
    f"""
    CREATE INDEX tasks_demanding ON tasks
        (session_id, group_name, priority DESC, coalesce(place, key)) WHERE {DEMANDING}
    """,
    # When to try again, as JSON; NULL for never. The tries of a task refer to the first one.
    "ALTER TABLE tasks ADD COLUMN retry TEXT",
    "ALTER TABLE tasks ADD COLUMN try_of INTEGER",
    "ALTER TABLE tasks ADD COLUMN try_number INTEGER NOT NULL DEFAULT 1",
    "CREATE INDEX tasks_tries ON tasks (try_of) WHERE try_of IS NOT NULL",
    # The rule of the times at which it runs, as JSON; NULL for once.
    "ALTER TABLE tasks ADD COLUMN schedule TEXT",
    # Its latest checkpoint; a later task that goes on from there refers to the same place.
    "ALTER TABLE tasks ADD COLUMN checkpoint_place TEXT",
    "ALTER TABLE tasks ADD COLUMN checkpoint_at REAL",
)


@additive_step
def m012_environments(db: Database) -> None:
    """Whether a process's environment is kept whole, so that any supervisor can start the task."""
    db.conn.execute(M012_COLUMN)


# Tasks of an earlier version that are tried again, or have a schedule, have it so without a word.
M012_COLUMN = "ALTER TABLE processes ADD COLUMN whole_environment INTEGER NOT NULL DEFAULT 0"


@step
def m013_places(db: Database) -> None:
    """Where a task's process runs, if not on this machine.

    Not additive: an earlier version would start such a task here.
    """
    for statement in M013_COLUMNS:
        db.conn.execute(statement)


SUBMITTED = "submitted_at IS NOT NULL AND state = 'pending'"
"""SQL for a task that has been handed to its place and has not begun there."""
ELSEWHERE = "runs_at IS NOT NULL AND supervisor_key IS NULL"
"""SQL for a process at a place that no supervisor has, or not any more."""
M013_COLUMNS = (
    # Its place as it was set at the launch, as JSON; NULL for here.
    "ALTER TABLE processes ADD COLUMN runs_at TEXT",
    # How much of its spool there is recorded here, in bytes.
    "ALTER TABLE processes ADD COLUMN spool_offset INTEGER NOT NULL DEFAULT 0",
    # What is known of its process there, as JSON: host, worker, job.
    "ALTER TABLE processes ADD COLUMN far TEXT",
    f"CREATE INDEX processes_elsewhere ON processes (task_key) WHERE {ELSEWHERE}",
    "ALTER TABLE tasks ADD COLUMN submitted_at REAL",
    # Since when its place does not answer; NULL while it does.
    "ALTER TABLE tasks ADD COLUMN unreachable_since REAL",
    f"CREATE INDEX tasks_submitted ON tasks (group_name) WHERE {SUBMITTED}",
    """CREATE INDEX tasks_elsewhere ON tasks (session_id)
        WHERE state = 'running' AND submitted_at IS NOT NULL""",
)


@additive_step
def m014_usage(db: Database) -> None:
    """What a task's processes have used over time, as JSON."""
    db.conn.execute(M014_COLUMN)


M014_COLUMN = "ALTER TABLE processes ADD COLUMN usage TEXT"


@contextmanager
def without_triggers(connection: Any) -> Iterator[None]:
    """Take the triggers away for as long as finished rows are copied in, in one transaction.

    A copied task does not begin again as pending, and its history is copied, not written anew.
    """
    query = "SELECT name, sql FROM main.sqlite_master WHERE type = 'trigger'"
    triggers = connection.execute(query).fetchall()
    for name, _sql in triggers:
        connection.execute(f'DROP TRIGGER main."{name}"')
    yield
    for _name, sql in triggers:
        connection.execute(sql)


def migrate(connection: Any) -> None:
    """Bring the schema up to date. The caller holds the write lock in a transaction."""
    from sqlite_utils import Database, Migrations

    migrations = Migrations("ipytaskpersist")
    for function in STEPS:
        migrations(name=function.__name__)(function)
    migrations.apply(Database(connection, execute_plugins=False, recursive_triggers=False))
    connection.execute(f"PRAGMA user_version = {len(STEPS)}")
    declared = declaration()
    connection.execute(f"PRAGMA application_id = {declared}")
