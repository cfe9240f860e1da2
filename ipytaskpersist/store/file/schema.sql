CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);

CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");

CREATE TABLE notebooks (
        key INTEGER PRIMARY KEY,
        path TEXT NOT NULL,
        last_number INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL
    , uid TEXT) STRICT;

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
        end_reason TEXT, pid_namespace INTEGER,
        CHECK ((ended_at IS NULL) = (end_reason IS NULL))
    ) STRICT;

CREATE INDEX sessions_kernel_uuid ON sessions (kernel_uuid, started_at);

CREATE INDEX sessions_path ON sessions (path, started_at);

CREATE INDEX sessions_unfinished ON sessions (id) WHERE ended_at IS NULL;

CREATE INDEX sessions_started_at ON sessions (started_at);

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
        source TEXT NOT NULL, is_call INTEGER NOT NULL DEFAULT 0, rerun_of INTEGER REFERENCES tasks (key) ON DELETE SET NULL, output_bytes INTEGER, max_output_bytes INTEGER, dropped_bytes INTEGER NOT NULL DEFAULT 0, provenance TEXT NOT NULL DEFAULT '{}', progress TEXT CHECK (progress IS NULL OR json_valid(progress)), notify TEXT CHECK (notify IS NULL OR json_valid(notify)), post_mortem TEXT
        CHECK (post_mortem IS NULL OR json_valid(post_mortem)), declared_dead TEXT CHECK (declared_dead IS NULL
        OR (declared_dead IN ('proven', 'presumed') AND state = 'interrupted')), group_name TEXT NOT NULL DEFAULT 'default', priority INTEGER NOT NULL DEFAULT 0, place REAL, waits_for INTEGER NOT NULL DEFAULT 0, due_at REAL, doomed_by INTEGER, pause_requested INTEGER NOT NULL DEFAULT 0, keeps_slot INTEGER NOT NULL DEFAULT 0, paused_at REAL, paused_s REAL NOT NULL DEFAULT 0, cpus REAL, memory_bytes INTEGER, gpus INTEGER, gpu_memory_bytes INTEGER, gpu_ids TEXT, lacks TEXT, lacks_since REAL, retry TEXT, try_of INTEGER, try_number INTEGER NOT NULL DEFAULT 1, schedule TEXT, checkpoint_place TEXT, checkpoint_at REAL, submitted_at REAL, unreachable_since REAL,
        UNIQUE (notebook_key, number),
        CHECK ((ended_at IS NULL) = (state IN ('pending', 'running'))),
        CHECK (state <> 'pending' OR started_at IS NULL),
        CHECK (state NOT IN ('running', 'completed') OR started_at IS NOT NULL),
        CHECK (state <> 'completed' OR exit_code IS 0),
        CHECK (exit_code IS NULL OR state IN ('completed', 'failed', 'cancelled'))
    ) STRICT;

CREATE INDEX tasks_session ON tasks (session_id);

CREATE INDEX tasks_created_at ON tasks (created_at);

CREATE INDEX tasks_live ON tasks (session_id) WHERE state IN ('pending', 'running');

CREATE TABLE events (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        state TEXT NOT NULL,
        reason TEXT,
        at REAL NOT NULL
    ) STRICT;

CREATE INDEX events_task ON events (task_key);

CREATE TRIGGER tasks_begin_pending BEFORE INSERT ON tasks WHEN NEW.state <> 'pending'
    BEGIN
        SELECT RAISE(ABORT, 'a task begins as pending');
    END;

CREATE TRIGGER tasks_history_begins AFTER INSERT ON tasks
    BEGIN
        INSERT INTO events (task_key, state, reason, at)
        VALUES (NEW.key, NEW.state, NEW.reason, NEW.created_at);
    END;

CREATE TABLE outputs (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
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
    ) STRICT;

CREATE INDEX outputs_task ON outputs (task_key, kind);

CREATE INDEX outputs_task_order ON outputs (task_key, sequence);

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
    ) STRICT;

CREATE INDEX tasks_rerun_of ON tasks (rerun_of) WHERE rerun_of IS NOT NULL;

CREATE INDEX tasks_pending ON tasks (session_id) WHERE state = 'pending';

CREATE INDEX tasks_to_cancel ON tasks (session_id)
    WHERE cancel_requested_at IS NOT NULL AND state IN ('pending', 'running');

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
        end_reason TEXT, pid_namespace INTEGER, modules TEXT,
        CHECK ((ended_at IS NULL) = (end_reason IS NULL))
    ) STRICT;

CREATE INDEX supervisors_unfinished ON supervisors (session_id) WHERE ended_at IS NULL;

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
        peak_memory_bytes INTEGER, pid_namespace INTEGER, interpreter TEXT, whole_environment INTEGER NOT NULL DEFAULT 0, runs_at TEXT, spool_offset INTEGER NOT NULL DEFAULT 0, far TEXT, usage TEXT,
        CHECK ((script IS NULL) = (script_as IS NULL))
    ) STRICT;

