"""Totals of large parties: counted beforehand by a keeper in attach, for records that are too large to be read live.

What a total has in it is stored beside it (large_party_span), so each step compares that with what holds now and counts
the difference: nothing depends on replaying what changed, and links, undone links and replacements heal the same way.

    horizon.py  events recorded before which time have all been committed
    fresh.py    events recorded since the last step, in what is counted
    touched.py  which subjects of which large parties a change, an event or the passing of time concerns
    compare.py  what holds on these against what is counted; the difference by day and type
    parts.py    what each contributes to what is rare
    shown.py    the figures that are few and take long to add up
    find.py     which parties are large, and what of them is counted next
    step.py     all of it once, bounded, in one transaction
"""
