"""drm-ingest: the life of an event, in the order of the folders.

    device ──▶ edge ──▶ kafka ──▶ pipeline ──▶ postgres ──▶ serve ──▶ people

Files are named as an event meets them, each in the folder that its paragraph, or the one before, begins with.

A **device** or an app posts events. Here a recording stands in for one: `recording.py` reads its lines as events,
`send.py` sends them until each has its answer. `command.py` is `drm-ingest send`, and `demo.py` tells the story of two
customers with it, whose records `portrait.py` draws. `token.py` makes the token that a device proves itself with.

The **edge** takes them. `command.py` starts it, or several of it on one port (`workers.py`, which meet in a
`folder.py`); `app.py` puts it together, and `server.py` is uvicorn with a shutdown that finishes what it began. A
connection meets `door.py`: `request.py` finds head and body in its bytes, `arrival.py` decides as they come, and
`limits.py` bounds what all connections hold. Whatever is not `POST /v1/events` goes on to FastAPI (`handover.py`),
where `websocket.py` has the same path (`sessions.py` keeps all of them, `socket.py` bounds their frames, `message.py`
reads what their clients send), `route.py` is the door for other servers, and `openapi.py` and `asyncapi.py` describe it
all (`shapes.py`: what goes in and out; `refusals.py`: a real one of each kind).

Whichever way it came, `take.py` takes it: `credentials.py` knows who is sending; whom it does not, `identify.py` looks
at closer: `token.py` verifies what a fleet's key signed (`public_key.py`), `guesses.py` slows down whoever tries many.
`quotas.py` tells whether they may send more now (`quota.py`: how much; in `buckets.py`, which all workers of a machine
share; `spread.py` tells other machines), `clock.py` whether their clock is off, and `admit.py` what of the body can be
kept: of a long one slice by slice, while others are served too (`turns.py`). The body is decompressed (`decompress.py`)
and split into events (`split.py`), or made one of headers and data (`binary.py`). Then `judge.py` takes each event
through the rules: `decode.py` reads its envelope, `check.py` holds its attributes to CloudEvents, `examine.py` finds
what Postgres could never hold, `schema.py` knows what its data must look like, and `violation.py` says what to change
in it; `scope.py` holds it to what its credential may send. A refused event gets its reason (`errors.py`) and is kept
nowhere. The others go by `write.py` to Kafka (`tally.py` counts them), and only when Kafka has acknowledged them does
`answer.py` say 200; `replies.py` keeps the answers in the order of the requests, and `tell.py` writes into the log what
was refused.

Other systems **exchange** files with it: `cli.py` has the commands, and `command.py` imports one. `opening.py`
opens it and its mapping, and says once what would be wrong in every line (`fit.py`). `lines.py` reads it, `mapping.py`
makes fields of its columns (`values.py`: of what they hold), and `taking.py` takes them, many in a transaction, noting
in `checkpoint.py` how far it is; what is not taken is kept with its reason (`refused.py`,
`fields.py`). A line is one of `parties.py`, `devices.py`, `relationships.py` or `events.py`; events go to the edge like
live ones, in a lane that yields to them (`pace.py`). `export.py` writes all of it out again, into the files of
`parquet.py`.

**Kafka** keeps it. `topics.py` names the topics: the ingress topic holds the event's own bytes, with the facts of its
receipt (`event.py`) in headers. `writer.py` appends it to a batch (`batch.py`) of the partition that its subject hashes
to (`partition.py`); `cluster.py` knows who leads that partition, `leader.py` sends each leader one round at a time, and
`produce.py` lays the request out. `connection.py` is how every client of ours connects. On the way out `group.py` is
our membership in a consumer group, `buffers.py` shares out what was fetched, and `reader.py` hands it to a worker and
commits only what the worker says is durable. What can go no further is kept with its reason by `dead_letters.py`.
`tail.py` shows people what passes (`show.py`: how it looks).

The **pipeline** gives it meaning. `command.py` runs its two workers, and `splice.py` adds attributes to an event's
bytes without touching what the sender wrote; `brake.py` stops a worker where too many events fail. `enrich/worker.py`
reads the ingress topic, each partition in order: `enrich/directory.py` brings the context of the subjects in a batch
(`enrich/context.py`: the device's model, the parties who held a role on it then), and `enrich/steps.py` takes each
record on from there. `enrich/ingress.py` reads it, it is placed in time, `enrich/remembered.py` knows a retry,
`enrich/user_agent.py` tells the app. So it comes into the topic of its family, which product teams subscribe to.
`attach/worker.py` reads the families: `attach/follow.py` sees that no offset is missing, `attach/decode.py` makes rows
of the records, and a batch becomes durable in Postgres with the position it has reached, in one transaction;
`attach/bury.py` writes its dead letters before that commits. Who signed in is linked by `attach/link.py` after the
commit: `attach/ranges.py` derives from identity events of a device who held which role when. What changed in
records is published by `attach/relay.py`, in order, and `attach/total.py` counts what parties with very many devices
have on theirs. `attach/accounts.py` counts what became of each event, and `attach/keep.py` waits for Postgres and keeps
its partitions.

Dead letters are a person's: `letters/cli.py` has the commands, and `letters/command.py` does them. `letters/find.py`
looks in their topic, `letters/show.py` draws them, `letters/mend.py` makes the record that goes back where a letter
came from, and `letters/replay.py` writes it and sees what becomes of it.

**Postgres** holds it, through connections whose every wait has an end (`pool.py`; `trouble.py` says in words why there
is none), in tables that `migrate.py` brings. `store/events.py` is that transaction: `store/positions.py` moves the
position, by its owner alone; `store/rows.py` packs identities and events for COPY; `store/days.py` adds them to the day
counts of their subject; `store/refusals.py` finds the rows that Postgres refuses, and `store/dead.py` notes what cannot
be stored; `relations/identities.py` keeps what identity events say, `relations/evidence.py` reads what relations follow
from, as far as it is not settled, `relations/derive.py` makes them equal to it, and `relations/recheck.py` sees to
references that change meanwhile. `store/partitions.py` makes months and drops them. Beside the path, `credentials.py`
holds the keys for the edge, `spent.py` carries what the edges tell each other, and `directory.py` answers enrich who a
device is and whose.
`registry/senders.py` has who may send, `registry/devices.py` which devices there are, `registry/parties.py` the parties
and what they are called, `registry/attributes.py` what is said of them, `relations/links.py` which of them are the same
(`relations/link.py` links and unlinks them), `relations/relationships.py` who held which role when, as we know it now
and as we knew it then: `relations/relate.py` begins a relation, `relations/revise.py` ends, corrects or withdraws it,
`relations/changes.py` is how all of them lock, conflict and are written down, `relations/moves.py` counts which events
that moved, and `relations/outbox.py` hands the changes out to be published. `relations/claims.py` keeps the codes that
prove possession of a device, `relations/hand_over.py` passes it from one owner to the next, `relations/replace.py` puts
another in its place, and `relations/predecessors.py` knows whose place it took. And `records.py` puts a party's record
together from all of it when it is read, so that a correction learnt late is right at once. Each of its steps is a piece
of SQL: `record/known.py` reads relations and links as they were known at a time, `record/about.py` finds the subjects a
record is about, and when, `record/tally.py` counts what happened then, `record/own.py` is what everybody's record shows
beside that, and `record/rare.py` looks at faults, ratings and visits one by one, for `record/sold.py` (of a vendor),
`record/serviced.py` (of a partner), `record/cared_for.py` (of an employee) and `record/supplied.py` (of a supplier),
which `record/kinds.py` picks from; `record/figures.py` asks for all that are picked at once. What would take too long
to read so is counted beforehand, in bounded steps: `totals/step.py` does one of them for the parties that
`totals/find.py` found too large, up to what `totals/horizon.py` knows to be committed; `totals/fresh.py` adds new
events, `totals/touched.py` knows which subjects a change concerns, `totals/compare.py` counts the difference between
what is counted and what holds, `totals/parts.py` has the rare parts of a record and `totals/shown.py` adds up what is
shown, which `record/whole.py` and `record/figures.py` read; `record/then.py` makes figures of another time of it.
`record/timeline.py` tells it all in one order, a page at a time (`record/page.py`): `record/by_subject.py` looks for
the events on each subject, `record/by_time.py` among everybody's newest, and `record/turned.py` tells when relations
began and ended. `store/fates.py` tells what became of a single event. `bulk/parties.py` (`bulk/said.py`: what is said
of them), `bulk/devices.py` and `bulk/relations.py` (judged by what `bulk/known.py` finds, written by `bulk/begun.py`)
have the same rules for many at once; `bulk/unload.py` hands all of it out. Each process has the rights of its own role
and no others (`roles.py`).

**serve** shows it to people and their programs. `app.py` opens the rooms. `requests.py` gives each request an id and a
bound, `access.py` asks who it is and lends it a connection, `problems.py` answers what goes wrong (`violations.py`: in
a field of theirs); `shapes.py` and `pages.py` are the fields and the cursors that the rooms share. `senders.py` (their
keys: `keys.py`, `fleet_keys.py`), `parties.py` (what is said of them: `attributes.py`, believed in the order of
`origins.py`; which are the same: `links.py`), `devices.py` and `relationships.py` are the registry (`revisions.py` ends
and corrects relations, `claims.py` lists and claims devices, `hand_over.py` hands them over, `replacements.py` replaces
them, of which `predecessors.py` shows the line), `records.py` a party's record (`activity.py`: what happened;
`kinds.py`: what a vendor, partner, employee or supplier has beside), `timeline.py` its timeline, `events.py` an event,
its fate, and why it is on whose record. `conditional.py` lets clients keep what they have read.

**up** starts all of this on one machine, with a Kafka and a Postgres of its own; `up/__init__.py` names its files.

`__main__.py` is the command line (`terminal.py`: how each command begins and fails): the command picks the process.
Every bound of every process is in `settings.py`. Each event that a process receives ends with exactly one outcome
(`outcome.py`), the label of its metric (`metrics.py`); `health.py` tells whether the process could do its work,
`logs.py` how it writes what it sees, `reference.py` which references identify a party and which nobody, `examples.py`
whether schemas and the examples beside them agree, and `silence.py` ends a connection that has fallen silent.
`doctor.py` looks at everything, through `kafka/probe.py` and `postgres/probe.py`, and says what to do.
"""
