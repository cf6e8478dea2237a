"""drm-ingest."""
