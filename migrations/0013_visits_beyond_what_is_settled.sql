-- What relations are derived from is read beyond a time (evidence.py): these find it, however much lies before.
create index identity_event_subject_time on identity_event (subject, occurred_at);
create index relationship_until on relationship (subject, coalesce(upper(valid), 'infinity'))
    where upper_inf(recorded);
create index relationship_derived_until
    on relationship (subject, coalesce(upper(valid), greatest(upper(recorded), lower(valid))))
    where derived and not upper_inf(recorded);
drop index identity_event_subject;
drop index relationship_derived_before;
