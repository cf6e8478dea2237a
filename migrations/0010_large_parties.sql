-- Totals of large parties. A record is put together when it is read (0003_…); of a party with very many devices that
-- would take seconds, so a keeper in attach counts beforehand. What it counted is stored beside what it counted it for:
-- each step compares that with what holds now, and counts the difference.

create table large_party (
    id           bigint generated always as identity primary key,
    party        uuid not null references party,
    members      uuid[] not null,
    kind         text not null,
    built_to     text collate "C" not null default '',
    built_at     timestamptz,
    shown        jsonb,
    shown_at     timestamptz,
    stale        boolean not null default true
);
comment on table large_party is 'Parties, each with those linked to it, whose records are read from totals; two rows of a party while it is counted anew.';
comment on column large_party.party is 'The one made first, by which the group is found.';
comment on column large_party.built_to is 'Subjects up to this one are counted.';
comment on column large_party.built_at is 'Null: not all of them are, and the record is read live.';
comment on column large_party.shown is 'Figures that are few and take long to add up, as they were at shown_at.';
comment on column large_party.stale is 'What they are made of has changed since.';
create unique index large_party_built on large_party (party) where built_at is not null;
create index large_party_members on large_party using gin (members);

create table large_party_span (
    large        bigint not null references large_party on delete cascade,
    subject      text collate "C" not null,
    valid        tstzmultirange not null,
    due_at       timestamptz,
    primary key (subject, large)
);
comment on table large_party_span is 'Which events the totals have in them: of the subject, in these ranges, recorded before totals_position.through.';
comment on column large_party_span.due_at is 'When a relation on the subject begins or ends next, as is known beforehand.';
create index large_party_span_large on large_party_span (large, subject);
create index large_party_span_due on large_party_span (due_at) where due_at is not null;

create table large_party_day (
    large        bigint not null references large_party on delete cascade,
    day          date not null,
    type         text collate "C" not null,
    events       bigint not null check (events >= 0),
    first_at     timestamptz,
    last_at      timestamptz,
    last_subject text collate "C",
    primary key (large, day, type)
) with (fillfactor = 70);
comment on column large_party_day.first_at is 'Null: not known, since some events of the day came or went all at once.';
comment on column large_party_day.last_at is 'Null: not known, since what was the last has gone.';

create table large_party_reached (
    large        bigint not null references large_party on delete cascade,
    subject      text collate "C" not null,
    party        uuid not null,
    person       uuid not null,
    valid        tstzrange not null
);
comment on table large_party_reached is 'Of a vendor: which customer had which device that it sold, or bought without one (subject is the customer), and when.';
comment on column large_party_reached.person is 'The customer; of those that are linked the one made first.';
create index large_party_reached_subject on large_party_reached (large, subject);
create index large_party_reached_party on large_party_reached (party, large);

create table large_party_part (
    large        bigint not null references large_party on delete cascade,
    part         text not null,
    subject      text collate "C" not null,
    row          jsonb not null
);
comment on table large_party_part is 'What a subject contributes to what is rare: open faults, answers, visits; replaced as a whole.';
create index large_party_part_subject on large_party_part (large, subject);
create index large_party_part_of on large_party_part (subject);
create index large_party_part_part on large_party_part (large, part);

create table totals_position (
    only_one     boolean primary key default true check (only_one),
    through      timestamptz not null,
    number       bigint not null,
    swept_to     uuid,
    swept_at     timestamptz
);
comment on table totals_position is 'How far the totals are: events recorded before `through`, changes up to `number`.';
comment on column totals_position.swept_to is 'Up to which party it was looked for large ones; null: not at it.';
insert into totals_position (through, number) values ('2000-01-01T00:00:00Z', 0);

-- What is said under a reference is on the records of whose it is, so totals are told when one comes or goes of a party
-- that stands in any relation, or is linked to one that may. It is no business of who changes a reference, so this runs as the owner.
create table large_party_renamed (
    subject      text collate "C" not null,
    party        uuid not null
);
comment on table large_party_renamed is 'Names that have come to mean another party, or none, for the next step to look at.';
comment on column large_party_renamed.party is 'Who is, or was, called so.';
create function note_renamed() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
    if exists (select from large_party) then
        insert into large_party_renamed (subject, party)
        select 'party:' || namespace || ':' || ref, changed.party from changed
        where exists (select from relationship where relationship.party = changed.party and upper_inf(recorded))
           or exists (select from relationship where subject = 'party:' || changed.party and upper_inf(recorded))
           or exists (select from party_link where party_link.party = changed.party and upper_inf(recorded))
           or exists (select from party_link where other = changed.party and upper_inf(recorded));
    end if;
    return null;
end $$;
revoke execute on function note_renamed from public;
create trigger note_renamed_with after insert on party_ref referencing new table as changed
    for each statement execute function note_renamed();
create trigger note_renamed_without after delete on party_ref referencing old table as changed
    for each statement execute function note_renamed();

-- What was recorded since the last step is found by this: some pages for a month of events, and nothing that attach
-- would notice.
create index event_recorded_at on event using brin (recorded_at) with (pages_per_range = 32, autosummarize = on);
-- The newest events of everybody: among them a page of a large party's timeline is found sooner than on each of its
-- devices. They come nearly in this order, so it grows at its end (0.8 µs an event). The condition always holds: only a
-- question that says so may use it. What asks for the events of one subject would else be planned by it for a month
-- that is empty yet, and go through all of that later, once for each subject.
create index event_occurred_at on event (occurred_at) where recorded_at > '-infinity';
create index event_rare_occurred_at on event (occurred_at)
    where type in ('device.fault', 'feedback.rating', 'support.contact') and recorded_at > '-infinity';

-- Pages of the devices and relations of a large party, in their orders.
create index relationship_party_subject on relationship (party, subject) where upper_inf(recorded);
create index relationship_party_since on relationship (party, lower(valid) desc nulls last, id) where upper_inf(recorded);
create index relationship_party_until on relationship (party, upper(valid)) where upper_inf(recorded);

-- attach still reads no data of events but of what is rare.
create view rare_event as
    select subject, source, id, type, occurred_at, recorded_at, sequence, content_hash, data from event
    where type in ('device.fault', 'feedback.rating', 'support.contact');

grant select, insert, update, delete on large_party, large_party_span, large_party_day, large_party_part,
    large_party_reached to drm_attach;
grant select, delete on large_party_renamed to drm_attach;
grant select, update on totals_position to drm_attach;
grant select on rare_event to drm_attach, drm_serve;
grant select (recorded_at) on event to drm_attach;
grant select on large_party, large_party_span, large_party_day, large_party_part, large_party_reached,
    totals_position to drm_serve;
