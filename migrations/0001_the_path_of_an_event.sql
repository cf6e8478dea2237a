-- Tables for the whole path of an event: who may send, what it belongs to, the events themselves.
-- Ranges are [) throughout; times are timestamptz; identifiers given out are UUID version 7, so they sort by age.
-- Subjects and types compare byte by byte (collate "C"), on every server alike: it is faster, and an upgrade of the
-- system's locales cannot spoil their indexes.

create extension if not exists btree_gist;

-- Who may send and read ---------------------------------------------------------------------------------------------

create table sender (
    id          uuid primary key default uuidv7(),
    name        text not null unique check (length(name) between 1 and 100),
    role        text not null default 'sender' check (role in ('sender', 'reader', 'admin')),
    device      text collate "C" check (length(device) between 1 and 200),
    created_at  timestamptz not null default now()
);
comment on table sender is 'Who holds credentials: an app, a fleet, a back office, an administrator.';
comment on column sender.device is 'The device that events without a subject are about, for a credential bound to one.';

create table sender_key (
    id          uuid primary key default uuidv7(),
    sender      uuid not null references sender on delete cascade,
    hash        bytea not null unique check (length(hash) = 32),
    prefix      text not null,
    created_at  timestamptz not null default now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);
comment on column sender_key.hash is 'SHA-256 of the key; the key itself is 256 random bits and is shown once.';
create index sender_key_sender on sender_key (sender);

-- Parties: customers, vendors, partners, employees, suppliers --------------------------------------------------------

create table party (
    id          uuid primary key default uuidv7(),
    kind        text not null check (kind in ('customer', 'vendor', 'partner', 'employee', 'supplier')),
    name        text not null check (length(name) between 1 and 300),
    created_at  timestamptz not null default now()
);

create table party_ref (
    namespace   text not null check (namespace ~ '^[a-z][a-z0-9-]{0,39}$'),
    ref         text not null check (length(ref) between 1 and 150),
    party       uuid not null references party on delete cascade,
    primary key (namespace, ref)
);
comment on table party_ref is 'What other systems call a party: crm 778 is written crm:778.';
create index party_ref_party on party_ref (party);

-- Devices --------------------------------------------------------------------------------------------------------------

create table device (
    subject       text collate "C" primary key check (length(subject) between 1 and 200 and not starts_with(subject, 'party:')),
    model         text check (length(model) <= 200),
    firmware      text check (length(firmware) <= 200),
    registered_at timestamptz not null default now(),
    registered_by text not null check (registered_by in ('event', 'relationship', 'registry'))
);
comment on table device is 'Every device or app installation ever heard of; unclaimed while nobody holds a role on it.';

-- Relations in two times ------------------------------------------------------------------------------------------------

create table role (
    name         text primary key check (name ~ '^[a-z][a-z_]{0,39}$'),
    exclusive    boolean not null,
    subject_kind text not null check (subject_kind in ('device', 'party')),
    meaning      text not null,
    unique (name, exclusive, subject_kind)
);
comment on column role.exclusive is 'At most one party at a time holds an exclusive role on a subject.';

insert into role (name, exclusive, subject_kind, meaning) values
    ('owner',        true,  'device', 'whose device it is'),
    ('user',         false, 'device', 'who uses it, signed in'),
    ('sold_by',      true,  'device', 'the vendor that sold it'),
    ('serviced_by',  false, 'device', 'the partner that looks after it'),
    ('installed_by', false, 'device', 'the partner that put it in place'),
    ('made_by',      true,  'device', 'the supplier that made it'),
    ('parts_by',     false, 'device', 'a supplier of parts or batches in it'),
    ('buys_from',    false, 'party',  'the vendor a customer buys from'),
    ('cared_for_by', false, 'party',  'the employee who cares for a customer'),
    ('works_for',    false, 'party',  'the company an employee works for'),
    ('supplies',     false, 'party',  'whom a supplier supplies');

create table relationship (
    id           uuid primary key default uuidv7(),
    subject      text collate "C" not null check (length(subject) between 1 and 200),
    role         text not null,
    party        uuid not null references party,
    exclusive    boolean not null,
    subject_kind text not null generated always as (case when starts_with(subject, 'party:') then 'party' else 'device' end) stored,
    slot         uuid not null generated always as
                     (case when exclusive then '00000000-0000-0000-0000-000000000000'::uuid else party end) stored,
    valid        tstzrange not null check (not isempty(valid) and not upper_inc(valid) and (lower_inf(valid) or lower_inc(valid))),
    recorded     tstzrange not null default tstzrange(clock_timestamp(), null)
                     check (not isempty(recorded) and lower_inc(recorded) and not upper_inc(recorded)),
    asserted_by  text,
    reason       text,
    foreign key (role, exclusive, subject_kind) references role (name, exclusive, subject_kind),
    -- A party is called by its id and by each of its references, but relations know it by one name: its id, as it is
    -- written. Records lead from that name to all others.
    constraint relationship_subject_by_id
        check (not starts_with(subject, 'party:') or subject = 'party:' || (substr(subject, length('party:') + 1)::uuid)),
    constraint relationship_held_once
        exclude using gist (subject with =, role with =, slot with =, valid with &&, recorded with &&)
);
comment on table relationship is
    'Who held which role on a subject: valid is when it was true, recorded is when we knew; open and superseded rows together.';