CREATE INDEX processes_supervisor ON processes (supervisor_key);

CREATE UNIQUE INDEX notebooks_uid ON notebooks (uid);

CREATE INDEX tasks_overview ON tasks (state, created_at, output_bytes);

CREATE INDEX results_sizes ON results (size_bytes);

CREATE TABLE tags (
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        tag TEXT NOT NULL,
        PRIMARY KEY (task_key, tag)
    ) STRICT;

CREATE INDEX tags_tag ON tags (tag);

CREATE TABLE removed_tasks (
        task_key INTEGER PRIMARY KEY
    ) STRICT;

CREATE TABLE upkeep (
        name TEXT PRIMARY KEY,
        at REAL NOT NULL
    ) STRICT;

CREATE TRIGGER tasks_output_bytes AFTER UPDATE OF state ON tasks
    WHEN NEW.state NOT IN ('pending', 'running')
    BEGIN
        UPDATE tasks SET output_bytes = coalesce((SELECT first_byte + size_bytes FROM outputs
        WHERE task_key = NEW.key AND kind = 'stdout' ORDER BY sequence DESC LIMIT 1), 0) + coalesce((SELECT first_byte + size_bytes FROM outputs
        WHERE task_key = NEW.key AND kind = 'stderr' ORDER BY sequence DESC LIMIT 1), 0)
        + coalesce((SELECT sum(size_bytes) FROM outputs
            WHERE task_key = NEW.key AND kind IN ('display_data', 'update_display_data', 'clear_output', 'execute_result', 'error')), 0) WHERE key = NEW.key;
    END;

CREATE INDEX tasks_to_notify ON tasks (key) WHERE notify IS NOT NULL;

CREATE TRIGGER tasks_legal_transition BEFORE UPDATE OF state ON tasks WHEN NOT (
        (OLD.state = 'pending'
         AND NEW.state IN ('running', 'failed', 'cancelled', 'interrupted'))
        OR (OLD.state = 'running'
            AND NEW.state IN ('completed', 'failed', 'cancelled', 'interrupted'))
        OR (OLD.state = 'interrupted' AND OLD.declared_dead IS NOT NULL
            AND NEW.state = 'running' AND NEW.declared_dead IS NULL))
    BEGIN
        SELECT RAISE(ABORT, 'illegal transition of a task''s state');
    END;

CREATE TRIGGER tasks_history AFTER UPDATE OF state ON tasks
    BEGIN
        INSERT INTO events (task_key, state, reason, at)
        VALUES (
            NEW.key, NEW.state,
            iif(OLD.state = 'interrupted', 'its owner was alive all the same', NEW.reason),
            iif(OLD.state = 'interrupted', (julianday('now') - 2440587.5) * 86400.0,
                coalesce(NEW.ended_at, NEW.started_at, (julianday('now') - 2440587.5) * 86400.0)));
    END;

CREATE VIEW task_list AS
    SELECT
        tasks.id AS id,
        notebooks.path AS notebook,
        tasks.number AS number,
        nullif(tasks.name, '') AS name,
        tasks.state AS state,
        tasks.reason AS reason,
        tasks.exit_code AS exit_code,
        strftime('%Y-%m-%dT%H:%M:%fZ', tasks.created_at, 'unixepoch') AS created_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', tasks.started_at, 'unixepoch') AS started_at,
        strftime('%Y-%m-%dT%H:%M:%fZ', tasks.ended_at, 'unixepoch') AS ended_at,
        round(max(0.0, coalesce(tasks.ended_at, (julianday('now') - 2440587.5) * 86400.0) - tasks.started_at), 3) AS elapsed_s,
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
        strftime('%Y-%m-%dT%H:%M:%fZ', tasks.cleared_at, 'unixepoch') AS cleared_at,
        tasks.source AS source
    FROM tasks
    JOIN notebooks ON notebooks.key = tasks.notebook_key
    JOIN sessions ON sessions.id = tasks.session_id
    ORDER BY tasks.created_at DESC, tasks.key DESC;

