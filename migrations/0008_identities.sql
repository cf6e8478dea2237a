-- Identity through events: who signed in where is a relation made of identity events, and made anew with each that comes
-- late. What changed is published in its order.

create table identity_event (
    key          uuid primary key,
    subject      text collate "C" not null,
    linked       boolean not null,
    namespace    text,
    ref          text,
    party        uuid,
    role         text not null,
    method       text,
    occurred_at  timestamptz not null,
    sequence     text,
    content_hash uuid not null,
    sender       text not null,
    recorded_at  timestamptz not null default clock_timestamp(),
    usable       boolean not null,
    due          boolean not null default true,
    refused      text,
    settled_in   xid8,
    settled_as   uuid,
    check ((namespace is null) = (ref is null)),
    check (usable or refused is not null)
);
comment on table identity_event is
    'Events identity.linked and identity.unlinked, for ever: the relations of a subject are derived from all of them.';
comment on column identity_event.key is 'That of event_identity.';
comment on column identity_event.namespace is 'With ref, or party: whom it is about, as it is kept; neither: everybody who holds the role.';
comment on column identity_event.usable is 'False where it can never say anything; refused tells why.';
comment on column identity_event.due is 'Relations do not have it in them yet.';
comment on column identity_event.refused is 'Why it says nothing, as far as is known now.';
comment on column identity_event.settled_in is
    'The transaction that put it into relations, where one beside it might have changed whose its reference is; null: none.';
comment on column identity_event.settled_as is 'Whose its reference was then; null: nobody''s.';
create index identity_event_subject on identity_event (subject);
create index identity_event_due on identity_event (subject) include (recorded_at) where due;
create index identity_event_ref on identity_event (namespace, ref);
create index identity_event_settled on identity_event (settled_in) where settled_in is not null;

alter table relationship add column derived boolean not null default false;
comment on column relationship.derived is
    'Made of identity events and kept equal to them; a person who changes it makes it theirs, and it stays as they said.';
create index relationship_derived_before on relationship (subject) where derived and not upper_inf(recorded);

-- Whose a reference is says whose the events are that name it. It is no business of who changes a reference how identity
-- events are kept, so this runs as the owner. Once a statement: references come by the million. It does not see what is
-- being settled at the same time, nor what comes before this is committed: attach looks at those again (settled_in).
create function derive_again() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
    update identity_event set due = true
    from (select distinct namespace, ref from changed) as named
    where identity_event.namespace = named.namespace and identity_event.ref = named.ref and not due and usable;
    return null;
end $$;
revoke execute on function derive_again from public;
create trigger derive_again_with after insert on party_ref referencing new table as changed
    for each statement execute function derive_again();
create trigger derive_again_without after delete on party_ref referencing old table as changed
    for each statement execute function derive_again();

-- How far the changes are published ---------------------------------------------------------------------------------------

create table relay_position (
    topic     text primary key,
    number    bigint not null,
    seen_at   timestamptz not null default clock_timestamp()
);
comment on table relay_position is 'The last change that is in the topic for good, and when its relay was last alive.';

-- attach derives relations, which takes what serve needs for the same; of events it still reads no data, and of parties
-- not what they are called by people.
grant select, insert, update on identity_event, relay_position to drm_attach;
grant select, insert, update (recorded) on relationship to drm_attach;
grant select, insert on relationship_change, relationship_move, party_ref to drm_attach;
grant select on role, role_kind, party_link to drm_attach;
grant select (id, kind), insert on party to drm_attach;
grant select (subject, type) on event to drm_attach;
grant select on identity_event, relay_position to drm_serve;
