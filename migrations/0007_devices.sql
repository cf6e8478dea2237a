-- Devices come to their owners by a code that proves possession, and what breaks is replaced.

-- Codes -------------------------------------------------------------------------------------------------------------------

create table claim_code (
    device       text collate "C" primary key references device,
    hash         bytea not null check (length(hash) = 32),
    guesses      int not null default 0 check (guesses >= 0),
    relationship uuid,
    made_by      text not null check (length(made_by) between 1 and 300),
    made_at      timestamptz not null,
    expires_at   timestamptz not null
);
comment on table claim_code is 'Whoever knows the code has the device at hand, and may become its owner; one code a device.';
comment on column claim_code.hash is 'SHA-256 of the device and the code; the code itself is 80 random bits and is shown once.';
comment on column claim_code.guesses is 'Wrong codes that were tried on it; after so many it is dead.';
comment on column claim_code.relationship is 'The relation that it began; null while it was not used.';

-- Hand-overs ------------------------------------------------------------------------------------------------------------

create table hand_over (
    id           uuid primary key default uuidv7(),
    device       text collate "C" not null references device,
    at           timestamptz not null,
    givers       uuid[] not null,
    takers       uuid[] not null,
    everybody    boolean not null,
    begun        uuid not null,
    recorded_at  timestamptz not null
);
comment on table hand_over is
    'When a device went from one owner to the next: a sign-in of before we knew, however late we hear of it, ends there.';
comment on column hand_over.everybody is 'All others stopped using it too.';
comment on column hand_over.begun is 'The relation of the next owner; where it begins at another time by now, this says nothing.';
create index hand_over_device on hand_over (device);

-- Replacements, in two times: at is when it was done, recorded when we knew ----------------------------------------------

alter table role add column goes_on boolean not null default true;
update role set goes_on = false where name in ('made_by', 'parts_by');
comment on column role.goes_on is 'Whoever holds it on a device holds it on the one that replaces it; else it is of the thing itself.';

create table device_replacement (
    id           uuid primary key default uuidv7(),
    device       text collate "C" not null references device,
    by           text collate "C" not null references device,
    at           timestamptz not null,
    asserted_by  text not null check (length(asserted_by) between 1 and 300),
    reason       text check (length(reason) between 1 and 300),
    recorded     tstzrange not null
                     check (not isempty(recorded) and lower_inc(recorded) and not upper_inc(recorded)),
    undone_by    text check (length(undone_by) between 1 and 300),
    undone_why   text check (length(undone_why) between 1 and 300),
    check (device <> by),
    check ((undone_by is null) = upper_inf(recorded)),
    constraint device_replaced_once exclude using gist (device with =, recorded with &&),
    constraint device_replaces_once exclude using gist (by with =, recorded with &&)
);
comment on table device_replacement is
    'Hardware replaced by other hardware, which continues its history; undone where recorded is closed.';
create index device_replacement_device on device_replacement (device) where upper_inf(recorded);
create index device_replacement_by on device_replacement (by) where upper_inf(recorded);
-- For what was known at an earlier time.
create index device_replacement_by_before on device_replacement (by) where not upper_inf(recorded);

create table device_replacement_relation (
    replacement  uuid not null references device_replacement,
    ended        uuid not null,
    version      int not null,
    begun        uuid,
    primary key (replacement, ended),
    foreign key (ended, version) references relationship (id, version)
);
comment on table device_replacement_relation is 'What a replacement did to relations, so that it can be undone exactly.';
comment on column device_replacement_relation.version is 'The one that it wrote, of the relation that it ended.';
comment on column device_replacement_relation.begun is 'On the new device; null where the party held that role there already.';

grant select, insert, update on claim_code, device_replacement to drm_serve;
grant select, insert on device_replacement_relation, hand_over to drm_serve;
grant select on hand_over to drm_attach;
