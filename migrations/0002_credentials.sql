-- What a credential may do, the public keys that the tokens of devices are signed with, and word of every change.

-- Scopes: what is null is not limited. An entry that ends in * stands for all that begin with what is before it.
alter table sender_key
    add column devices    text[] collate "C",
    add column types      text[] collate "C",
    add column parties    boolean not null default true,
    add column identities boolean not null default true,
    add constraint sender_key_devices_bounded check (cardinality(devices) between 1 and 10000),
    add constraint sender_key_types_bounded check (cardinality(types) between 1 and 1000);
comment on column sender_key.devices is 'Devices it may write for, by name or by prefix (meter-*); null: any.';
comment on column sender_key.types is 'Types of events it may send, by name or by prefix (device.*); null: any.';
comment on column sender_key.parties is 'Whether it may write for party: subjects.';
comment on column sender_key.identities is 'Whether it may send identity.* events, which link devices with parties.';

create table fleet_key (
    id          uuid primary key default uuidv7(),
    sender      uuid not null references sender on delete cascade,
    kid         text collate "C" not null unique check (length(kid) between 1 and 100),
    thumbprint  text collate "C" not null unique check (length(thumbprint) = 43),
    algorithm   text not null check (algorithm in ('EdDSA', 'ES256')),
    public_key  text not null check (starts_with(public_key, '-----BEGIN PUBLIC KEY-----')),
    devices     text[] collate "C" check (cardinality(devices) between 1 and 10000),
    types       text[] collate "C" check (cardinality(types) between 1 and 1000),
    identities  boolean not null default false,
    created_at  timestamptz not null default now(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);
comment on table fleet_key is 'Public keys; whoever holds the private one signs tokens for the devices of a fleet.';
comment on column fleet_key.kid is 'How the header of a token names it.';
comment on column fleet_key.thumbprint is 'RFC 7638; once registered a key is never taken again, so that one that was revoked stays so.';
comment on column fleet_key.identities is 'Whether its devices may send identity.* events; for parties they never speak.';
create index fleet_key_sender on fleet_key (sender);

-- Every edge listens, so that a revocation is obeyed at once.
create function tell_credentials() returns trigger language plpgsql as $$
begin
    perform pg_notify('drm_credentials', '');
    return null;
end $$;

create trigger sender_tells after insert or update or delete on sender
    for each statement execute function tell_credentials();
create trigger sender_key_tells after insert or update or delete on sender_key
    for each statement execute function tell_credentials();
create trigger fleet_key_tells after insert or update or delete on fleet_key
    for each statement execute function tell_credentials();
