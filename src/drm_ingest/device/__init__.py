"""What stands in for a device: recordings, sent as the events they once were."""
