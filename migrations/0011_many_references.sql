-- References come by the thousand with an import: whoever remembers parties is told of all that a statement changed in
-- few messages of a bounded size, and not in one for each.

drop trigger tell_directory on party_ref;
drop function tell_directory_of_ref();

create function tell_directory_of_refs() returns trigger language plpgsql as $$
begin
    if (select count(*) from (select from changed limit 101) as first) <= 100 then
        perform pg_notify('drm_directory', 'party:' || namespace || ':' || ref) from changed;
    else
        -- A message holds less than 8,000 bytes, and a name in JSON never more than 1,300.
        perform pg_notify('drm_directory_many', json_agg(name)::text)
        from (
            select name, sum(octet_length(to_json(name)::text) + 2) over (rows unbounded preceding) / 6000 as message
            from (select 'party:' || namespace || ':' || ref as name from changed) as named
        ) as packed
        group by message;
    end if;
    return null;
end $$;
create trigger tell_directory_with after insert on party_ref referencing new table as changed
    for each statement execute function tell_directory_of_refs();
create trigger tell_directory_without after delete on party_ref referencing old table as changed
    for each statement execute function tell_directory_of_refs();
create trigger tell_directory_before after update on party_ref referencing old table as changed
    for each statement execute function tell_directory_of_refs();
create trigger tell_directory_after after update on party_ref referencing new table as changed
    for each statement execute function tell_directory_of_refs();