CREATE VIEW task_text_output AS
    SELECT
        tasks.id AS id,
        notebooks.path AS notebook,
        tasks.number AS number,
        nullif(tasks.name, '') AS name,
        strftime('%Y-%m-%dT%H:%M:%fZ', piece.at, 'unixepoch') AS at,
        piece.kind AS kind,
        CASE
            WHEN CAST(piece.said AS TEXT) NOT GLOB '*[^' || char(1) || '-' || char(127) || ']*'
                AND instr(piece.said, x'00') = 0
            THEN CAST(piece.said AS TEXT)
            ELSE (
                WITH RECURSIVE walk (rest) AS (
                    SELECT piece.said
                    UNION ALL
                    SELECT substr(rest, 1 + max(1,
                        length(CAST(substr(CAST(rest AS TEXT), 1, 1) AS BLOB))))
                    FROM walk WHERE length(rest) > 1
                )
                SELECT group_concat(
                    iif(char(unicode(character)) = character, character, char(65533)), '')
                FROM (SELECT substr(CAST(rest AS TEXT), 1, 1) AS character
                    FROM walk WHERE length(rest) > 0))
        END AS text,
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
    ORDER BY piece.sequence;

CREATE INDEX tasks_queue ON tasks
        (group_name, session_id, runner, priority DESC, coalesce(place, key)) WHERE state = 'pending' AND waits_for = 0 AND cancel_requested_at IS NULL;

CREATE INDEX tasks_slots ON tasks (group_name) WHERE state = 'running' AND (paused_at IS NULL OR keeps_slot = 1);

CREATE INDEX tasks_to_pause ON tasks (session_id) WHERE state = 'running' AND pause_requested <> (paused_at IS NOT NULL);

CREATE INDEX tasks_due ON tasks (due_at) WHERE due_at IS NOT NULL AND state = 'pending';

CREATE INDEX tasks_doomed ON tasks (key) WHERE doomed_by IS NOT NULL AND state = 'pending';

CREATE TABLE groups (
        name TEXT PRIMARY KEY,
        width INTEGER CHECK (width > 0),
        paused_at REAL
    ) STRICT;

CREATE TABLE dependencies (
        key INTEGER PRIMARY KEY,
        task_key INTEGER NOT NULL REFERENCES tasks (key) ON DELETE CASCADE,
        on_key INTEGER NOT NULL,
        condition TEXT NOT NULL CHECK (condition IN ('ok', 'failed', 'any')),
        UNIQUE (task_key, on_key)
    ) STRICT;

CREATE INDEX dependencies_on ON dependencies (on_key);

CREATE TRIGGER tasks_let_go AFTER UPDATE OF state ON tasks
    WHEN NEW.state NOT IN ('pending', 'running') AND NEW.declared_dead IS NOT 'presumed'
    BEGIN
        UPDATE tasks SET paused_s = paused_s + NEW.ended_at - paused_at, paused_at = NULL
            WHERE key = NEW.key AND paused_at IS NOT NULL;
        UPDATE tasks SET waits_for = waits_for - 1 WHERE state = 'pending'
            AND key IN (SELECT task_key FROM dependencies WHERE on_key = NEW.key AND condition IN ('any', iif(NEW.state = 'completed', 'ok', 'failed')));
        UPDATE tasks SET doomed_by = NEW.key WHERE state = 'pending' AND doomed_by IS NULL
            AND key IN (SELECT task_key FROM dependencies WHERE on_key = NEW.key AND NOT condition IN ('any', iif(NEW.state = 'completed', 'ok', 'failed')));
        DELETE FROM dependencies WHERE on_key = NEW.key OR task_key = NEW.key;
    END;

CREATE INDEX tasks_booked ON tasks (key) WHERE state = 'running' AND (cpus IS NOT NULL OR memory_bytes IS NOT NULL OR gpus IS NOT NULL);

CREATE INDEX tasks_demanding ON tasks
        (session_id, group_name, priority DESC, coalesce(place, key)) WHERE state = 'pending' AND waits_for = 0 AND cancel_requested_at IS NULL AND (cpus IS NOT NULL OR memory_bytes IS NOT NULL OR gpus IS NOT NULL);

CREATE INDEX tasks_tries ON tasks (try_of) WHERE try_of IS NOT NULL;

CREATE INDEX processes_elsewhere ON processes (task_key) WHERE runs_at IS NOT NULL AND supervisor_key IS NULL;

CREATE INDEX tasks_submitted ON tasks (group_name) WHERE submitted_at IS NOT NULL AND state = 'pending';

CREATE INDEX tasks_elsewhere ON tasks (session_id)
        WHERE state = 'running' AND submitted_at IS NOT NULL;

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm001_tasks', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm002_outputs', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm003_processes', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm004_history', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm005_progress', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm006_keys', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm007_namespaces', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm008_views', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm009_interpreters', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm010_queue', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm011_tries', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm012_environments', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm013_places', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO _sqlite_migrations (migration_set, name, applied_at)
VALUES ('ipytaskpersist', 'm014_usage', strftime('%Y-%m-%d %H:%M:%f000+00:00', 'now'));

INSERT INTO sqlite_sequence VALUES ('events', 0);

INSERT INTO sqlite_sequence VALUES ('outputs', 0);

PRAGMA user_version = 14;

PRAGMA application_id = 917517;
