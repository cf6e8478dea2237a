-- Written by `make schema` from the migrations, for reading; never applied.

CREATE EXTENSION IF NOT EXISTS btree_gist WITH SCHEMA public;

COMMENT ON EXTENSION btree_gist IS 'support for indexing common datatypes in GiST';

CREATE FUNCTION public.derive_again() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
begin
    update identity_event set due = true
    from (select distinct namespace, ref from changed) as named
    where identity_event.namespace = named.namespace and identity_event.ref = named.ref and not due and usable;
    return null;
end $$;

CREATE FUNCTION public.derive_again_replaced() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
begin
    update identity_event set due = true where subject = new.device and usable and not due;
    return null;
end $$;

CREATE FUNCTION public.drop_event_month(month timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
begin
    execute format('drop table %I', 'event_' || to_char(month at time zone 'UTC', 'YYYY_MM'));
end $$;

COMMENT ON FUNCTION public.drop_event_month(month timestamp with time zone) IS 'Drop the partition of a month, and all events in it.';

CREATE FUNCTION public.make_event_month(month timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $_$
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
end $_$;

COMMENT ON FUNCTION public.make_event_month(month timestamp with time zone) IS 'Make the partition of a month, with what the default partition has of it.';

CREATE FUNCTION public.note_renamed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
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

CREATE FUNCTION public.tell_credentials() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    perform pg_notify('drm_credentials', '');
    return null;
end $$;

CREATE FUNCTION public.tell_directory() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
    perform pg_notify('drm_directory', new.subject);
    return null;
end $$;

CREATE FUNCTION public.tell_directory_of_refs() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE TABLE public.claim_code (
    device text NOT NULL COLLATE pg_catalog."C",
    hash bytea NOT NULL,
    guesses integer DEFAULT 0 NOT NULL,
    relationship uuid,
    made_by text NOT NULL,
    made_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT claim_code_guesses_check CHECK ((guesses >= 0)),
    CONSTRAINT claim_code_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT claim_code_made_by_check CHECK (((length(made_by) >= 1) AND (length(made_by) <= 300)))
);

COMMENT ON TABLE public.claim_code IS 'Whoever knows the code has the device at hand, and may become its owner; one code a device.';

COMMENT ON COLUMN public.claim_code.hash IS 'SHA-256 of the device and the code; the code itself is 80 random bits and is shown once.';

COMMENT ON COLUMN public.claim_code.guesses IS 'Wrong codes that were tried on it; after so many it is dead.';

COMMENT ON COLUMN public.claim_code.relationship IS 'The relation that it began; null while it was not used.';

CREATE TABLE public.consumer_position (
    consumer_group text NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    holder text NOT NULL,
    moved_at timestamp with time zone DEFAULT now() NOT NULL
)
WITH (fillfactor='50');

COMMENT ON TABLE public.consumer_position IS 'What is committed of each partition; moved in the transaction of the rows, by compare and set.';

COMMENT ON COLUMN public.consumer_position.next_offset IS '-1: claimed, nothing committed yet.';

COMMENT ON COLUMN public.consumer_position.holder IS 'application_name of the worker that may move it; empty once given up, so that its successor need not end it.';

CREATE TABLE public.dead_letter (
    topic text NOT NULL,
    partition integer NOT NULL,
    "offset" bigint NOT NULL,
    key uuid,
    content_hash uuid,
    stage text NOT NULL,
    code text NOT NULL,
    detail text NOT NULL,
    recorded_at timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE public.dead_letter IS 'Where the fate of a dead letter is looked up; the letter itself is in its topic.';

CREATE TABLE public.device (
    subject text NOT NULL COLLATE pg_catalog."C",
    model text,
    firmware text,
    registered_at timestamp with time zone DEFAULT now() NOT NULL,
    registered_by text NOT NULL,
    CONSTRAINT device_firmware_check CHECK ((length(firmware) <= 200)),
    CONSTRAINT device_model_check CHECK ((length(model) <= 200)),
    CONSTRAINT device_registered_by_check CHECK ((registered_by = ANY (ARRAY['event'::text, 'relationship'::text, 'registry'::text]))),
    CONSTRAINT device_subject_check CHECK ((((length(subject) >= 1) AND (length(subject) <= 200)) AND (NOT starts_with(subject, 'party:'::text))))
);

COMMENT ON TABLE public.device IS 'Every device or app installation ever heard of; unclaimed while nobody holds a role on it.';

CREATE TABLE public.device_replacement (
    id uuid DEFAULT uuidv7() NOT NULL,
    device text NOT NULL COLLATE pg_catalog."C",
    by text NOT NULL COLLATE pg_catalog."C",
    at timestamp with time zone NOT NULL,
    asserted_by text NOT NULL,
    reason text,
    recorded tstzrange NOT NULL,
    undone_by text,
    undone_why text,
    CONSTRAINT device_replacement_asserted_by_check CHECK (((length(asserted_by) >= 1) AND (length(asserted_by) <= 300))),
    CONSTRAINT device_replacement_check CHECK ((device <> by)),
    CONSTRAINT device_replacement_check1 CHECK (((undone_by IS NULL) = upper_inf(recorded))),
    CONSTRAINT device_replacement_reason_check CHECK (((length(reason) >= 1) AND (length(reason) <= 300))),
    CONSTRAINT device_replacement_recorded_check CHECK (((NOT isempty(recorded)) AND lower_inc(recorded) AND (NOT upper_inc(recorded)))),
    CONSTRAINT device_replacement_undone_by_check CHECK (((length(undone_by) >= 1) AND (length(undone_by) <= 300))),
    CONSTRAINT device_replacement_undone_why_check CHECK (((length(undone_why) >= 1) AND (length(undone_why) <= 300)))
);

COMMENT ON TABLE public.device_replacement IS 'Hardware replaced by other hardware, which continues its history; undone where recorded is closed.';

CREATE TABLE public.device_replacement_relation (
    replacement uuid NOT NULL,
    ended uuid NOT NULL,
    version integer NOT NULL,
    begun uuid
);

COMMENT ON TABLE public.device_replacement_relation IS 'What a replacement did to relations, so that it can be undone exactly.';

COMMENT ON COLUMN public.device_replacement_relation.version IS 'The one that it wrote, of the relation that it ended.';

COMMENT ON COLUMN public.device_replacement_relation.begun IS 'On the new device; null where the party held that role there already.';

CREATE TABLE public.event (
    occurred_at timestamp with time zone NOT NULL,
    received_at timestamp with time zone NOT NULL,
    recorded_at timestamp with time zone DEFAULT statement_timestamp() NOT NULL,
    content_hash uuid NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    source text NOT NULL,
    id text NOT NULL,
    type text NOT NULL COLLATE pg_catalog."C",
    occurred_at_raw text,
    time_quality text NOT NULL,
    sequence text COLLATE pg_catalog."C",
    sender text NOT NULL,
    dataschema text,
    data jsonb
)
PARTITION BY RANGE (occurred_at);

COMMENT ON COLUMN public.event.occurred_at_raw IS 'The time exactly as sent; null where none was.';

CREATE TABLE public.event_default (
    occurred_at timestamp with time zone CONSTRAINT event_occurred_at_not_null NOT NULL,
    received_at timestamp with time zone CONSTRAINT event_received_at_not_null NOT NULL,
    recorded_at timestamp with time zone DEFAULT statement_timestamp() CONSTRAINT event_recorded_at_not_null NOT NULL,
    content_hash uuid CONSTRAINT event_content_hash_not_null NOT NULL,
    subject text CONSTRAINT event_subject_not_null NOT NULL COLLATE pg_catalog."C",
    source text CONSTRAINT event_source_not_null NOT NULL,
    id text CONSTRAINT event_id_not_null NOT NULL,
    type text CONSTRAINT event_type_not_null NOT NULL COLLATE pg_catalog."C",
    occurred_at_raw text,
    time_quality text CONSTRAINT event_time_quality_not_null NOT NULL,
    sequence text COLLATE pg_catalog."C",
    sender text CONSTRAINT event_sender_not_null NOT NULL,
    dataschema text,
    data jsonb
);

CREATE TABLE public.event_identity (
    key uuid NOT NULL,
    content_hash uuid NOT NULL,
    occurred_at timestamp with time zone NOT NULL
);

COMMENT ON TABLE public.event_identity IS 'Subject, source and id as a 128-bit hash: what makes an event the same event, whatever its time.';

CREATE TABLE public.fleet_key (
    id uuid DEFAULT uuidv7() NOT NULL,
    sender uuid NOT NULL,
    kid text NOT NULL COLLATE pg_catalog."C",
    thumbprint text NOT NULL COLLATE pg_catalog."C",
    algorithm text NOT NULL,
    public_key text NOT NULL,
    devices text[] COLLATE pg_catalog."C",
    types text[] COLLATE pg_catalog."C",
    identities boolean DEFAULT false NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    CONSTRAINT fleet_key_algorithm_check CHECK ((algorithm = ANY (ARRAY['EdDSA'::text, 'ES256'::text]))),
    CONSTRAINT fleet_key_devices_check CHECK (((cardinality(devices) >= 1) AND (cardinality(devices) <= 10000))),
    CONSTRAINT fleet_key_kid_check CHECK (((length(kid) >= 1) AND (length(kid) <= 100))),
    CONSTRAINT fleet_key_public_key_check CHECK (starts_with(public_key, '-----BEGIN PUBLIC KEY-----'::text)),
    CONSTRAINT fleet_key_thumbprint_check CHECK ((length(thumbprint) = 43)),
    CONSTRAINT fleet_key_types_check CHECK (((cardinality(types) >= 1) AND (cardinality(types) <= 1000)))
);

COMMENT ON TABLE public.fleet_key IS 'Public keys; whoever holds the private one signs tokens for the devices of a fleet.';

COMMENT ON COLUMN public.fleet_key.kid IS 'How the header of a token names it.';

COMMENT ON COLUMN public.fleet_key.thumbprint IS 'RFC 7638; once registered a key is never taken again, so that one that was revoked stays so.';

COMMENT ON COLUMN public.fleet_key.identities IS 'Whether its devices may send identity.* events; for parties they never speak.';

CREATE TABLE public.hand_over (
    id uuid DEFAULT uuidv7() NOT NULL,
    device text NOT NULL COLLATE pg_catalog."C",
    at timestamp with time zone NOT NULL,
    givers uuid[] NOT NULL,
    takers uuid[] NOT NULL,
    everybody boolean NOT NULL,
    begun uuid NOT NULL,
    recorded_at timestamp with time zone NOT NULL
);

COMMENT ON TABLE public.hand_over IS 'When a device went from one owner to the next: a sign-in of before we knew, however late we hear of it, ends there.';

COMMENT ON COLUMN public.hand_over.everybody IS 'All others stopped using it too.';

COMMENT ON COLUMN public.hand_over.begun IS 'The relation of the next owner; where it begins at another time by now, this says nothing.';

CREATE TABLE public.identity_event (
    key uuid NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    linked boolean NOT NULL,
    namespace text,
    ref text,
    party uuid,
    role text NOT NULL,
    method text,
    occurred_at timestamp with time zone NOT NULL,
    sequence text,
    content_hash uuid NOT NULL,
    sender text NOT NULL,
    recorded_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    usable boolean NOT NULL,
    due boolean DEFAULT true NOT NULL,
    refused text,
    settled_in xid8,
    settled_as uuid,
    CONSTRAINT identity_event_check CHECK (((namespace IS NULL) = (ref IS NULL))),
    CONSTRAINT identity_event_check1 CHECK ((usable OR (refused IS NOT NULL)))
);

COMMENT ON TABLE public.identity_event IS 'Events identity.linked and identity.unlinked, for ever: the relations of a subject are derived from all of them.';

COMMENT ON COLUMN public.identity_event.key IS 'That of event_identity.';

COMMENT ON COLUMN public.identity_event.namespace IS 'With ref, or party: whom it is about, as it is kept; neither: everybody who holds the role.';

COMMENT ON COLUMN public.identity_event.usable IS 'False where it can never say anything; refused tells why.';

COMMENT ON COLUMN public.identity_event.due IS 'Relations do not have it in them yet.';

COMMENT ON COLUMN public.identity_event.refused IS 'Why it says nothing, as far as is known now.';

COMMENT ON COLUMN public.identity_event.settled_in IS 'The transaction that put it into relations, where one beside it might have changed whose its reference is; null: none.';

COMMENT ON COLUMN public.identity_event.settled_as IS 'Whose its reference was then; null: nobody''s.';

CREATE TABLE public.large_party (
    id bigint NOT NULL,
    party uuid NOT NULL,
    members uuid[] NOT NULL,
    kind text NOT NULL,
    built_to text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C",
    built_at timestamp with time zone,
    shown jsonb,
    shown_at timestamp with time zone,
    stale boolean DEFAULT true NOT NULL
);

COMMENT ON TABLE public.large_party IS 'Parties, each with those linked to it, whose records are read from totals; two rows of a party while it is counted anew.';

COMMENT ON COLUMN public.large_party.party IS 'The one made first, by which the group is found.';

COMMENT ON COLUMN public.large_party.built_to IS 'Subjects up to this one are counted.';

COMMENT ON COLUMN public.large_party.built_at IS 'Null: not all of them are, and the record is read live.';

COMMENT ON COLUMN public.large_party.shown IS 'Figures that are few and take long to add up, as they were at shown_at.';

COMMENT ON COLUMN public.large_party.stale IS 'What they are made of has changed since.';

CREATE TABLE public.large_party_day (
    large bigint NOT NULL,
    day date NOT NULL,
    type text NOT NULL COLLATE pg_catalog."C",
    events bigint NOT NULL,
    first_at timestamp with time zone,
    last_at timestamp with time zone,
    last_subject text COLLATE pg_catalog."C",
    CONSTRAINT large_party_day_events_check CHECK ((events >= 0))
)
WITH (fillfactor='70');

COMMENT ON COLUMN public.large_party_day.first_at IS 'Null: not known, since some events of the day came or went all at once.';

COMMENT ON COLUMN public.large_party_day.last_at IS 'Null: not known, since what was the last has gone.';

ALTER TABLE public.large_party ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.large_party_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.large_party_part (
    large bigint NOT NULL,
    part text NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    "row" jsonb NOT NULL
);

COMMENT ON TABLE public.large_party_part IS 'What a subject contributes to what is rare: open faults, answers, visits; replaced as a whole.';

CREATE TABLE public.large_party_reached (
    large bigint NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    party uuid NOT NULL,
    person uuid NOT NULL,
    valid tstzrange NOT NULL
);

COMMENT ON TABLE public.large_party_reached IS 'Of a vendor: which customer had which device that it sold, or bought without one (subject is the customer), and when.';

COMMENT ON COLUMN public.large_party_reached.person IS 'The customer; of those that are linked the one made first.';

CREATE TABLE public.large_party_renamed (
    subject text NOT NULL COLLATE pg_catalog."C",
    party uuid NOT NULL
);

COMMENT ON TABLE public.large_party_renamed IS 'Names that have come to mean another party, or none, for the next step to look at.';

COMMENT ON COLUMN public.large_party_renamed.party IS 'Who is, or was, called so.';

CREATE TABLE public.large_party_span (
    large bigint NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    valid tstzmultirange NOT NULL,
    due_at timestamp with time zone
);

COMMENT ON TABLE public.large_party_span IS 'Which events the totals have in them: of the subject, in these ranges, recorded before totals_position.through.';

COMMENT ON COLUMN public.large_party_span.due_at IS 'When a relation on the subject begins or ends next, as is known beforehand.';

CREATE TABLE public.migration (
    name text NOT NULL,
    checksum bytea NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

COMMENT ON TABLE public.migration IS 'The files of migrations/ that this database has seen, with the SHA-256 of each.';

CREATE TABLE public.origin (
    name text NOT NULL COLLATE pg_catalog."C",
    trust integer NOT NULL,
    CONSTRAINT origin_name_check CHECK ((name ~ '^[a-z][a-z0-9-]{0,39}$'::text)),
    CONSTRAINT origin_trust_check CHECK ((trust > 0))
);

COMMENT ON TABLE public.origin IS 'The declared order of trust: 1 is believed first; origins that are not here come last.';

CREATE TABLE public.party (
    id uuid DEFAULT uuidv7() NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT party_kind_check CHECK ((kind = ANY (ARRAY['customer'::text, 'vendor'::text, 'partner'::text, 'employee'::text, 'supplier'::text]))),
    CONSTRAINT party_name_check CHECK (((length(name) >= 1) AND (length(name) <= 300)))
);

CREATE TABLE public.party_attribute (
    party uuid NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    origin text NOT NULL COLLATE pg_catalog."C",
    value jsonb,
    said_at timestamp with time zone NOT NULL,
    recorded_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    asserted_by text NOT NULL,
    CONSTRAINT party_attribute_asserted_by_check CHECK (((length(asserted_by) >= 1) AND (length(asserted_by) <= 300))),
    CONSTRAINT party_attribute_name_check CHECK ((name ~ '^[a-z][a-z0-9_.-]{0,59}$'::text)),
    CONSTRAINT party_attribute_origin_check CHECK ((origin ~ '^[a-z][a-z0-9-]{0,39}$'::text))
);

COMMENT ON TABLE public.party_attribute IS 'The last word of each origin on each attribute of a party; which is agreed on is decided when it is read.';

COMMENT ON COLUMN public.party_attribute.value IS 'Null: the origin took its word back, and what it said before said_at and arrives later stays so.';

CREATE TABLE public.party_link (
    id uuid DEFAULT uuidv7() NOT NULL,
    party uuid NOT NULL,
    other uuid NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    asserted_by text NOT NULL,
    recorded tstzrange NOT NULL,
    CONSTRAINT party_link_asserted_by_check CHECK (((length(asserted_by) >= 1) AND (length(asserted_by) <= 300))),
    CONSTRAINT party_link_check CHECK ((party < other)),
    CONSTRAINT party_link_reason_check CHECK (((length(reason) >= 1) AND (length(reason) <= 300))),
    CONSTRAINT party_link_recorded_check CHECK (((NOT isempty(recorded)) AND lower_inc(recorded) AND (NOT upper_inc(recorded))))
);

COMMENT ON TABLE public.party_link IS 'Two parties of one kind that are the same: their records are one while recorded is open. The one made first is party.';

CREATE TABLE public.party_ref (
    namespace text NOT NULL,
    ref text NOT NULL,
    party uuid NOT NULL,
    CONSTRAINT party_ref_namespace_check CHECK ((namespace ~ '^[a-z][a-z0-9-]{0,39}$'::text)),
    CONSTRAINT party_ref_ref_check CHECK (((length(ref) >= 1) AND (length(ref) <= 150)))
);

COMMENT ON TABLE public.party_ref IS 'What other systems call a party: crm 778 is written crm:778.';

CREATE VIEW public.rare_event AS
 SELECT subject,
    source,
    id,
    type,
    occurred_at,
    recorded_at,
    sequence,
    content_hash,
    data
   FROM public.event
  WHERE (type = ANY (ARRAY['device.fault'::text, 'feedback.rating'::text, 'support.contact'::text]));

CREATE TABLE public.relationship (
    id uuid DEFAULT uuidv7() NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    role text NOT NULL,
    party uuid NOT NULL,
    exclusive boolean NOT NULL,
    subject_kind text NOT NULL,
    slot uuid GENERATED ALWAYS AS (
CASE
    WHEN exclusive THEN '00000000-0000-0000-0000-000000000000'::uuid
    WHEN (batch IS NULL) THEN party
    ELSE (md5((((party)::text || ' '::text) || batch)))::uuid
END) STORED NOT NULL,
    valid tstzrange NOT NULL,
    recorded tstzrange DEFAULT tstzrange(clock_timestamp(), NULL::timestamp with time zone) NOT NULL,
    asserted_by text,
    reason text,
    party_kind text NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    batch text,
    subject_party uuid GENERATED ALWAYS AS (
CASE
    WHEN starts_with(subject, 'party:'::text) THEN (substr(subject, (length('party:'::text) + 1)))::uuid
    ELSE NULL::uuid
END) STORED,
    derived boolean DEFAULT false NOT NULL,
    CONSTRAINT relationship_batch_check CHECK (((length(batch) >= 1) AND (length(batch) <= 100))),
    CONSTRAINT relationship_batch_of_a_supplier CHECK (((batch IS NULL) OR (role = ANY (ARRAY['made_by'::text, 'parts_by'::text])))),
    CONSTRAINT relationship_kind_of_subject CHECK (((subject_party IS NULL) = (subject_kind = 'device'::text))),
    CONSTRAINT relationship_recorded_check CHECK (((NOT isempty(recorded)) AND lower_inc(recorded) AND (NOT upper_inc(recorded)))),
    CONSTRAINT relationship_subject_by_id CHECK (((NOT starts_with(subject, 'party:'::text)) OR (subject = ('party:'::text || (substr(subject, (length('party:'::text) + 1)))::uuid)))),
    CONSTRAINT relationship_subject_check CHECK (((length(subject) >= 1) AND (length(subject) <= 200))),
    CONSTRAINT relationship_valid_check CHECK (((NOT isempty(valid)) AND (NOT upper_inc(valid)) AND (lower_inf(valid) OR lower_inc(valid)))),
    CONSTRAINT relationship_version_check CHECK ((version >= 1))
);

COMMENT ON TABLE public.relationship IS 'Who held which role on a subject: valid is when it was true, recorded is when we knew; open and superseded rows together.';

COMMENT ON COLUMN public.relationship.slot IS '0 for a role that excludes others in time, else the party (with its batch): what the exclusion compares.';

COMMENT ON COLUMN public.relationship.version IS 'A relation keeps its id through its corrections; each closes the version before it and opens the next.';

COMMENT ON COLUMN public.relationship.batch IS 'Of what the supplier delivered: a batch or a lot.';

COMMENT ON COLUMN public.relationship.derived IS 'Made of identity events and kept equal to them; a person who changes it makes it theirs, and it stays as they said.';

CREATE TABLE public.relationship_change (
    number bigint NOT NULL,
    relationship uuid,
    subject text NOT NULL COLLATE pg_catalog."C",
    party uuid NOT NULL,
    role text,
    change text NOT NULL,
    detail jsonb NOT NULL,
    recorded_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    version integer,
    CONSTRAINT relationship_change_change_check CHECK ((change = ANY (ARRAY['begun'::text, 'ended'::text, 'corrected'::text, 'withdrawn'::text, 'linked'::text, 'unlinked'::text]))),
    CONSTRAINT relationship_change_of_a_version CHECK ((num_nulls(relationship, version, role) =
CASE
    WHEN (change = ANY (ARRAY['linked'::text, 'unlinked'::text])) THEN 3
    ELSE 0
END))
);

COMMENT ON TABLE public.relationship_change IS 'What changed in records, in order, written in the transaction of the change.';

COMMENT ON COLUMN public.relationship_change.number IS 'In the order of commit: whoever changes something takes a lock first.';

ALTER TABLE public.relationship_change ALTER COLUMN number ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.relationship_change_number_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.relationship_move (
    number bigint NOT NULL,
    party uuid NOT NULL,
    direction text NOT NULL,
    starts timestamp with time zone,
    ends timestamp with time zone,
    events bigint NOT NULL,
    types jsonb NOT NULL,
    CONSTRAINT relationship_move_check CHECK ((starts < ends)),
    CONSTRAINT relationship_move_direction_check CHECK ((direction = ANY (ARRAY['gained'::text, 'lost'::text]))),
    CONSTRAINT relationship_move_events_check CHECK ((events >= 0))
);

COMMENT ON TABLE public.relationship_move IS 'What a change moved onto or off the record of a party: events of the subject in [starts, ends), by type, as counted then.';

CREATE TABLE public.relay_position (
    topic text NOT NULL,
    number bigint NOT NULL,
    seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

COMMENT ON TABLE public.relay_position IS 'The last change that is in the topic for good, and when its relay was last alive.';

CREATE TABLE public.role (
    name text NOT NULL,
    exclusive boolean NOT NULL,
    meaning text NOT NULL,
    goes_on boolean DEFAULT true NOT NULL,
    CONSTRAINT role_name_check CHECK ((name ~ '^[a-z][a-z_]{0,39}$'::text))
);

COMMENT ON COLUMN public.role.exclusive IS 'At most one party at a time holds an exclusive role on a subject.';

COMMENT ON COLUMN public.role.goes_on IS 'Whoever holds it on a device holds it on the one that replaces it; else it is of the thing itself.';

CREATE TABLE public.role_kind (
    role text NOT NULL,
    exclusive boolean NOT NULL,
    subject_kind text NOT NULL,
    party_kind text NOT NULL,
    CONSTRAINT role_kind_party_kind_check CHECK ((party_kind = ANY (ARRAY['customer'::text, 'vendor'::text, 'partner'::text, 'employee'::text, 'supplier'::text]))),
    CONSTRAINT role_kind_subject_kind_check CHECK ((subject_kind = ANY (ARRAY['device'::text, 'customer'::text, 'vendor'::text, 'partner'::text, 'employee'::text, 'supplier'::text])))
);

COMMENT ON TABLE public.role_kind IS 'Which kinds a role joins: of the subject (a device, or a party of that kind) and of the party that holds it.';

CREATE TABLE public.sender (
    id uuid DEFAULT uuidv7() NOT NULL,
    name text NOT NULL,
    role text DEFAULT 'sender'::text NOT NULL,
    device text COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    events_per_s double precision,
    bytes_per_s double precision,
    device_events_per_s double precision,
    device_bytes_per_s double precision,
    burst_s integer DEFAULT 10 NOT NULL,
    CONSTRAINT sender_burst_s_check CHECK (((burst_s >= 1) AND (burst_s <= 3600))),
    CONSTRAINT sender_bytes_per_s_check CHECK (((bytes_per_s > (0)::double precision) AND (bytes_per_s < 'Infinity'::double precision))),
    CONSTRAINT sender_device_bytes_per_s_check CHECK (((device_bytes_per_s > (0)::double precision) AND (device_bytes_per_s < 'Infinity'::double precision))),
    CONSTRAINT sender_device_check CHECK (((length(device) >= 1) AND (length(device) <= 200))),
    CONSTRAINT sender_device_events_per_s_check CHECK (((device_events_per_s > (0)::double precision) AND (device_events_per_s < 'Infinity'::double precision))),
    CONSTRAINT sender_events_per_s_check CHECK (((events_per_s > (0)::double precision) AND (events_per_s < 'Infinity'::double precision))),
    CONSTRAINT sender_name_check CHECK (((length(name) >= 1) AND (length(name) <= 100))),
    CONSTRAINT sender_role_check CHECK ((role = ANY (ARRAY['sender'::text, 'reader'::text, 'admin'::text])))
);

COMMENT ON TABLE public.sender IS 'Who holds credentials: an app, a fleet, a back office, an administrator.';

COMMENT ON COLUMN public.sender.device IS 'The device that events without a subject are about, for a credential bound to one.';

COMMENT ON COLUMN public.sender.events_per_s IS 'What all its keys and devices together may send on average; null: no quota.';

COMMENT ON COLUMN public.sender.device_events_per_s IS 'What each of its subjects may send on average; null: no quota.';

COMMENT ON COLUMN public.sender.burst_s IS 'So many seconds'' worth of a quota may come at once.';

CREATE TABLE public.sender_key (
    id uuid DEFAULT uuidv7() NOT NULL,
    sender uuid NOT NULL,
    hash bytea NOT NULL,
    prefix text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    devices text[] COLLATE pg_catalog."C",
    types text[] COLLATE pg_catalog."C",
    parties boolean DEFAULT true NOT NULL,
    identities boolean DEFAULT true NOT NULL,
    CONSTRAINT sender_key_devices_bounded CHECK (((cardinality(devices) >= 1) AND (cardinality(devices) <= 10000))),
    CONSTRAINT sender_key_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT sender_key_types_bounded CHECK (((cardinality(types) >= 1) AND (cardinality(types) <= 1000)))
);

COMMENT ON COLUMN public.sender_key.hash IS 'SHA-256 of the key; the key itself is 256 random bits and is shown once.';

COMMENT ON COLUMN public.sender_key.devices IS 'Devices it may write for, by name or by prefix (meter-*); null: any.';

COMMENT ON COLUMN public.sender_key.types IS 'Types of events it may send, by name or by prefix (device.*); null: any.';

COMMENT ON COLUMN public.sender_key.parties IS 'Whether it may write for party: subjects.';

COMMENT ON COLUMN public.sender_key.identities IS 'Whether it may send identity.* events, which link devices with parties.';

CREATE TABLE public.subject_day (
    day date NOT NULL,
    events bigint NOT NULL,
    last_at timestamp with time zone NOT NULL,
    last_hash uuid NOT NULL,
    subject text NOT NULL COLLATE pg_catalog."C",
    type text NOT NULL COLLATE pg_catalog."C",
    last_sequence text COLLATE pg_catalog."C",
    last_data jsonb,
    CONSTRAINT subject_day_events_check CHECK ((events > 0))
)
WITH (fillfactor='70');

COMMENT ON TABLE public.subject_day IS 'Events of a subject by UTC day and type, whoever holds it, with the latest of them.';

COMMENT ON COLUMN public.subject_day.last_hash IS 'content_hash of the latest: where time and sequence are equal the greater one is the latest, whatever came first.';

CREATE TABLE public.totals_position (
    only_one boolean DEFAULT true NOT NULL,
    through timestamp with time zone NOT NULL,
    number bigint NOT NULL,
    swept_to uuid,
    swept_at timestamp with time zone,
    CONSTRAINT totals_position_only_one_check CHECK (only_one)
);

COMMENT ON TABLE public.totals_position IS 'How far the totals are: events recorded before `through`, changes up to `number`.';

COMMENT ON COLUMN public.totals_position.swept_to IS 'Up to which party it was looked for large ones; null: not at it.';

ALTER TABLE ONLY public.event ATTACH PARTITION public.event_default DEFAULT;

INSERT INTO public.role VALUES ('owner', true, 'whose device it is', true);
INSERT INTO public.role VALUES ('user', false, 'who uses it, signed in', true);
INSERT INTO public.role VALUES ('sold_by', true, 'the vendor that sold it', true);
INSERT INTO public.role VALUES ('serviced_by', false, 'the partner that looks after it', true);
INSERT INTO public.role VALUES ('installed_by', false, 'the partner that put it in place', true);
INSERT INTO public.role VALUES ('buys_from', false, 'the vendor a customer buys from', true);
INSERT INTO public.role VALUES ('cared_for_by', false, 'the employee who cares for a customer', true);
INSERT INTO public.role VALUES ('works_for', false, 'the company an employee works for', true);
INSERT INTO public.role VALUES ('supplies', false, 'whom a supplier supplies', true);
INSERT INTO public.role VALUES ('made_by', true, 'the supplier that made it', false);
INSERT INTO public.role VALUES ('parts_by', false, 'a supplier of parts or batches in it', false);

INSERT INTO public.role_kind VALUES ('owner', true, 'device', 'customer');
INSERT INTO public.role_kind VALUES ('owner', true, 'device', 'vendor');
INSERT INTO public.role_kind VALUES ('owner', true, 'device', 'partner');
INSERT INTO public.role_kind VALUES ('owner', true, 'device', 'employee');
INSERT INTO public.role_kind VALUES ('owner', true, 'device', 'supplier');
INSERT INTO public.role_kind VALUES ('user', false, 'device', 'customer');
INSERT INTO public.role_kind VALUES ('user', false, 'device', 'vendor');
INSERT INTO public.role_kind VALUES ('user', false, 'device', 'partner');
INSERT INTO public.role_kind VALUES ('user', false, 'device', 'employee');
INSERT INTO public.role_kind VALUES ('user', false, 'device', 'supplier');
INSERT INTO public.role_kind VALUES ('sold_by', true, 'device', 'vendor');
INSERT INTO public.role_kind VALUES ('serviced_by', false, 'device', 'partner');
INSERT INTO public.role_kind VALUES ('serviced_by', false, 'device', 'vendor');
INSERT INTO public.role_kind VALUES ('serviced_by', false, 'device', 'employee');
INSERT INTO public.role_kind VALUES ('installed_by', false, 'device', 'partner');
INSERT INTO public.role_kind VALUES ('installed_by', false, 'device', 'vendor');
INSERT INTO public.role_kind VALUES ('installed_by', false, 'device', 'employee');
INSERT INTO public.role_kind VALUES ('made_by', true, 'device', 'supplier');
INSERT INTO public.role_kind VALUES ('parts_by', false, 'device', 'supplier');
INSERT INTO public.role_kind VALUES ('buys_from', false, 'customer', 'vendor');
INSERT INTO public.role_kind VALUES ('buys_from', false, 'customer', 'partner');
INSERT INTO public.role_kind VALUES ('cared_for_by', false, 'customer', 'employee');
INSERT INTO public.role_kind VALUES ('cared_for_by', false, 'customer', 'partner');
INSERT INTO public.role_kind VALUES ('cared_for_by', false, 'vendor', 'employee');
INSERT INTO public.role_kind VALUES ('cared_for_by', false, 'partner', 'employee');
INSERT INTO public.role_kind VALUES ('cared_for_by', false, 'supplier', 'employee');
INSERT INTO public.role_kind VALUES ('works_for', false, 'employee', 'vendor');
INSERT INTO public.role_kind VALUES ('works_for', false, 'employee', 'partner');
INSERT INTO public.role_kind VALUES ('works_for', false, 'employee', 'supplier');
INSERT INTO public.role_kind VALUES ('works_for', false, 'employee', 'customer');
INSERT INTO public.role_kind VALUES ('supplies', false, 'supplier', 'vendor');
INSERT INTO public.role_kind VALUES ('supplies', false, 'supplier', 'partner');
INSERT INTO public.role_kind VALUES ('supplies', false, 'supplier', 'customer');
INSERT INTO public.role_kind VALUES ('supplies', false, 'supplier', 'supplier');

INSERT INTO public.totals_position VALUES (true, '2000-01-01 00:00:00+00', 0, NULL, NULL);

SELECT pg_catalog.setval('public.large_party_id_seq', 1, false);

SELECT pg_catalog.setval('public.relationship_change_number_seq', 1, false);

ALTER TABLE ONLY public.claim_code
    ADD CONSTRAINT claim_code_pkey PRIMARY KEY (device);

ALTER TABLE ONLY public.consumer_position
    ADD CONSTRAINT consumer_position_pkey PRIMARY KEY (consumer_group, topic, partition);

ALTER TABLE ONLY public.dead_letter
    ADD CONSTRAINT dead_letter_pkey PRIMARY KEY (topic, partition, "offset");

ALTER TABLE ONLY public.device
    ADD CONSTRAINT device_pkey PRIMARY KEY (subject);

ALTER TABLE ONLY public.device_replacement
    ADD CONSTRAINT device_replaced_once EXCLUDE USING gist (device WITH =, recorded WITH &&);

ALTER TABLE ONLY public.device_replacement
    ADD CONSTRAINT device_replacement_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.device_replacement_relation
    ADD CONSTRAINT device_replacement_relation_pkey PRIMARY KEY (replacement, ended);

ALTER TABLE ONLY public.device_replacement
    ADD CONSTRAINT device_replaces_once EXCLUDE USING gist (by WITH =, recorded WITH &&);

ALTER TABLE ONLY public.event_identity
    ADD CONSTRAINT event_identity_pkey PRIMARY KEY (key);

ALTER TABLE ONLY public.fleet_key
    ADD CONSTRAINT fleet_key_kid_key UNIQUE (kid);

ALTER TABLE ONLY public.fleet_key
    ADD CONSTRAINT fleet_key_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.fleet_key
    ADD CONSTRAINT fleet_key_thumbprint_key UNIQUE (thumbprint);

ALTER TABLE ONLY public.hand_over
    ADD CONSTRAINT hand_over_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.identity_event
    ADD CONSTRAINT identity_event_pkey PRIMARY KEY (key);

ALTER TABLE ONLY public.large_party_day
    ADD CONSTRAINT large_party_day_pkey PRIMARY KEY (large, day, type);

ALTER TABLE ONLY public.large_party
    ADD CONSTRAINT large_party_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.large_party_span
    ADD CONSTRAINT large_party_span_pkey PRIMARY KEY (subject, large);

ALTER TABLE ONLY public.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.origin
    ADD CONSTRAINT origin_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.origin
    ADD CONSTRAINT origin_trust_key UNIQUE (trust);

ALTER TABLE ONLY public.party_attribute
    ADD CONSTRAINT party_attribute_pkey PRIMARY KEY (party, name, origin);

ALTER TABLE ONLY public.party
    ADD CONSTRAINT party_id_kind_key UNIQUE (id, kind);

ALTER TABLE ONLY public.party_link
    ADD CONSTRAINT party_link_held_once EXCLUDE USING gist (party WITH =, other WITH =, recorded WITH &&);

ALTER TABLE ONLY public.party_link
    ADD CONSTRAINT party_link_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.party
    ADD CONSTRAINT party_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.party_ref
    ADD CONSTRAINT party_ref_pkey PRIMARY KEY (namespace, ref);

ALTER TABLE ONLY public.relationship_change
    ADD CONSTRAINT relationship_change_pkey PRIMARY KEY (number);

ALTER TABLE ONLY public.relationship
    ADD CONSTRAINT relationship_held_once EXCLUDE USING gist (subject WITH =, role WITH =, slot WITH =, valid WITH &&, recorded WITH &&);

ALTER TABLE ONLY public.relationship
    ADD CONSTRAINT relationship_pkey PRIMARY KEY (id, version);

ALTER TABLE public.relationship
    ADD CONSTRAINT relationship_with_another CHECK (((subject_party IS DISTINCT FROM party) OR (NOT upper_inf(recorded)))) NOT VALID;

ALTER TABLE ONLY public.relay_position
    ADD CONSTRAINT relay_position_pkey PRIMARY KEY (topic);

ALTER TABLE ONLY public.role_kind
    ADD CONSTRAINT role_kind_pkey PRIMARY KEY (role, subject_kind, party_kind);

ALTER TABLE ONLY public.role_kind
    ADD CONSTRAINT role_kind_role_exclusive_subject_kind_party_kind_key UNIQUE (role, exclusive, subject_kind, party_kind);

ALTER TABLE ONLY public.role
    ADD CONSTRAINT role_name_exclusive_key UNIQUE (name, exclusive);

ALTER TABLE ONLY public.role
    ADD CONSTRAINT role_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.sender_key
    ADD CONSTRAINT sender_key_hash_key UNIQUE (hash);

ALTER TABLE ONLY public.sender_key
    ADD CONSTRAINT sender_key_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.sender
    ADD CONSTRAINT sender_name_key UNIQUE (name);

ALTER TABLE ONLY public.sender
    ADD CONSTRAINT sender_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.subject_day
    ADD CONSTRAINT subject_day_pkey PRIMARY KEY (subject, day, type);

ALTER TABLE ONLY public.totals_position
    ADD CONSTRAINT totals_position_pkey PRIMARY KEY (only_one);

CREATE INDEX dead_letter_key ON public.dead_letter USING btree (key);

CREATE INDEX device_replacement_by ON public.device_replacement USING btree (by) WHERE upper_inf(recorded);

CREATE INDEX device_replacement_by_before ON public.device_replacement USING btree (by) WHERE (NOT upper_inf(recorded));

CREATE INDEX device_replacement_device ON public.device_replacement USING btree (device) WHERE upper_inf(recorded);

CREATE INDEX event_occurred_at ON ONLY public.event USING btree (occurred_at) WHERE (recorded_at > '-infinity'::timestamp with time zone);

CREATE INDEX event_default_occurred_at_idx ON public.event_default USING btree (occurred_at) WHERE (recorded_at > '-infinity'::timestamp with time zone);

CREATE INDEX event_rare_occurred_at ON ONLY public.event USING btree (occurred_at) WHERE ((type = ANY (ARRAY['device.fault'::text, 'feedback.rating'::text, 'support.contact'::text])) AND (recorded_at > '-infinity'::timestamp with time zone));

CREATE INDEX event_default_occurred_at_idx1 ON public.event_default USING btree (occurred_at) WHERE ((type = ANY (ARRAY['device.fault'::text, 'feedback.rating'::text, 'support.contact'::text])) AND (recorded_at > '-infinity'::timestamp with time zone));

CREATE INDEX event_recorded_at ON ONLY public.event USING brin (recorded_at) WITH (pages_per_range='32', autosummarize='on');

CREATE INDEX event_default_recorded_at_idx ON public.event_default USING brin (recorded_at) WITH (pages_per_range='32', autosummarize='on');

CREATE INDEX event_subject_occurred_at ON ONLY public.event USING btree (subject, occurred_at);

CREATE INDEX event_default_subject_occurred_at_idx ON public.event_default USING btree (subject, occurred_at);

CREATE INDEX event_rare ON ONLY public.event USING btree (subject, occurred_at) WHERE (type = ANY (ARRAY['device.fault'::text, 'feedback.rating'::text, 'support.contact'::text]));

CREATE INDEX event_default_subject_occurred_at_idx1 ON public.event_default USING btree (subject, occurred_at) WHERE (type = ANY (ARRAY['device.fault'::text, 'feedback.rating'::text, 'support.contact'::text]));

CREATE INDEX fleet_key_sender ON public.fleet_key USING btree (sender);

CREATE INDEX hand_over_device ON public.hand_over USING btree (device);

CREATE INDEX identity_event_due ON public.identity_event USING btree (subject) INCLUDE (recorded_at) WHERE due;

CREATE INDEX identity_event_ref ON public.identity_event USING btree (namespace, ref);

CREATE INDEX identity_event_settled ON public.identity_event USING btree (settled_in) WHERE (settled_in IS NOT NULL);

CREATE INDEX identity_event_subject_time ON public.identity_event USING btree (subject, occurred_at);

CREATE UNIQUE INDEX large_party_built ON public.large_party USING btree (party) WHERE (built_at IS NOT NULL);

CREATE INDEX large_party_members ON public.large_party USING gin (members);

CREATE INDEX large_party_part_of ON public.large_party_part USING btree (subject);

CREATE INDEX large_party_part_part ON public.large_party_part USING btree (large, part);

CREATE INDEX large_party_part_subject ON public.large_party_part USING btree (large, subject);

CREATE INDEX large_party_reached_party ON public.large_party_reached USING btree (party, large);

CREATE INDEX large_party_reached_subject ON public.large_party_reached USING btree (large, subject);

CREATE INDEX large_party_span_due ON public.large_party_span USING btree (due_at) WHERE (due_at IS NOT NULL);

CREATE INDEX large_party_span_large ON public.large_party_span USING btree (large, subject);

CREATE INDEX party_link_other ON public.party_link USING btree (other) WHERE upper_inf(recorded);

CREATE INDEX party_link_other_before ON public.party_link USING btree (other) WHERE (NOT upper_inf(recorded));

CREATE INDEX party_link_party ON public.party_link USING btree (party) WHERE upper_inf(recorded);

CREATE INDEX party_link_party_before ON public.party_link USING btree (party) WHERE (NOT upper_inf(recorded));

CREATE INDEX party_ref_party ON public.party_ref USING btree (party);

CREATE INDEX relationship_change_relationship ON public.relationship_change USING btree (relationship, version);

CREATE INDEX relationship_derived_until ON public.relationship USING btree (subject, COALESCE(upper(valid), GREATEST(upper(recorded), lower(valid)))) WHERE (derived AND (NOT upper_inf(recorded)));

CREATE INDEX relationship_move_number ON public.relationship_move USING btree (number);

CREATE UNIQUE INDEX relationship_open ON public.relationship USING btree (id) WHERE upper_inf(recorded);

CREATE INDEX relationship_party ON public.relationship USING btree (party, id) WHERE upper_inf(recorded);

CREATE INDEX relationship_party_before ON public.relationship USING btree (party, id) WHERE (NOT upper_inf(recorded));

CREATE INDEX relationship_party_since ON public.relationship USING btree (party, lower(valid) DESC NULLS LAST, id) WHERE upper_inf(recorded);

CREATE INDEX relationship_party_subject ON public.relationship USING btree (party, subject) WHERE upper_inf(recorded);

CREATE INDEX relationship_party_until ON public.relationship USING btree (party, upper(valid)) WHERE upper_inf(recorded);

CREATE INDEX relationship_subject ON public.relationship USING btree (subject, lower(recorded)) WHERE upper_inf(recorded);

CREATE INDEX relationship_subject_before ON public.relationship USING btree (subject, upper(recorded)) WHERE (NOT upper_inf(recorded));

CREATE INDEX relationship_until ON public.relationship USING btree (subject, COALESCE(upper(valid), 'infinity'::timestamp with time zone)) WHERE upper_inf(recorded);

CREATE INDEX sender_key_sender ON public.sender_key USING btree (sender);

CREATE INDEX subject_day_rare ON public.subject_day USING btree (subject, type, day) WHERE (type = ANY (ARRAY['device.fault'::text, 'feedback.rating'::text, 'support.contact'::text]));

ALTER INDEX public.event_occurred_at ATTACH PARTITION public.event_default_occurred_at_idx;

ALTER INDEX public.event_rare_occurred_at ATTACH PARTITION public.event_default_occurred_at_idx1;

ALTER INDEX public.event_recorded_at ATTACH PARTITION public.event_default_recorded_at_idx;

ALTER INDEX public.event_subject_occurred_at ATTACH PARTITION public.event_default_subject_occurred_at_idx;

ALTER INDEX public.event_rare ATTACH PARTITION public.event_default_subject_occurred_at_idx1;

CREATE TRIGGER derive_again AFTER INSERT OR UPDATE ON public.device_replacement FOR EACH ROW EXECUTE FUNCTION public.derive_again_replaced();

CREATE TRIGGER derive_again_with AFTER INSERT ON public.party_ref REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.derive_again();

CREATE TRIGGER derive_again_without AFTER DELETE ON public.party_ref REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.derive_again();

CREATE TRIGGER fleet_key_tells AFTER INSERT OR DELETE OR UPDATE ON public.fleet_key FOR EACH STATEMENT EXECUTE FUNCTION public.tell_credentials();

CREATE TRIGGER note_renamed_with AFTER INSERT ON public.party_ref REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.note_renamed();

CREATE TRIGGER note_renamed_without AFTER DELETE ON public.party_ref REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.note_renamed();

CREATE TRIGGER sender_key_tells AFTER INSERT OR DELETE OR UPDATE ON public.sender_key FOR EACH STATEMENT EXECUTE FUNCTION public.tell_credentials();

CREATE TRIGGER sender_tells AFTER INSERT OR DELETE OR UPDATE ON public.sender FOR EACH STATEMENT EXECUTE FUNCTION public.tell_credentials();

CREATE TRIGGER tell_directory AFTER INSERT OR UPDATE OF model, firmware ON public.device FOR EACH ROW WHEN (((new.registered_by <> 'event'::text) OR (new.model IS NOT NULL) OR (new.firmware IS NOT NULL))) EXECUTE FUNCTION public.tell_directory();

CREATE TRIGGER tell_directory AFTER INSERT OR UPDATE ON public.relationship FOR EACH ROW EXECUTE FUNCTION public.tell_directory();

CREATE TRIGGER tell_directory_after AFTER UPDATE ON public.party_ref REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.tell_directory_of_refs();

CREATE TRIGGER tell_directory_before AFTER UPDATE ON public.party_ref REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.tell_directory_of_refs();

CREATE TRIGGER tell_directory_with AFTER INSERT ON public.party_ref REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.tell_directory_of_refs();

CREATE TRIGGER tell_directory_without AFTER DELETE ON public.party_ref REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.tell_directory_of_refs();

ALTER TABLE ONLY public.claim_code
    ADD CONSTRAINT claim_code_device_fkey FOREIGN KEY (device) REFERENCES public.device(subject);

ALTER TABLE ONLY public.device_replacement
    ADD CONSTRAINT device_replacement_by_fkey FOREIGN KEY (by) REFERENCES public.device(subject);

ALTER TABLE ONLY public.device_replacement
    ADD CONSTRAINT device_replacement_device_fkey FOREIGN KEY (device) REFERENCES public.device(subject);

ALTER TABLE ONLY public.device_replacement_relation
    ADD CONSTRAINT device_replacement_relation_ended_version_fkey FOREIGN KEY (ended, version) REFERENCES public.relationship(id, version);

ALTER TABLE ONLY public.device_replacement_relation
    ADD CONSTRAINT device_replacement_relation_replacement_fkey FOREIGN KEY (replacement) REFERENCES public.device_replacement(id);

ALTER TABLE ONLY public.fleet_key
    ADD CONSTRAINT fleet_key_sender_fkey FOREIGN KEY (sender) REFERENCES public.sender(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.hand_over
    ADD CONSTRAINT hand_over_device_fkey FOREIGN KEY (device) REFERENCES public.device(subject);

ALTER TABLE ONLY public.large_party_day
    ADD CONSTRAINT large_party_day_large_fkey FOREIGN KEY (large) REFERENCES public.large_party(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.large_party_part
    ADD CONSTRAINT large_party_part_large_fkey FOREIGN KEY (large) REFERENCES public.large_party(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.large_party
    ADD CONSTRAINT large_party_party_fkey FOREIGN KEY (party) REFERENCES public.party(id);

ALTER TABLE ONLY public.large_party_reached
    ADD CONSTRAINT large_party_reached_large_fkey FOREIGN KEY (large) REFERENCES public.large_party(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.large_party_span
    ADD CONSTRAINT large_party_span_large_fkey FOREIGN KEY (large) REFERENCES public.large_party(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.party_attribute
    ADD CONSTRAINT party_attribute_party_fkey FOREIGN KEY (party) REFERENCES public.party(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.party_link
    ADD CONSTRAINT party_link_other_kind_fkey FOREIGN KEY (other, kind) REFERENCES public.party(id, kind);

ALTER TABLE ONLY public.party_link
    ADD CONSTRAINT party_link_party_kind_fkey FOREIGN KEY (party, kind) REFERENCES public.party(id, kind);

ALTER TABLE ONLY public.party_ref
    ADD CONSTRAINT party_ref_party_fkey FOREIGN KEY (party) REFERENCES public.party(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.relationship_move
    ADD CONSTRAINT relationship_move_number_fkey FOREIGN KEY (number) REFERENCES public.relationship_change(number);

ALTER TABLE ONLY public.relationship_move
    ADD CONSTRAINT relationship_move_party_fkey FOREIGN KEY (party) REFERENCES public.party(id);

ALTER TABLE ONLY public.relationship
    ADD CONSTRAINT relationship_party_party_kind_fkey FOREIGN KEY (party, party_kind) REFERENCES public.party(id, kind);

ALTER TABLE ONLY public.relationship
    ADD CONSTRAINT relationship_role_exclusive_subject_kind_party_kind_fkey FOREIGN KEY (role, exclusive, subject_kind, party_kind) REFERENCES public.role_kind(role, exclusive, subject_kind, party_kind);

ALTER TABLE ONLY public.relationship
    ADD CONSTRAINT relationship_subject_party_subject_kind_fkey FOREIGN KEY (subject_party, subject_kind) REFERENCES public.party(id, kind);

ALTER TABLE ONLY public.role_kind
    ADD CONSTRAINT role_kind_role_exclusive_fkey FOREIGN KEY (role, exclusive) REFERENCES public.role(name, exclusive);

ALTER TABLE ONLY public.sender_key
    ADD CONSTRAINT sender_key_sender_fkey FOREIGN KEY (sender) REFERENCES public.sender(id) ON DELETE CASCADE;
