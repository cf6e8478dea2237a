-- Records ask for faults, ratings and contacts one by one. They are few among what devices send, and these indexes hold
-- nothing else: whatever is of another type costs them a comparison.

create index event_rare on event (subject, occurred_at)
    where type in ('device.fault', 'feedback.rating', 'support.contact');
-- On which days there were any: else each question would go to every month.
create index subject_day_rare on subject_day (subject, type, day)
    where type in ('device.fault', 'feedback.rating', 'support.contact');
