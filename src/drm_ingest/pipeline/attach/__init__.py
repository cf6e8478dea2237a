"""The topics of the families become rows in Postgres, each event exactly once in effect."""
