"""The scale run: a million devices, their relations and 20 million events, and how fast they are read under live load.

__main__    the command: build, start, load, measure, tell
world       parties, devices and relations, drawn from a seed
happenings  what happened on them, day by day
build       all of that into Postgres, through COPY, as attach and the doors would have left it
running     `drm-ingest up` on the data, and live load through its edge
reads       pages asked for over HTTP, and how long they took
shifts      back-dated changes, and when records show them
"""
