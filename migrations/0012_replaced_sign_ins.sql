-- Who signed in on a device that was replaced is its user until then, however late we hear of it: attach derives it anew.
create function derive_again_replaced() returns trigger language plpgsql security definer
    set search_path = public, pg_temp as $$
begin
    update identity_event set due = true where subject = new.device and usable and not due;
    return null;
end $$;
revoke execute on function derive_again_replaced from public;
create trigger derive_again after insert or update on device_replacement
    for each row execute function derive_again_replaced();
grant select on device_replacement to drm_attach;
