"""The packaged migrations, for databases without an Alembic history of the app; installed as `safeagent_sa.migrations`."""
