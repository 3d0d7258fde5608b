"""The packaged migrations of the standalone road; installed as `safeagent_sa.migrations`."""