comment on column relationship.slot is '0 for a role that excludes others in time, else the party: what the exclusion compares.';
create index relationship_party on relationship (party, role) where upper_inf(recorded);
create index relationship_subject on relationship (subject) where upper_inf(recorded);

create table relationship_change (
    number       bigint generated always as identity primary key,
    relationship uuid not null,
    subject      text collate "C" not null,
    party        uuid not null,
    role         text not null,
    change       text not null,
    detail       jsonb not null,
    recorded_at  timestamptz not null default clock_timestamp()
);
comment on table relationship_change is 'What changed in records, in order, written in the transaction of the change.';

-- A change of a device or of its relations is told to whoever remembers them.
create function tell_directory() returns trigger language plpgsql as $$
begin
    perform pg_notify('drm_directory', new.subject);
    return null;
end $$;
create trigger tell_directory after insert or update on relationship for each row execute function tell_directory();
create trigger tell_directory after insert or update of model, firmware on device for each row
    when (new.registered_by <> 'event' or new.model is not null or new.firmware is not null)
    execute function tell_directory();

create function tell_directory_of_ref() returns trigger language plpgsql as $$
begin
    if tg_op <> 'INSERT' then
        perform pg_notify('drm_directory', 'party:' || old.namespace || ':' || old.ref);
    end if;
    if tg_op <> 'DELETE' then
        perform pg_notify('drm_directory', 'party:' || new.namespace || ':' || new.ref);
    end if;
    return null;
end $$;
create trigger tell_directory after insert or update or delete on party_ref for each row
    execute function tell_directory_of_ref();

-- Events ----------------------------------------------------------------------------------------------------------------

create table event (
    -- Fixed widths first, so that no row carries padding.
    occurred_at     timestamptz not null,
    received_at     timestamptz not null,
    -- Not clock_timestamp(): a volatile default makes COPY insert row by row.
    recorded_at     timestamptz not null default statement_timestamp(),
    content_hash    uuid not null,
    subject         text collate "C" not null,
    source          text not null,
    id              text not null,
    type            text collate "C" not null,
    occurred_at_raw text,
    time_quality    text not null,
    sequence        text collate "C",
    sender          text not null,
    dataschema      text,
    data            jsonb
) partition by range (occurred_at);
comment on column event.occurred_at_raw is 'The time exactly as sent; null where none was.';
create index event_subject_occurred_at on event (subject, occurred_at);
create table event_default partition of event default;

create table event_identity (
    key          uuid primary key,
    content_hash uuid not null,
    occurred_at  timestamptz not null
);
comment on table event_identity is 'Subject, source and id as a 128-bit hash: what makes an event the same event, whatever its time.';

create table subject_day (
    day           date not null,
    events        bigint not null check (events > 0),
    last_at       timestamptz not null,
    last_hash     uuid not null,
    subject       text collate "C" not null,
    type          text collate "C" not null,
    last_sequence text collate "C",
    last_data     jsonb,
    primary key (subject, day, type)
) with (fillfactor = 70);
comment on table subject_day is 'Events of a subject by UTC day and type, whoever holds it, with the latest of them.';
comment on column subject_day.last_hash is
    'content_hash of the latest: where time and sequence are equal the greater one is the latest, whatever came first.';

create table dead_letter (
    topic        text not null,
    "partition"  int not null,
    "offset"     bigint not null,
    key          uuid,
    content_hash uuid,
    stage        text not null,
    code         text not null,
    detail       text not null,
    recorded_at  timestamptz not null default now(),
    primary key (topic, "partition", "offset")
);
comment on table dead_letter is 'Where the fate of a dead letter is looked up; the letter itself is in its topic.';
create index dead_letter_key on dead_letter (key);

create table consumer_position (
    consumer_group text not null,
    topic          text not null,
    "partition"    int not null,
    next_offset    bigint not null,
    holder         text not null,
    moved_at       timestamptz not null default now(),
    primary key (consumer_group, topic, "partition")
) with (fillfactor = 50);
comment on column consumer_position.next_offset is '-1: claimed, nothing committed yet.';
comment on column consumer_position.holder is
    'application_name of the worker that may move it; empty once given up, so that its successor need not end it.';
comment on table consumer_position is 'What is committed of each partition; moved in the transaction of the rows, by compare and set.';
