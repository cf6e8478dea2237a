"""Who held which role on what, and when, in two times: begun, ended, corrected, derived, moved, published."""
