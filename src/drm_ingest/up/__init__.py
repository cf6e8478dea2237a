"""The one-machine runtime: a real Kafka, a real Postgres and every process of ours, from one command.

    command     what `drm-ingest up` does, in order
    supervisor  starts, watches, starts again, stops
    child       one process: its group, its log, its end
    last_words  the end of its log, for a person
    launch      the few lines between our fork and its exec
    server      a server that is not ours: prepared, started and awaited, killed
    kafka       Apache Kafka from pinned jars (`fetch`, `kafka.lock`, written by `pin`) on a Java from PyPI
    postgres    Postgres from a wheel, as somebody else where we are root
    probe       whether one of ours is ready
    ports       which are free
    data_dir    the folder: lock, ports, keys, what tools read
    greeting    what a person sees when it works

Needs the extra `up`; a production image has none of it. The tests run on the same Kafka and Postgres.
"""
