-- Quotas: how much a sender may send, and how much each of its devices. They belong to the sender and not to the key, so
-- that a key that is being replaced by another does not double them.

alter table sender
    add column events_per_s         double precision check (events_per_s > 0 and events_per_s < 'infinity'),
    add column bytes_per_s          double precision check (bytes_per_s > 0 and bytes_per_s < 'infinity'),
    add column device_events_per_s  double precision check (device_events_per_s > 0 and device_events_per_s < 'infinity'),
    add column device_bytes_per_s   double precision check (device_bytes_per_s > 0 and device_bytes_per_s < 'infinity'),
    add column burst_s              integer not null default 10 check (burst_s between 1 and 3600);
comment on column sender.events_per_s is 'What all its keys and devices together may send on average; null: no quota.';
comment on column sender.device_events_per_s is 'What each of its subjects may send on average; null: no quota.';
comment on column sender.burst_s is 'So many seconds'' worth of a quota may come at once.';
