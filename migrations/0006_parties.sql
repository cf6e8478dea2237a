-- What is known of a party, by whom, and which parties are the same.

-- Attributes: each origin has its own word, and none is overwritten by another's ----------------------------------------

create table origin (
    name   text collate "C" primary key check (name ~ '^[a-z][a-z0-9-]{0,39}$'),
    trust  int not null unique check (trust > 0)
);
comment on table origin is 'The declared order of trust: 1 is believed first; origins that are not here come last.';

create table party_attribute (
    party        uuid not null references party on delete cascade,
    name         text collate "C" not null check (name ~ '^[a-z][a-z0-9_.-]{0,59}$'),
    origin       text collate "C" not null check (origin ~ '^[a-z][a-z0-9-]{0,39}$'),
    value        jsonb,
    said_at      timestamptz not null,
    recorded_at  timestamptz not null default clock_timestamp(),
    asserted_by  text not null check (length(asserted_by) between 1 and 300),
    primary key (party, name, origin)
);
comment on table party_attribute is 'The last word of each origin on each attribute of a party; which is agreed on is decided when it is read.';
comment on column party_attribute.value is
    'Null: the origin took its word back, and what it said before said_at and arrives later stays so.';

-- Links: parties found to be the same, joined when they are read and apart again once unlinked --------------------------

create table party_link (
    id           uuid primary key default uuidv7(),
    party        uuid not null,
    other        uuid not null,
    kind         text not null,
    reason       text not null check (length(reason) between 1 and 300),
    asserted_by  text not null check (length(asserted_by) between 1 and 300),
    recorded     tstzrange not null
                     check (not isempty(recorded) and lower_inc(recorded) and not upper_inc(recorded)),
    check (party < other),
    foreign key (party, kind) references party (id, kind),
    foreign key (other, kind) references party (id, kind),
    constraint party_link_held_once exclude using gist (party with =, other with =, recorded with &&)
);
comment on table party_link is
    'Two parties of one kind that are the same: their records are one while recorded is open. The one made first is party.';
create index party_link_party on party_link (party) where upper_inf(recorded);
create index party_link_other on party_link (other) where upper_inf(recorded);
-- For what was known at an earlier time.
create index party_link_party_before on party_link (party) where not upper_inf(recorded);
create index party_link_other_before on party_link (other) where not upper_inf(recorded);

grant select, insert, update, delete on origin to drm_serve;
grant select, insert, update on party_attribute, party_link to drm_serve;
