-- Records ask for faults, ratings and contacts one by one. They are few among what devices send, and these indexes hold
-- nothing else: whatever is of another type costs them a comparison.

create index event_rare on event (subject, occurred_at)
    where type in ('device.fault', 'feedback.rating', 'support.contact');
-- On which days there were any: else each question would go to every month.
create index subject_day_rare on subject_day (subject, type, day)
    where type in ('device.fault', 'feedback.rating', 'support.contact');

-- Lists of a party's relations are pages in the order of ids. By role nobody looks for them: a party's are few, or of one.
drop index relationship_party;
create index relationship_party on relationship (party, id) where upper_inf(recorded);
