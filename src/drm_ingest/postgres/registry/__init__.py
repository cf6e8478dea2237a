"""Who and what there is: senders, devices, parties, and what is said of them."""
