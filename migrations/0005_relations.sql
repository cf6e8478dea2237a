-- Relations in two times: a relation keeps its id through its corrections, each of which is a version, and Postgres knows
-- which kinds a role joins. What a change moved onto and off the records of parties is written down beside it.

-- Which kinds a role joins -----------------------------------------------------------------------------------------------

alter table relationship drop constraint relationship_role_exclusive_subject_kind_fkey;
alter table role drop column subject_kind, add unique (name, exclusive);

create table role_kind (
    role         text not null,
    exclusive    boolean not null,
    subject_kind text not null check (subject_kind in ('device', 'customer', 'vendor', 'partner', 'employee', 'supplier')),
    party_kind   text not null check (party_kind in ('customer', 'vendor', 'partner', 'employee', 'supplier')),
    primary key (role, subject_kind, party_kind),
    unique (role, exclusive, subject_kind, party_kind),
    foreign key (role, exclusive) references role (name, exclusive)
);
comment on table role_kind is 'Which kinds a role joins: of the subject (a device, or a party of that kind) and of the party that holds it.';

insert into role_kind (role, exclusive, subject_kind, party_kind)
select name, exclusive, subject_kind, party_kind
from role join (values
    ('owner',        array['device'], array['customer', 'vendor', 'partner', 'employee', 'supplier']),
    ('user',         array['device'], array['customer', 'vendor', 'partner', 'employee', 'supplier']),
    ('sold_by',      array['device'], array['vendor']),
    ('serviced_by',  array['device'], array['partner', 'vendor', 'employee']),
    ('installed_by', array['device'], array['partner', 'vendor', 'employee']),
    ('made_by',      array['device'], array['supplier']),
    ('parts_by',     array['device'], array['supplier']),
    ('buys_from',    array['customer'], array['vendor', 'partner']),
    ('cared_for_by', array['customer'], array['employee', 'partner']),
    ('cared_for_by', array['vendor', 'partner', 'supplier'], array['employee']),
    ('works_for',    array['employee'], array['vendor', 'partner', 'supplier', 'customer']),
    ('supplies',     array['supplier'], array['vendor', 'partner', 'customer', 'supplier'])
) as joins (role, subject_kinds, party_kinds) on joins.role = name,
unnest(subject_kinds) as subject_kind, unnest(party_kinds) as party_kind;

-- Versions, batches, and kinds that are checked ------------------------------------------------------------------------

alter table party add unique (id, kind);

alter table relationship disable trigger tell_directory;  -- nobody's relations change
alter table relationship alter column subject_kind drop expression;
alter table relationship add column party_kind text;
-- A party that is not there cannot have been named by serve; whoever wrote one in by hand finds it again by this name.
insert into party (id, kind, name)
select distinct substr(subject, length('party:') + 1)::uuid, 'customer', 'unknown' from relationship
where subject_kind = 'party'
on conflict (id) do nothing;
update relationship set
    party_kind = (select kind from party where id = relationship.party),
    subject_kind = case subject_kind when 'device' then 'device' else
        (select kind from party where id = substr(relationship.subject, length('party:') + 1)::uuid) end;
insert into role_kind (role, exclusive, subject_kind, party_kind)
select distinct role, exclusive, subject_kind, party_kind from relationship
on conflict do nothing;  -- whatever was joined until now may stay so

alter table relationship
    drop constraint relationship_pkey,
    drop constraint relationship_party_fkey,
    alter column party_kind set not null,
    add column version int not null default 1 check (version >= 1),
    add column batch text check (length(batch) between 1 and 100),
    add column subject_party uuid generated always as
        (case when starts_with(subject, 'party:') then substr(subject, length('party:') + 1)::uuid end) stored;
alter table relationship
    alter column slot set expression as (
        case when exclusive then '00000000-0000-0000-0000-000000000000'::uuid
             when batch is null then party
             else md5(party::text || ' ' || batch)::uuid end
    ),
    add primary key (id, version),
    add foreign key (role, exclusive, subject_kind, party_kind)
        references role_kind (role, exclusive, subject_kind, party_kind),
    add foreign key (party, party_kind) references party (id, kind),
    add foreign key (subject_party, subject_kind) references party (id, kind),
    add constraint relationship_kind_of_subject check ((subject_party is null) = (subject_kind = 'device')),
    -- The first release knew relations of a party to itself; they stay until they are withdrawn.
    add constraint relationship_with_another
        check (subject_party is distinct from party or not upper_inf(recorded)) not valid,
    add constraint relationship_batch_of_a_supplier check (batch is null or role in ('made_by', 'parts_by'));
alter table relationship enable trigger tell_directory;

comment on column relationship.version is
    'A relation keeps its id through its corrections; each closes the version before it and opens the next.';
comment on column relationship.batch is 'Of what the supplier delivered: a batch or a lot.';
comment on column relationship.slot is
    '0 for a role that excludes others in time, else the party (with its batch): what the exclusion compares.';

create unique index relationship_open on relationship (id) where upper_inf(recorded);
-- The second column leads to when a subject was last changed.
drop index relationship_subject;
create index relationship_subject on relationship (subject, lower(recorded)) where upper_inf(recorded);
create index relationship_subject_before on relationship (subject, upper(recorded)) where not upper_inf(recorded);
create index relationship_party_before on relationship (party, id) where not upper_inf(recorded);

-- What changed, and what that moved --------------------------------------------------------------------------------------

alter table relationship_change
    add column version int,
    alter column relationship drop not null,
    alter column role drop not null;
update relationship_change set version = 1;  -- only beginnings, until now
alter table relationship_change
    add check (change in ('begun', 'ended', 'corrected', 'withdrawn', 'linked', 'unlinked')),
    add constraint relationship_change_of_a_version check (
        num_nulls(relationship, version, role) = case when change in ('linked', 'unlinked') then 3 else 0 end
    );
comment on column relationship_change.number is 'In the order of commit: whoever changes something takes a lock first.';
create index relationship_change_relationship on relationship_change (relationship, version);

create table relationship_move (
    number    bigint not null references relationship_change,
    party     uuid not null references party,
    direction text not null check (direction in ('gained', 'lost')),
    starts    timestamptz,
    ends      timestamptz,
    events    bigint not null check (events >= 0),
    types     jsonb not null,
    check (starts < ends)
);
comment on table relationship_move is
    'What a change moved onto or off the record of a party: events of the subject in [starts, ends), by type, as counted then.';
create index relationship_move_number on relationship_move (number);

grant select on role_kind to drm_serve;
grant select, insert on relationship_move to drm_serve;
