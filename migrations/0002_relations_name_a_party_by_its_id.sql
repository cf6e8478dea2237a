-- A party is called by its id and by each of its references, but relations know it by one name: its id, as it is written.
-- Records lead from that name to all others.

alter table relationship add constraint relationship_subject_by_id
    check (not starts_with(subject, 'party:') or subject = 'party:' || (substr(subject, length('party:') + 1)::uuid));
