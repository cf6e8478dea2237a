"""drm-ingest: the life of an event, in the order of the folders.

    device ──▶ edge ──▶ kafka ──▶ pipeline ──▶ postgres ──▶ serve ──▶ people

A **device** or an app posts events; `device/send.py` stands in for one and sends recordings.

The **edge** takes them. `edge/door.py` speaks HTTP, `edge/websocket.py` WebSocket; both go through `edge/take.py`: it
asks `edge/credentials.py` who is sending, holds what arrives within `edge/limits.py`, and hands the body to
`edge/admit.py`: what can never be stored is refused there, event by event, each with its reason (`errors.py`). What
remains goes by `edge/write.py` to `kafka/writer.py`, which fills batches (`kafka/batch.py`) and sends them in rounds,
one in flight to each broker (`kafka/leader.py`); only when Kafka has acknowledged its events does a sender get its 200.

**Kafka** keeps it. `kafka/topics.py` names the topics: the ingress topic holds the event's own bytes, with the facts of
its receipt (`event.py`) in headers. `kafka/reader.py` hands records to the workers and commits only what they say is
durable; what cannot go on is kept with its reason by `kafka/dead_letters.py`.

The **pipeline** gives it meaning. `pipeline/enrich.py` corrects its time and adds the context that
`pipeline/directory.py` remembers (the device's model, the parties who held a role on it at that time) and writes it to
the topic of its family, which product teams subscribe to and `drm-ingest tail` shows. `pipeline/attach.py` reads the
families and makes each event durable in Postgres exactly once, with the position it has reached, in one transaction.

**Postgres** holds it. `postgres/events.py` inserts events, their identities and the day counts;
`postgres/relationships.py` says who held which role when; `postgres/records.py` puts a party's record together from the
two when it is read, so that a correction learnt late is right at once. `postgres/migrate.py` brings the tables.

**serve** shows it to people and their programs: `serve/app.py` opens the registry (`serve/senders.py`,
`serve/parties.py`, `serve/devices.py`, `serve/relationships.py`), the records and timelines (`serve/records.py`), and
what became of a single event (`serve/events.py`).

`up/supervisor.py` starts all of this on one machine, with a Kafka and a Postgres of its own.

Every event that a process receives ends with exactly one `Outcome` (`outcome.py`), which is the label of its metric
(`metrics.py`). Every bound has its place in `settings.py`. `__main__.py` is the command line: the command picks the
process.
"""
