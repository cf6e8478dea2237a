-- Least privilege: a group for each process, with what that process does and nothing else. Nobody logs in as a group;
-- a login is made a member of one (docs/reliability.md). Whoever migrates owns everything and is a member of none.
-- Groups belong to the whole server, so that another database of it may have made them.

do $$
declare
    wanted text;
begin
    foreach wanted in array array['drm_edge', 'drm_enrich', 'drm_attach', 'drm_serve'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception
                when duplicate_object or unique_violation then null;  -- made at this moment by another database's migrate
                when insufficient_privilege then
                    raise exception 'role % is missing and % may not create roles', wanted, current_user
                        using errcode = 'insufficient_privilege', hint =
                            'As an administrator: create role drm_edge; create role drm_enrich; create role drm_attach; '
                            'create role drm_serve; then run drm-ingest migrate again.';
            end;
        end if;
    end loop;
end $$;

-- Nobody makes anything in this schema but its owner (new since Postgres 15, not so in databases that are older).
revoke create on schema public from public;
grant usage on schema public to drm_edge, drm_enrich, drm_attach, drm_serve;

-- Which migrations are there: each process that writes asks before it begins.
grant select on migration to drm_edge, drm_enrich, drm_attach, drm_serve;

-- The edge reads who may send, and sees nothing that was ever sent.
grant select on sender, sender_key, fleet_key to drm_edge;

-- enrich reads whose a device is.
grant select on device, party, party_ref, relationship to drm_enrich;

-- attach adds events, and never changes one.
grant select, insert on event_identity, dead_letter to drm_attach;
grant insert, select (occurred_at) on event to drm_attach;
grant select, insert, update on subject_day, consumer_position to drm_attach;
grant select, insert on device to drm_attach;
-- Its keeper clears out the default partition, by their times alone; months it makes and drops by the functions below.
grant delete, select (ctid, occurred_at, recorded_at) on event_default to drm_attach;

-- serve keeps the registry and reads the records.
grant select, insert, update, delete on sender, sender_key, fleet_key, party, party_ref, device to drm_serve;
grant select, insert, update on relationship to drm_serve;
grant select, insert on relationship_change to drm_serve;
grant select on role, event, event_identity, subject_day, dead_letter, consumer_position to drm_serve;

-- Months of events: only the owner of a table can attach or drop a part of it, and attach is not the owner. ----------

create function make_event_month(month timestamptz) returns void
    language plpgsql security definer set search_path = public, pg_temp as $$
declare
    until timestamptz := date_add(month, '1 month', 'UTC');
    name text := 'event_' || to_char(month at time zone 'UTC', 'YYYY_MM');
begin
    if month <> date_trunc('month', month, 'UTC') then
        raise exception '% is not the beginning of a month', month using errcode = 'invalid_parameter_value';
    end if;
    -- Attaching a table takes no lock that writers or readers of other months notice, as `partition of` would.
    execute format('create table %I (like event including defaults including constraints including storage)', name);
    -- From here on nobody adds to what is being moved.
    lock table event_default in access exclusive mode;
    execute format(
        'with moved as (delete from event_default where occurred_at >= $1 and occurred_at < $2 returning *) '
        'insert into %I select * from moved', name
    ) using month, until;
    execute format('alter table event attach partition %I for values from (%L) to (%L)', name, month, until);
end $$;
comment on function make_event_month is 'Make the partition of a month, with what the default partition has of it.';

create function drop_event_month(month timestamptz) returns void
    language plpgsql security definer set search_path = public, pg_temp as $$
begin
    execute format('drop table %I', 'event_' || to_char(month at time zone 'UTC', 'YYYY_MM'));
end $$;
comment on function drop_event_month is 'Drop the partition of a month, and all events in it.';

revoke execute on function make_event_month, drop_event_month from public;
grant execute on function make_event_month, drop_event_month to drm_attach;
